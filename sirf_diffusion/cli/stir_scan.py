"""One parameter file with a list of penalisation factors: table, images and figure to choose one by.

With a reference image each result's distance to it is measured. Without one, its log-likelihood and roughness are: with
a rising factor both fall, the roughness first and the log-likelihood later, and a factor between is what one wants.
"""

from __future__ import annotations

import hashlib
import logging
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..files.atomic import atomic_path, save_figure
from ..files.documents import digest
from ..files.lock import LOCK, locked
from ..files.outputs import OutputFolder, write_csv, write_json
from ..files.parfile.keys import INPUT_FILES
from ..files.versions import read_record
from ..files.workers import end_with_parent
from ..geometry.checks import check_real
from ..interop.stir.blocks import PENALISATION_FACTOR
from ..interop.stir.check import check
from ..interop.stir.run import Call
from ..models.h_transform import find_h_transform, list_h_transforms
from ..models.storage import find_model, list_models

logger = logging.getLogger(__name__)

_RECORD = "scan.json"
#: Keys of our blocks that name a file too, or what is in one.
_NAMED = ("module", "model filename", "h-transform filename")
_MOST_IMAGES = 8
_LIKELIHOOD = re.compile(r"Objective function without penalty\s+(\S+)")


@dataclass(frozen=True)
class Point:
    """One factor's result: last image (relative to the folder), ``||x - ref|| / ||ref||`` (None without a reference),
    log-likelihood as STIR reports it (None if it does not), root mean square of differences between neighbouring pixels
    in x and y relative to the image's mean, and wall time.
    """

    factor: float
    image: str
    nrmse: float | None
    log_likelihood: float | None
    roughness: float
    seconds: float


class ScanError(RuntimeError):
    """A run of the scan failed."""


