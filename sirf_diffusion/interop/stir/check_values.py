"""Checks of values in a parameter file: files that are there, numbers that fit each other, settings that make sense."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ...files.parfile import ParBlock, ParFile, ParFileError, ParKey, fold
from . import stir_keys
from .blocks import PENALISATION_FACTOR, OwnBlock, own_block
from .findings import Findings
from .values import PLANES


def check(file: ParFile, program: str, findings: Findings) -> None:
    """Add what is wrong with the values of a file of ``program``."""
    for block, key in file.root.walk():
        if key.name in stir_keys.INPUT_FILES and key.value:
            _check_input(block, key, findings)
        if key.name == "output filename prefix" and key.value:
            _check_output(key, findings)
        own = own_block(key)
        if own is not None:
            if program == "KOSMAPOSL":
                findings.error(key.line, f"KOSMAPOSL would give {own.name} kernel coefficients, not activity: refused")
            if key.block is not None:
                _check_own(own, key, findings)
    if program in ("OSMAPOSL", "OSSPS"):
        for check_one in (_check_objective, _check_save_interval, _check_filter_interval, _check_subsets):
            try:
                check_one(file, findings)
            except ParFileError as error:
                findings.error(*_without_place(error, file.path))


def _check_input(block: ParBlock, key: ParKey, findings: Findings) -> None:
    # STIR takes 0 (no background, uniform start) and 1 (ones) for these instead of a file.
    if key.name in ("additive sinogram", "initial estimate", "precomputed denominator") and key.value in ("0", "1"):
        return
    path = Path(key.value)
    if key.name == "anatomical image filename" and path.is_dir():  # a DICOM series
        return
    if path.is_file():
        if path.suffix.lower() in (".hs", ".hv"):
            _check_data_file(key, path, findings)
        return
    text = f"'{key.name} := {key.value}': no such file (names are relative to {Path.cwd()})"
    if ";" in key.value:
        text += ". A comment needs a line of its own: behind a value, STIR takes it for a part of that"
    findings.error(key.line, text)


def _check_data_file(key: ParKey, header: Path, findings: Findings) -> None:
    name = _header_value(header, r"name\s+of\s+data\s+file")
    if name and not (header.parent / name).is_file():
        findings.error(key.line, f"{header} names the data file {name}, which is not there")


def _check_output(key: ParKey, findings: Findings) -> None:
    folder = Path(key.value).parent
    if not folder.is_dir():
        findings.error(key.line, f"'{key.name} := {key.value}': the folder {folder} does not exist; STIR makes none")
    if "." in Path(key.value).name:
        # Measured: with prefix a0.5, the headers of a0.5_9 and a0.5_18 are both written to a0.hv.
        text = "STIR takes what follows the dot for an extension, so that the headers of images overwrite each other"
        findings.error(key.line, f"'{key.name} := {key.value}': {text}")


def _check_own(own: OwnBlock, key: ParKey, findings: Findings) -> None:
    block = key.block
    assert block is not None
    for check_one in (_check_factor, _check_model, _check_python, _check_noise_levels, _check_choices, _check_numbers):
        try:
            check_one(own, block, findings)
        except ParFileError as error:
            findings.error(*_without_place(error, block.path))


def _check_factor(own: OwnBlock, block: ParBlock, findings: Findings) -> None:
    if own.kind != "prior":
        return
    key = block.key(PENALISATION_FACTOR)
    factor = block.real(PENALISATION_FACTOR)
    if key is None:
        text = f"no '{PENALISATION_FACTOR}': STIR's default is 0, with which the prior is never called"
        findings.error(block.line, text)
    elif factor == 0:
        findings.warning(key.line, f"'{PENALISATION_FACTOR} := 0': the prior is never called")
    elif factor < 0:
        findings.error(key.line, f"'{PENALISATION_FACTOR} := {key.value}': must not be negative")


def _check_model(own: OwnBlock, block: ParBlock, findings: Findings) -> None:
    if "model filename" not in own.defaults:
        return
    from ...models import ModelFileError, read_config
    from ...models.storage import find_model

    name = block.text("model filename", own.defaults["model filename"])
    key = block.key("model filename")
    line = block.line if key is None else key.line
    try:
        architecture = read_config(find_model(name)).architecture
    except ModelFileError as error:
        findings.error(line, f"'model filename := {name}': {error}")
        return
    if "guidance weight" in own.defaults:
        _check_anatomical(block, line, name, architecture.in_channels, findings)


def _check_anatomical(block: ParBlock, line: int, model: str, in_channels: int, findings: Findings) -> None:
    image, weight = block.key("anatomical image filename"), block.key("guidance weight")
    has_image = image is not None and bool(image.value)
    if in_channels == 1:
        for key in (image, weight):
            if key is not None and key.value and (key is image or block.real(key.name) != 0):
                text = f"'{key.name} := {key.value}': the model {model} was trained without anatomical images"
                findings.error(key.line, text)
    elif not has_image and block.real("guidance weight") != -1:
        findings.warning(
            line,
            f"the model {model} can use an MR or CT image and is given none: it runs without. Give 'anatomical image "
            "filename', or 'guidance weight := -1' if that is meant",
        )


def _check_python(own: OwnBlock, block: ParBlock, findings: Findings) -> None:
    if own.name != "Python":
        return
    for name in ("module", "class"):
        if name not in block:
            findings.error(block.line, f"no '{name}': the Python class to call is not known")
    text = block.text("arguments", "{}")
    try:
        arguments = json.loads(text)
    except ValueError as error:
        raise block.error("arguments", f'must be JSON such as {{"strength": 2}}, found {text!r} ({error})') from error
    if not isinstance(arguments, dict):
        raise block.error("arguments", f'must be a JSON object such as {{"strength": 2}}, found {text!r}')


def _check_noise_levels(own: OwnBlock, block: ParBlock, findings: Findings) -> None:
    levels = block.reals("noise level") if "noise level" in own.defaults else []
    zero_is_meant = own.defaults.get("noise level") == "0"
    if any(not 0 <= level < float("inf") or (level == 0 and not zero_is_meant) for level in levels):
        raise block.error("noise level", f"must be positive, found {block.text('noise level')}")
    each = "number of subiterations per noise level"
    if each in own.defaults and len(levels) > 1 and block.integer(each) < 1:
        raise block.error("noise level", f"is a list: give '{each}', for example the number of subsets")
    if len(levels) > 1 and each not in own.defaults:
        raise block.error("noise level", f"must be one number, found {len(levels)}")


def _check_choices(own: OwnBlock, block: ParBlock, findings: Findings) -> None:
    planes = block.text("planes", "auto")
    if "planes" in own.defaults and planes not in PLANES:
        raise block.error("planes", f"must be one of {', '.join(PLANES)}, found {planes!r}")
    device = block.text("device", "auto")
    if "device" in own.defaults and not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise block.error("device", f"must be auto, cpu, cuda or cuda:N, found {device!r}")


def _check_numbers(own: OwnBlock, block: ParBlock, findings: Findings) -> None:
    # Every number is read, so that what is none is found here and not after the projections have been set up.
    for name in ("intensity scale", "final noise level", "anchor strength", "eta"):
        if name in own.defaults:
            number = block.real(name)
            if number < 0 or (name == "eta" and number > 1):
                expected = "between 0 and 1" if name == "eta" else "at least 0"
                raise block.error(name, f"must be {expected}, found {number:g}")
    if "guidance weight" in own.defaults and not -1 <= block.real("guidance weight") < float("inf"):
        raise block.error("guidance weight", f"must be at least -1, found {block.text('guidance weight')}")
    for name in ("random seed", "number of steps", "number of subiterations per noise level"):
        if name in own.defaults and block.integer(name) < 0:
            raise block.error(name, f"must not be negative, found {block.text(name)}")


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
    subiterations = file.root.integer("number of subiterations", 1)
    steps = key.block.integer("number of steps")
    line = file.root.key("number of subiterations")
    at = key.line if line is None else line.line
    if subiterations % interval or subiterations < 2 * interval:
        findings.error(
            at,
            f"{subiterations} subiterations are not a multiple (of 2 or more) of the interval {interval}: the chain "
            "would not end with data steps. (steps + 1) x interval are needed, for example "
            f"{interval * ((steps or 20) + 1)}",
        )
    elif steps and (steps + 1) * interval > subiterations:
        findings.error(
            at,
            f"{steps} steps with an interval of {interval} need ({steps} + 1) x {interval} = {(steps + 1) * interval} "
            f"subiterations, found {subiterations}; leave out 'number of steps' to get "
            f"{subiterations // interval - 1} steps",
        )
    elif steps and (steps + 1) * interval < subiterations:
        findings.warning(
            at,
            f"{steps} steps with an interval of {interval} end at subiteration {(steps + 1) * interval}: the other "
            f"{subiterations - (steps + 1) * interval} are plain iterations, which bring the data's noise back",
        )
    if file.root.integer("start at subiteration number", 1) != 1:
        findings.error(key.line, "Diffusion Sampler cannot begin in the middle: remove 'start at subiteration number'")


def _check_subsets(file: ParFile, findings: Findings) -> None:
    key = file.root.key("number of subsets")
    source = file.objective().key("input file")
    num_subsets = file.root.integer("number of subsets", 1)
    if key is None or num_subsets == 1 or source is None or not Path(source.value).is_file():
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


def num_views_of(header: Path) -> int | None:
    """Number of views of Interfile projection data; None if the header does not tell."""
    axis = _header_value(header, r"matrix\s+axis\s+label\s*\[\s*(\d+)\s*\]", wanted="view")
    size = _header_value(header, rf"matrix\s+size\s*\[\s*{axis}\s*\]") if axis else ""
    return int(size) if size.isdigit() else None


def _header_value(header: Path, key: str, wanted: str | None = None) -> str:
    """Value of the first line with such a key; with ``wanted``, the key's group where the value is that."""
    try:
        text = header.read_text(encoding="utf-8", errors="replace")[:100_000]
    except OSError:
        return ""
    pattern = rf"^[ \t!]*{key}[ \t]*:=[ \t]*(?P<value>.*?)[ \t\r]*$"
    for match in re.finditer(pattern, text, re.IGNORECASE | re.MULTILINE):
        value = match["value"].strip("{} ")
        if wanted is None:
            return value
        if value.lower() == wanted:
            return match[1]
    return ""


def _without_place(error: ParFileError, path: str) -> tuple[int, str]:
    """Line and text of an error whose message begins with ``file:line:``."""
    match = re.match(r":(\d+): ", str(error).removeprefix(path))
    if match is None:
        return 0, str(error)
    return int(match[1]), str(error).removeprefix(path)[match.end() :]
