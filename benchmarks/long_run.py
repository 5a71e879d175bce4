"""``python -m benchmarks long-run``: many small reconstructions in one process: memory, descriptors, threads."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import io
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.kill_commands import small_files
from sirf_diffusion.cli import build_parser, main
from sirf_diffusion.cli.recon_options import study_of
from sirf_diffusion.reconstructors.methods import get_method

#: Until then, libraries are loaded and caches fill.
_FIRST = 50
_MOST_GROWTH = 0.01
#: Every so many runs is a command, with report and files; the others are computed.
_WRITTEN = 10
METHODS = {
    "osem": {"num_iterations": 2}, "map-rdp": {"num_iterations": 2}, "map-score": {"num_iterations": 2},
    "dds": {"num_steps": 2}, "hqs": {"num_steps": 2}, "lisch": {"num_steps": 2}, "ddip": {"num_steps": 2},
}  # fmt: skip


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Declare the options."""
    about = (
        f"Reconstruct again and again, all methods in turn. Exit code 1: memory grew by more than {_MOST_GROWTH:.0%} "
        f"after the first {_FIRST} runs, or descriptors or threads became more. Needs the tests beside it."
    )
    parser = subparsers.add_parser(
        "long-run", parents=[common], help="memory of many reconstructions", description=about
    )
    parser.add_argument("--runs", type=int, default=1000, metavar="N", help="default: %(default)d")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Reconstruct, and print what the process holds."""
    with tempfile.TemporaryDirectory(prefix="long-run-") as name:
        return check(states(Path(name), arguments.runs))


def check(found: dict[int, tuple[float, int, int]]) -> int:
    """Exit code: 0 if the last state is that after the first runs, nearly."""
    first, last = found[min(_FIRST, max(found))], found[max(found)]
    growth = last[0] / first[0] - 1
    print(f"memory grew by {growth:.2%}, descriptors by {last[1] - first[1]}, threads by {last[2] - first[2]}")
    return int(growth > _MOST_GROWTH or last[1] > first[1] or last[2] > first[2])


def states(folder: Path, runs: int, every: int = _FIRST) -> dict[int, tuple[float, int, int]]:
    """Resident MB, open descriptors and threads of this process, by the number of reconstructions made."""
    files, found = small_files(folder / "data"), {}
    for number in range(1, runs + 1):
        method = list(METHODS)[number % len(METHODS)]
        name, value = next(iter(METHODS[method].items()))
        words = ["recon", *files["scan"].options, "--method", method, "--set", f"{name}={value}", "--overwrite"]
        words += ["--model", str(files["model.safetensors"]), "--out", str(folder / "out")]
        words += ["--samples", "2"] if get_method(method).samples else []
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
            if number % _WRITTEN == 0:
                code = main(words)
            else:
                arguments = build_parser().parse_args(words)
                code = 0 if study_of(arguments).run().image.isfinite().all() else 1
        if code != 0:
            raise RuntimeError(f"{method} failed: {said.getvalue()}")
        if number % every == 0 or number == runs:
            found[number] = _state()
            memory, descriptors, threads = found[number]
            print(f"{number:5d}  {memory:7.1f} MB, {descriptors} descriptors, {threads} threads", flush=True)
    return found


def _state() -> tuple[float, int, int]:
    # What waits to be collected, and freed memory that the C library keeps for later, some 20 MB and never the same,
    # are no memory of the runs.
    gc.collect()
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    return int(told["VmRSS"].split()[0]) / 1024, descriptors, int(told["Threads"])