@dataclass
class Scan:
    """Runs a parameter file of OSMAPOSL or OSSPS once for each factor.

    Its ``penalisation factor``, ``output filename prefix`` and what is saved on the way are replaced. Finished factors
    are not run again: `run` continues an interrupted scan, or one with more factors.

    Raises
    ------
    ValueError
        If the file has errors, or no prior with a penalisation factor; or if the folder holds another scan.
    """

    par: Path
    out: Path
    reference: Path | None = None
    variables: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        report = check(self.par, variables=self.variables)
        if report.errors or report.file is None:
            raise ValueError(report.format())
        if report.program not in ("OSMAPOSL", "OSSPS"):
            raise ValueError(f"{self.par} is for {report.program}; a scan needs a file for OSMAPOSL or OSSPS")
        self.program, self._file = report.program, report.file
        self._prior = self._file.prior()
        if self._prior is None or self._prior.block is None:
            raise ValueError(f"{self.par} has no prior, so there is no '{PENALISATION_FACTOR}' to scan")
        self.out.mkdir(parents=True, exist_ok=True)
        self.points = self._earlier_points()
        self._write()  # marks the folder as this scan's, whatever happens to the first run

    @property
    def prior(self) -> str:
        """Registered name of the prior."""
        return self._prior.value

    def run(self, factors: Sequence[float], report: Callable[[Point], None] = lambda point: None) -> list[Point]:
        """Run the factors (at least 0) that are not done; all points, in ascending order of the factor.

        Each point goes to ``report``, also one that was done before. ScanError if a run fails: what was finished stays.
        """
        with locked(self.out / LOCK, ValueError):
            for factor in factors:
                if factor not in self.points:
                    self.points[factor] = self._run(factor)
                    self._write()
                report(self.points[factor])
        points = sorted(self.points.values(), key=lambda point: point.factor)
        _figure(self.out, points, self.prior, self.reference)
        return points

    def _run(self, factor: float) -> Point:
        # STIR takes what follows a dot in the name of an image for its extension.
        name = f"factor_{factor:g}".replace(".", "p")
        par, log = self.out / f"{name}.par", self.out / f"{name}.log"
        last = self._file.root.integer("number of subiterations", 1)
        with atomic_path(par) as temporary:
            temporary.write_text(self._text(factor, self.out / name, last), encoding="utf-8", errors="surrogateescape")
        call = Call(self.program, par, (), self.variables)
        environment = Call(self.program, self.par, (), self.variables).environment()  # with this file's folder
        logger.info("%s := %g", PENALISATION_FACTOR, factor)
        start = time.monotonic()
        with log.open("wb") as stream:
            command = subprocess.run(
                call.command(), env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, check=False,
                preexec_fn=end_with_parent,
            )  # fmt: skip
        seconds = time.monotonic() - start
        text = log.read_text(encoding="utf-8", errors="replace")
        image = self.out / f"{name}_{last}.hv"
        if command.returncode or not image.is_file():
            end = "\n".join(text.rstrip().splitlines()[-15:])
            what = f"{PENALISATION_FACTOR} {factor:g}: exit code {command.returncode}"
            raise ScanError(f"{what}; the end of {log}:\n{end}")
        likelihoods = _LIKELIHOOD.findall(text)
        nrmse, roughness = _measure(image, self.reference)
        likelihood = float(likelihoods[-1]) if likelihoods else None
        return Point(factor, image.name, nrmse, likelihood, roughness, round(seconds, 2))

    def _text(self, factor: float, prefix: Path, last: int) -> str:
        """The file with another factor, other output, and a report of the log-likelihood at the end."""
        root, prior = self._file.root, self._prior.block
        edits = []
        for block, name, value in (
            (prior, PENALISATION_FACTOR, f"{factor:g}"),
            (root, "output filename prefix", prefix),
            (root, "save estimates at subiteration intervals", last),
            (root, "report objective function values interval", last),
        ):
            key = block.key(name)
            lines = (key.line, key.last_line) if key else (block.line + 1, block.line)
            edits.append((*lines, f"{name} := {value}\n"))
        return self._file.edited(edits)

    def _settings(self) -> dict[str, object]:
        """What the results depend on besides the factor: the file, and the content of all that it names."""
        named = {key.value: key.name for _, key in self._file.root.walk() if key.name in (*INPUT_FILES, *_NAMED)}
        named |= {} if self.reference is None else {str(self.reference): "reference"}
        contents = {}
        for value, name in sorted(named.items()):
            beside = f"{value.replace('.', '/')}.py"
            found = {
                "module": next((p for p in (Path(beside), self.par.parent / beside) if p.is_file()), None),
                "model filename": find_model(value) if value in list_models() else None,
                "h-transform filename": find_h_transform(value) if value in list_h_transforms() else None,
            }.get(name) or Path(value)
            if found.is_file():
                contents[value] = digest(found)
        return {
            "parameter file": hashlib.sha256(self._file.text.encode("utf-8", "surrogateescape")).hexdigest(),
            "variables": dict(self.variables),
            "reference": None if self.reference is None else str(self.reference),
            "files (SHA-256)": contents,
        }

    def _earlier_points(self) -> dict[float, Point]:
        folder = OutputFolder(self.out, self._settings(), record_name=_RECORD, advice="give another folder").check()
        if not folder.record_path.is_file():
            return {}
        try:
            points = [Point(**point) for point in read_record(folder.record_path)["points"]]
            return {check_real("factor", point.factor): point for point in points if (self.out / point.image).is_file()}
        except (ValueError, TypeError, LookupError) as error:
            raise ValueError(f"{folder.record_path} is damaged ({error}): give another folder") from error

    def _write(self) -> None:
        points = [asdict(point) for point in sorted(self.points.values(), key=lambda point: point.factor)]
        write_json(self.out / _RECORD, {"settings": self._settings(), "prior": self.prior, "points": points})
        columns = ["factor", "nrmse", "log_likelihood", "roughness", "seconds", "image"]
        write_csv(self.out / "scan.csv", [columns, *([point[column] for column in columns] for point in points)])


def best(points: Sequence[Point]) -> tuple[Point, str] | None:
    """The point nearest to the reference, with a remark if it is the first or last one; None without a reference."""
    known = sorted((p for p in points if p.nrmse is not None), key=lambda p: p.factor)
    if not known:
        return None
    found = min(known, key=lambda p: p.nrmse)
    at_end = found in (known[0], known[-1])
    side = "smaller" if found is known[0] else "larger"
    return found, f"the best of the list is at its end: try {side} ones too" if at_end else ""


