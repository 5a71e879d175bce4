"""``sirf-diffusion recon`` and ``recon-many``: one reconstruction, or a list of them."""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import re
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..engines import PROJECTORS
from ..files.documents import read_text
from .command_line import USER_ERRORS, add_command, add_workers
from .recon_options import ABOUT, EXAMPLES, FILES, add_options, calibration_of, study_of

if TYPE_CHECKING:
    from ..files.outputs import OutputFolder
    from ..study.reconstruction import Study

_MANY = """\
Reconstruct a list of studies. Each line of LIST holds the options of one `sirf-diffusion recon`, --out among them;
empty lines and lines that begin with # are skipped. A line whose --out has its result already is left alone, and one
that was stopped goes on where it was. To share the posterior samples of one study among workers, see `sirf-diffusion
recon --workers`.

On a cluster, all paths must mean the same files everywhere.
"""


def add_parsers(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare both commands."""
    summary = "reconstruct your own data"
    add_options(add_command(commands, common, "recon", run, summary=summary, about=ABOUT, example=EXAMPLES))
    example = "sirf-diffusion recon-many studies.txt --workers 4"
    summary = "reconstruct a list of studies"
    many = add_command(commands, common, "recon-many", run_many, summary=summary, about=_MANY, example=example)
    many.add_argument("list", type=Path, metavar="LIST", help="text file, one reconstruction per line")
    add_workers(many)


def run(arguments: argparse.Namespace) -> int:
    """Reconstruct and write."""
    from ..environment import software_versions
    from ..reconstructors.records import LogCallback, ProgressBar
    from ..study.execution import Execution
    from ..study.report import format_table
    from ..study.result import check_position, check_writers
    from ..study.shares import check_shared, run_shared
    from ..study.vois import COLUMNS

    study = study_of(arguments, [ProgressBar(), LogCallback()])
    if study.par is not None and study.par.engine == "stir" and not arguments.verbose:
        import stir

        stir.Verbosity.set(0)  # it would tell of each subset, and hide how far the run is
    calibration = calibration_of(arguments.calibration, study)
    shared = arguments.workers != 1 or arguments.cluster is not None
    if shared:
        check_shared(study)
    check_writers(arguments.format, arguments.like, arguments.bids_json)
    folder = _folder_of(arguments, study)
    with folder.held():
        if folder.completed and not arguments.restart:
            print(f"{arguments.out}: the result was whole already and only had to be put into place")
            return 0
        voxels = math.prod(study.read.geometry.shape)
        exam = study.read.exam
        check_position(exam, arguments.format, arguments.like)
        if arguments.calibration == "header" and exam is not None and exam.calibration_factor is None:
            raise ValueError("--calibration header: the data have no calibration factor; give it as a number")
        more = {"software": software_versions(), "workers": arguments.workers}
        writing = ("calibration", "like", "format", "bids_json")
        study.checkpoint = folder.unfinished(more, besides=writing, restart=arguments.restart) / "run.safetensors"
        kept = arguments.save_adapter
        if kept is not None and kept.exists() and not (arguments.overwrite or study.checkpoint.is_file()):
            raise FileExistsError(f"--save-adapter {kept} exists: give --overwrite, or another name")
        # Image, samples and their standard deviation, and twice images and noisy images in checkpoints.
        folder.check_space(4 * voxels * (2 + 5 * (study.num_samples or 1)))
        result = run_shared(study, Execution(arguments.workers, arguments.cluster)) if shared else study.run()
        if arguments.calibration is not None:
            result = result.calibrated(calibration)
        if kept is not None:
            study.adaptation.save(kept)
            print(f"{kept}: adapter for the next scan (--adapter)")
        result.save(folder, arguments.format, arguments.like, bids=arguments.bids_json)
    record = result.record
    projections = record["projections"]
    print(f"{arguments.out}: {record['title']}")
    print(
        f"{projections['forward']:.4g} forward and {projections['back']:.4g} back projections, "
        f"{record['network_evaluations']} network evaluations, {record['seconds']['total']:.1f} s; besides "
        f"{record['seconds']['data']:.1f} s for the data, {record['seconds']['check']:.1f} s to check the result"
        + (f" in {len(record['shares'])} shares" if shared else "")
    )
    if vois := result.vois:
        print(format_table(vois, COLUMNS))
    if result.samples is not None and result.uncertainty is None:
        print("one sample has no standard deviation: no uncertainty.hv (--samples 5 gives one)")
    return 0


def _folder_of(arguments: argparse.Namespace, study: Study) -> OutputFolder:
    """Where the result goes, and what it depends on."""
    from ..files.outputs import OutputFolder
    from ..study.guide import Guide

    guide, par, adaptation = study.guide, study.par, study.adaptation
    return OutputFolder(
        arguments.out,
        {
            "method": arguments.method,
            "files": {name: getattr(arguments, name) for name in FILES if getattr(arguments, name) is not None},
            "model": None if study.score_model is None else study.score_model.hash,
            "contents": _contents(arguments, study),
            "precision": arguments.precision,
            "samples": arguments.samples,
            "seed": arguments.seed,
            "values": study.values,
            **({} if adaptation is None else {"adaptation": adaptation.settings, "adapter": arguments.adapter}),
            **({} if guide == Guide() else {"anatomical": asdict(guide)}),
            **({} if par is None else {"engine": par.engine, "keep_prior": par.keep_prior}),
            **({} if study.projector == PROJECTORS[0] else {"projector": study.projector}),
            **{
                name: value
                for name in ("attenuation_in_factors", "subsets", "calibration", "like", "vois")
                if (value := getattr(arguments, name)) is not None
            },
            **({} if arguments.format == "hv" else {"format": arguments.format}),
            **({"bids_json": True} if arguments.bids_json else {}),
        },
        overwrite=arguments.overwrite,
    )


def _contents(arguments: argparse.Namespace, study: Study) -> dict[str, str]:
    """SHA-256 of all files that the result depends on, by option, or by key of the parameter file."""
    from ..files.documents import digest
    from ..files.frames import split_frame
    from ..models.h_transform import find_h_transform

    named = {name: getattr(arguments, name) for name in (*FILES, "anatomical", "adapter", "vois")}
    if study.par is not None:
        named |= study.par.run.files()
    if h_transform := study.values.get("h_transform"):
        named["h_transform"] = find_h_transform(h_transform)
    return {name: digest(path) for name, path in named.items() if path is not None and split_frame(path)[0].exists()}


def run_many(arguments: argparse.Namespace) -> int:
    """Reconstruct what has no result yet; the exit code is that of the worst line."""
    from ..study.execution import Execution

    execution, jobs = Execution(arguments.workers, arguments.cluster), read_list(arguments.list)
    missing = [job for job in jobs if not _is_done(job)]
    if len(missing) < len(jobs):
        print(f"{len(jobs) - len(missing)} of {len(jobs)} have a result already")
    worst = 0
    for job, code, text in execution.results(reconstruct_line, missing):
        worst = max(worst, code)
        print(f"line {job.number}: {text.strip()}", file=sys.stderr if code else sys.stdout, flush=True)
    return worst


@dataclass(frozen=True)
class Job:
    """A line of a list: its number, its options, and where its result goes."""

    number: int
    options: tuple[str, ...]
    out: str


class _Strict(argparse.ArgumentParser):
    """Does not end the program."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _is_done(job: Job) -> bool:
    """Whether the result is there; one of other settings is not, and `recon` will refuse or replace it."""
    from . import build_parser

    if not (Path(job.out) / "record.json").is_file():
        return False
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            arguments = build_parser().parse_args(["recon", *job.options])
        return _folder_of(arguments, study_of(arguments)).holds_result()
    except (SystemExit, *USER_ERRORS):
        return False  # recon says why


def read_list(path: Path) -> list[Job]:
    """The lines of a list."""
    jobs: dict[str, Job] = {}
    find_out = _Strict(add_help=False)
    find_out.add_argument("--out")
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        try:
            options = shlex.split(_without_note(line))
            out = find_out.parse_known_args(options)[0].out
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if not options:
            continue
        if out is None:
            raise ValueError(f"{path}, line {number}: no --out, so the result would have no place")
        if out in jobs:
            raise ValueError(f"{path}, lines {jobs[out].number} and {number} have the same --out {out}")
        jobs[out] = Job(number, tuple(options), out)
    if not jobs:
        raise ValueError(f"{path} holds no line with options of sirf-diffusion recon")
    return list(jobs.values())


def _without_note(line: str) -> str:
    """A line up to the first word that begins with ``#``; ``NAME#2`` is a frame."""
    words = re.match(r"""(?:[^'"\\#]|\\.|'[^']*'|"(?:\\.|[^"\\])*"|(?<=\S)#)*""", line)
    end = 0 if words is None else words.end()
    return line[:end] if line[end:].startswith("#") else line


def reconstruct_line(job: Job) -> tuple[Job, int, str]:
    """Run ``sirf-diffusion recon`` with the options of a line, here; gives its exit code and what it said."""
    from ..files.progress import Kept
    from ..files.stopping import SIGNALS, Stopped
    from . import main

    said = Kept()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main(["recon", *job.options])
        except SystemExit as wrong_options:
            code = int(wrong_options.code or 0)
    if code - 128 in SIGNALS:
        print(f"line {job.number}: {said.getvalue().strip()}", file=sys.stderr)
        raise Stopped(code - 128)  # the lines after it, too
    return job, code, said.getvalue()
