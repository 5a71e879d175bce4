"""Checks of values in a parameter file: files that are there, numbers that fit each other, settings that make sense."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files.parfile import ParBlock, ParFile, ParFileError, ParKey, fold
from ...files.parfile.keys import INPUT_FILES
from .blocks import PENALISATION_FACTOR, OwnBlock, check_steered, num_chain_steps, own_block
from .python_blocks import refusal

if TYPE_CHECKING:
    from ...files.interfile.header import Header

COMMENT = ". A comment needs a line of its own: behind a value, STIR takes it for a part of that"
_MOST = 200


@dataclass(frozen=True)
class Finding:
    """An ``"error"`` (the run would fail, or not do what is asked for) or a ``"warning"`` at a line; 0 for none."""

    level: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{f'line {self.line}: ' if self.line else ''}{self.level}: {self.text}"


@dataclass
class Findings:
    """A growing list of findings, the first 200 of them."""

    items: list[Finding] = field(default_factory=list)

    @property
    def full(self) -> bool:
        """Whether no more are taken."""
        return len(self.items) > _MOST

    def add(self, level: str, line: int, text: str) -> None:
        """Add one."""
        if len(self.items) == _MOST:
            level, text = "error", f"more than {_MOST} findings: the rest is not shown"
        if not self.full:
            self.items.append(Finding(level, line, text))

    def error(self, line: int, text: str) -> None:
        """Add an error."""
        self.add("error", line, text)

    def warning(self, line: int, text: str) -> None:
        """Add a warning."""
        self.add("warning", line, text)

    def of(self, check: Callable[..., None], path: str, *arguments: Any) -> None:
        """Run a check; what it raises is an error at its line."""
        try:
            check(*arguments, self)
        except ParFileError as error:
            text = str(error).removeprefix(path)
            place = re.match(r":(\d+): ", text)
            self.error(*((int(place[1]), text[place.end() :]) if place else (0, text)))

    def sorted(self) -> tuple[Finding, ...]:
        """All in the order of lines."""
        return tuple(sorted(self.items, key=lambda f: f.line))


def check(file: ParFile, program: str, findings: Findings) -> None:
    """Add what is wrong with the values of a file of ``program``."""
    seen = set()
    for _, key in file.root.walk():
        if findings.full:
            return
        if key.name in INPUT_FILES and key.value and key.value not in seen:
            _check_input(key, findings)
            seen.add(key.value)
        if key.name == "output filename prefix" and key.value:
            _check_output(key, findings)
        own = own_block(key)
        if own is not None:
            if program == "KOSMAPOSL":
                findings.error(key.line, f"KOSMAPOSL would give {own.name} kernel coefficients, not activity: refused")
            if own.name == "Diffusion Sampler" and key.name in ("post-filter type", "postfilter type"):
                text = "would make one step of its chain: it is for 'inter-iteration filter type'"
                findings.error(key.line, f"{own.name} as {key.name.removesuffix(' type')} {text}")
            if own.kind == "prior" and fold(file.root.text("map model", "")) == "multiplicative":
                text = (
                    "'MAP model := multiplicative' multiplies the sensitivity by one plus the prior's gradient: the "
                    "factor's strength then depends on the sensitivity and on the image's unit; additive is the default"
                )
                findings.warning(key.line, text)
            if key.block is not None:
                findings.of(_check_own, file.path, own, key.block, program)
    if program in ("OSMAPOSL", "OSSPS"):
        for check_one in (_check_objective, _check_save_interval, _check_filter_interval, _check_subsets):
            findings.of(check_one, file.path, file)


def _check_input(key: ParKey, findings: Findings) -> None:
    # STIR takes 0 (no background, uniform start) and 1 (ones) for these instead of a file.
    if key.name in ("additive sinogram", "initial estimate", "precomputed denominator") and key.value in ("0", "1"):
        return
    path = Path(key.value)
    if key.name == "anatomical image filename" and os.path.isdir(path):  # a DICOM series
        return
    if not os.path.isfile(path):  # unlike Path.is_file, false for names that the system rejects
        text = f"'{key.name} := {key.value}': no such file (names are relative to {Path.cwd()})"
        findings.error(key.line, text + (COMMENT if ";" in key.value else ""))
    elif path.suffix.lower() in (".hs", ".hv"):
        header = _header(path)
        if reason := not_for_stir(key):
            findings.error(key.line, f"{path} {reason}")
        name = "" if header is None else header.text("name of data file", "")
        if name and not os.path.isfile(path.parent / name):
            findings.error(key.line, f"{path} names the data file {name}, which is not there")


def _check_output(key: ParKey, findings: Findings) -> None:
    folder = Path(key.value).parent
    if not os.path.isdir(folder):
        findings.error(key.line, f"'{key.name} := {key.value}': the folder {folder} does not exist; STIR makes none")
    if "." in Path(key.value).name:
        # Measured: with prefix a0.5, the headers of a0.5_9 and a0.5_18 are both written to a0.hv.
        text = "STIR takes what follows the dot for an extension, so that the headers of images overwrite each other"
        findings.error(key.line, f"'{key.name} := {key.value}': {text}")


def _check_own(own: OwnBlock, block: ParBlock, program: str, findings: Findings) -> None:
    """Every value is read, so that what is none is found here and not after the projections have been set up."""
    values: dict[str, Any] = {}
    for key in own.keys:
        given = block.key(key.name)
        try:
            values[key.name] = key.value(key.default if given is None else given.value)
        except ValueError as problem:
            findings.error(given.line if given else block.line, str(problem))
    if len(values) < len(own.keys):
        return
    if own.kind == "prior":
        _check_factor(own, block, values[PENALISATION_FACTOR], findings)
    if own.name == "Python":
        _check_python(block, values, findings)
    if "model filename" in values:
        _check_model(block, values, findings)
    levels, each = values.get("noise level"), "number of subiterations per noise level"
    if isinstance(levels, list) and len(levels) > 1 and values[each] < 1:
        raise block.error("noise level", f"is a list: give '{each}', for example the number of subsets")
    if isinstance(levels, list) and program == "OSMAPOSL":
        from ...priors.one_step_late import risk as one_step_late_risk

        if risk := one_step_late_risk(values[PENALISATION_FACTOR], min(levels)):
            findings.warning(block.line, risk)


def _check_factor(own: OwnBlock, block: ParBlock, factor: float, findings: Findings) -> None:
    key = block.key(PENALISATION_FACTOR)
    if own.name == "Quadratic Anchor" and block.key("anchor filename") is None:
        if key is not None:  # the sampler moves this anchor
            text = f"'{PENALISATION_FACTOR}' has no effect: the sampler's 'anchor strength' is this anchor's"
            findings.warning(key.line, text)
    elif factor == 0 and key is None:
        text = f"no '{PENALISATION_FACTOR}': its default is 0, with which the prior is never called"
        findings.error(block.line, text)
    elif factor == 0:
        findings.warning(key.line, f"'{PENALISATION_FACTOR} := 0': the prior is never called")


def _check_python(block: ParBlock, values: dict[str, Any], findings: Findings) -> None:
    for name in ("module", "class"):
        if not values[name]:
            findings.error(block.line, f"no '{name}': the Python class to call is not known")
    if values["module"] and (problem := refusal(values["module"], values["class"])):
        raise block.error("module", problem)


def _check_model(block: ParBlock, values: dict[str, Any], findings: Findings) -> None:
    from ...models import ModelFileError, read_config
    from ...models.storage import find_model

    name = values["model filename"]
    key = block.key("model filename")
    line = block.line if key is None else key.line
    try:
        config = read_config(find_model(name))
    except ModelFileError as error:
        findings.error(line, f"'model filename := {name}': {error}")
        return
    schedule, planes = config.schedule, values["planes"]
    largest, levels = float(schedule.sigma(schedule.t_max)), values.get("noise level")
    if isinstance(levels, list) and max(levels) > largest:
        raise block.error("noise level", f":= {block.text('noise level')}: the model {name} knows up to {largest:.4g}")
    if planes is not None and (planes == "volume") != (config.architecture.spatial_dims == 3):
        kind = "volumes" if config.architecture.spatial_dims == 3 else "slices"
        raise block.error("planes", f":= {planes}: {name} is a network of {kind}")
    image, weight = values["anatomical image filename"], values["guidance weight"]
    in_channels = config.architecture.in_channels
    if in_channels == 1 and (image or weight):
        given = "anatomical image filename" if image else "guidance weight"
        raise block.error(given, f":= {block.text(given)}: the model {name} was trained without anatomical images")
    if in_channels > 1 and not image and weight != -1 and "personalised" not in config.training:
        findings.warning(
            line,
            f"the model {name} can use an MR or CT image and is given none: it runs without. Give 'anatomical image "
            "filename', or 'guidance weight := -1' if that is meant",
        )


def _check_objective(file: ParFile, findings: Findings) -> None:
    objective = file.objective()
    if not any(name in objective for name in ("input file", "list mode filename")):
        findings.error(objective.line, "no 'input file': there are no measured data")


def _check_save_interval(file: ParFile, findings: Findings) -> None:
    key = file.root.key("save estimates at subiteration intervals")
    last = file.root.integer("number of subiterations", 1)
    if key is not None and not 1 <= file.root.integer(key.name) <= last:
        findings.error(key.line, f"'{key.name} := {key.value}' must be between 1 and the {last} subiterations")


def _check_filter_interval(file: ParFile, findings: Findings) -> None:
    key = file.root.key("inter-iteration filter type")
    if key is None or fold(key.value) == "none":
        return
    name = "inter-iteration filter subiteration interval"
    interval = file.root.integer(name)
    if interval < 1:
        findings.error(key.line, f"no '{name}': its default is 0, with which the filter is never called")
        return
    own = own_block(key)
    if own is None or own.name != "Diffusion Sampler" or key.block is None:
        return
    last = file.root.integer("number of subiterations", 1)
    line = file.root.key("number of subiterations")
    at = key.line if line is None else line.line
    given, first = key.block.integer("number of steps"), file.root.integer("start at subiteration number", 1)
    try:
        steps = num_chain_steps(given, last, interval, first)
    except ValueError as problem:
        findings.error(at, str(problem))
        return
    _check_steered(file, own, key.block, findings)
    if (steps + 1) * interval < last:
        findings.warning(
            at,
            f"{steps} steps with an interval of {interval} end at subiteration {(steps + 1) * interval}: the other "
            f"{last - (steps + 1) * interval} are plain iterations, which bring the data's noise back",
        )


def _check_steered(file: ParFile, own: OwnBlock, block: ParBlock, findings: Findings) -> None:
    from ...models.h_transform import HTransformFileError

    context = {file.root.name: ""}
    for _, key in file.root.walk():
        context.setdefault(key.name, key.value)
    try:
        values = own.values({key.name: key.value for key in block.keys})
        check_steered(values, context)
    except HTransformFileError as problem:
        name = values["h-transform filename"]
        raise block.error("h-transform filename", f":= {name}: {problem}") from problem
    except ValueError as problem:
        findings.error(block.line, str(problem))
        return
    stir, image = file.objective(), values["sensitivity filename"]
    written = stir.text("recompute sensitivity", "0") == "1" and stir.text("sensitivity filename", "") == image
    if image and not written and not os.path.isfile(image):
        text = "no such file, and this one has no 'recompute sensitivity := 1' with which STIR writes it"
        raise block.error("sensitivity filename", f":= {image}: {text}")


def _check_subsets(file: ParFile, findings: Findings) -> None:
    key = file.root.key("number of subsets")
    source = file.objective().key("input file")
    num_subsets = file.root.integer("number of subsets", 1)
    if key is None or num_subsets == 1 or source is None:
        return
    num_views = num_views_of(Path(source.value))
    if num_views is None:
        return
    if num_subsets < 1 or num_views % num_subsets:
        findings.error(key.line, f"{num_subsets} subsets do not divide the {num_views} views of {source.value} evenly")
        return
    # STIR gives views that its projector derives from each other by symmetry to the same subset.
    symmetric = num_views // 4 if num_views % 4 == 0 else num_views // 2 if num_views % 2 == 0 else num_views
    if symmetric % num_subsets:
        findings.warning(
            key.line,
            f"{num_subsets} subsets do not divide {symmetric}, the views of {source.value} that no symmetry connects: "
            "STIR refuses that if the projector uses its symmetries (do symmetry 90degrees min phi := 0, and so on)",
        )


def num_views_of(path: Path) -> int | None:
    """Number of views of Interfile projection data; None if the header does not tell."""
    header = _header(path)
    size = "-" if header is None else _size(header, "view")
    return int(size) if re.fullmatch(r"\d{1,9}", size) else None


def _size(header: Header, label: str) -> str:
    """Size, or sizes, of the axis of a label."""
    axes = [axis for axis in range(1, 6) if fold(header.text("matrix axis label", "-", axis)) == label]
    return header.text("matrix size", "-", axes[0]) if axes else "-"


def not_for_stir(key: ParKey) -> str:
    """What STIR would make of the projection data that a key names, where that is not what a user means; else empty."""
    if not (key.name in INPUT_FILES and key.value.lower().endswith(".hs") and os.path.isfile(key.value)):
        return ""
    if (header := _header(Path(key.value))) is None:
        return ""
    number = header.text("number of time frames", "1")
    if re.fullmatch(r"\d{1,9}", number) and int(number) > 1:
        return f"has {number} time frames, of which STIR would take the first: give a header of one"
    ends = (header.text(f"{end} ring difference per segment", "-") for end in ("minimum", "maximum"))
    low, high, sizes = (re.findall(r"-?\d+", text) for text in (*ends, _size(header, "axial coordinate")))
    pairs = (sorted((int(a), int(b))) for a, b in zip(low, high, strict=False))
    segments = {(a, b): size for (a, b), size in zip(pairs, sizes, strict=False)}
    alone = [f"{a} to {b}" for (a, b), size in segments.items() if segments.get((-b, -a)) != size]
    if alone:
        return f"has a segment without its mirror (ring differences {', '.join(alone)}), on which STIR ends the process"
    return ""


def _header(path: Path) -> Header | None:
    """An Interfile header, whatever it is one of; None if it is none. A reader of data would need these, too."""
    from ...files.interfile.header import Header, InterfileError

    try:
        return Header(path, stir=False)
    except InterfileError:
        return None