def parse_factors(text: str) -> list[float]:
    """Factors from ``"0.1,0.2"``.

    Examples
    --------
    >>> parse_factors("0.1, 0.2")
    [0.1, 0.2]
    """
    try:
        factors = [float(item) for item in text.split(",") if item.strip()]
    except ValueError:
        factors = []
    if not factors or not all(0 <= factor < float("inf") for factor in factors):
        raise ValueError(f"--factors {text}: expected numbers of at least 0 with commas between, such as 0.05,0.1,0.2")
    return list(dict.fromkeys(factors))


def _measure(image: Path, reference: Path | None) -> tuple[float | None, float]:
    from ..files.interfile import read_image
    from ..study.metrics import nrmse

    x, geometry = read_image(image)
    distance = None
    if reference is not None:
        truth, other = read_image(reference)
        if not other.is_near(geometry):
            raise ValueError(f"--reference {reference} lies on {other}, the images on {geometry}: resample it")
        distance = float(nrmse(x, truth))
    squares = [float(x.diff(dim=dim).square().mean()) for dim in (-1, -2)]
    mean = float(x.mean())
    return distance, (sum(squares) / 2) ** 0.5 / mean if mean > 0 else 0.0


def _figure(folder: Path, points: Sequence[Point], prior: str, reference: Path | None) -> None:
    """Draw the slice with most activity for up to 8 factors, and below it NRMSE by factor, or roughness against
    log-likelihood where there is no reference.
    """
    from matplotlib.figure import Figure

    from ..files.interfile import read_image

    shown = _spread(points)
    panels = [(f"{point.factor:g}", read_image(folder / point.image)[0]) for point in shown]
    if reference is not None:
        panels.insert(0, ("reference", read_image(reference)[0]))
    middle = panels[0][1]
    plane = int(middle.sum((-1, -2)).argmax())
    vmax = float(panels[0][1][plane].max() if reference is not None else panels[len(panels) // 2][1][plane].max())
    canvas = Figure(figsize=(max(6.0, 1.9 * len(panels)), 5.4), layout="constrained")
    upper, lower = canvas.subfigures(2, 1, height_ratios=(1, 1.3))
    for axes, (title, image) in zip(upper.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.imshow(image[plane].numpy(), cmap="gray_r", vmin=0, vmax=vmax)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    upper.suptitle(f"{prior}: penalisation factor", fontsize=10)
    _curve(lower.subplots(), points, reference is not None)
    save_figure(folder / "scan.png", canvas, 130)


def _curve(axes: Any, points: Sequence[Point], with_reference: bool) -> None:
    factors = [point.factor for point in points]
    if with_reference:
        axes.plot(factors, [point.nrmse for point in points], "o-", color="black")
        # A factor of 0 (no prior) has a place on this axis too.
        smallest = min((f for f in factors if f > 0), default=1.0)
        axes.set_xscale("symlog", linthresh=smallest, linscale=0.5)
        axes.set_xticks(factors, [f"{factor:g}" for factor in factors])
        axes.minorticks_off()
        axes.set_xlabel("penalisation factor")
        axes.set_ylabel("NRMSE")
        return
    known = [point for point in points if point.log_likelihood is not None]
    axes.plot([p.roughness for p in known], [p.log_likelihood for p in known], "o-", color="black")
    for point in known:
        axes.annotate(f"{point.factor:g}", (point.roughness, point.log_likelihood), fontsize=8, xytext=(4, -9),
                      textcoords="offset points")  # fmt: skip
    axes.set_xlabel("roughness (pixel differences relative to the mean)")
    axes.set_ylabel("log-likelihood")
    axes.ticklabel_format(useOffset=False)


def _spread(points: Sequence[Point]) -> list[Point]:
    """At most `_MOST_IMAGES` of the points, first and last included."""
    if len(points) <= _MOST_IMAGES:
        return list(points)
    step = (len(points) - 1) / (_MOST_IMAGES - 1)
    return [points[round(k * step)] for k in range(_MOST_IMAGES)]
