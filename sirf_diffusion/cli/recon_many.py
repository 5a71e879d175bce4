"""``sirf-diffusion recon-many``: a list of reconstructions, on several processes or a cluster."""

from __future__ import annotations

import argparse
import contextlib
import io
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DESCRIPTION = """\
Reconstruct a list of studies. Each line of LIST holds the options of one `sirf-diffusion recon`, --out among them;
empty lines and lines that begin with # are skipped. A line whose --out has a result already is left alone, so that a
list which was stopped goes on where it was. To share the posterior samples of one study among workers, see
`sirf-diffusion recon --workers`.

On a cluster, all paths must mean the same files everywhere.
"""


@dataclass(frozen=True)
class Job:
    """A line: its number in the list, its options, and where its result goes."""

    number: int
    options: tuple[str, ...]
    out: str


@dataclass(frozen=True)
class Done:
    """How a line ended: exit code, and what it said."""

    job: Job
    code: int
    text: str


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser = subparsers.add_parser(
        "recon-many",
        parents=[common],
        help="reconstruct a list of studies",
        description=_DESCRIPTION,
        epilog="example: sirf-diffusion recon-many studies.txt --workers 4",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("list", type=Path, metavar="LIST", help="text file, one reconstruction per line")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes of this machine; default: 1")
    parser.add_argument("--cluster", metavar="ADDRESS", help="Dask scheduler instead, such as tcp://host:8786")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Reconstruct what has no result yet; the exit code is that of the worst line."""
    from sirf_diffusion.study.execution import make_execution

    jobs = read_list(arguments.list)
    missing = [job for job in jobs if not (Path(job.out) / "record.json").is_file()]
    if len(missing) < len(jobs):
        print(f"{len(jobs) - len(missing)} of {len(jobs)} have a result already")
    if not missing:
        return 0
    worst = 0
    for done in make_execution(arguments.workers, arguments.cluster).results(reconstruct_line, missing):
        worst = max(worst, done.code)
        stream = sys.stderr if done.code else sys.stdout
        print(f"line {done.job.number}: {done.text.strip()}", file=stream, flush=True)
    return worst


def read_list(path: Path) -> list[Job]:
    """The lines of a list.

    Raises
    ------
    ValueError
        If a line has no ``--out``, or two lines have the same.
    """
    jobs: list[Job] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        options = shlex.split(line, comments=True)
        if not options:
            continue
        jobs.append(Job(number, tuple(options), _out(options, f"{path}, line {number}")))
        if twin := next((job for job in jobs[:-1] if job.out == jobs[-1].out), None):
            raise ValueError(f"{path}, lines {twin.number} and {number} have the same --out {twin.out}")
    if not jobs:
        raise ValueError(f"{path} holds no line with options of sirf-diffusion recon")
    return jobs


def reconstruct_line(job: Job) -> Done:
    """Run ``sirf-diffusion recon`` with the options of a line, in this process."""
    from . import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main(["recon", *job.options])
        except SystemExit as wrong_options:
            code = int(wrong_options.code or 0)
    return Done(job, code, said.getvalue())


def _out(options: list[str], where: str) -> str:
    for position, option in enumerate(options):
        if option == "--out" and position + 1 < len(options):
            return options[position + 1]
        if option.startswith("--out="):
            return option.removeprefix("--out=")
    raise ValueError(f"{where}: no --out, so the result would have no place")
