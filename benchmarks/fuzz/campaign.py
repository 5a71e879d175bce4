"""``python -m benchmarks fuzz``: inputs by the hundred thousand for every reader of files, and what became of them.

Each input follows from seed and number alone. It is read in a process of its own kind, whose address space is limited
and which is replaced when it dies or does not come back. An end is clean if the reader gives a value that keeps its
promises, or raises the error that is documented for files that cannot be used. Everything else is kept as a file.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from sirf_diffusion.files.outputs import write_json
from sirf_diffusion.files.versions import read_record
from sirf_diffusion.geometry.checks import check_count

from .mutations import LONGEST
from .reader import Broken, Reader

#: Longest time for an input, s of the processor, and without a sign of life, s of the clock; memory beside 4 times the
#: input, bytes; unclean inputs that are kept.
LONGEST_TIME, NO_SIGN, MEMORY, KEPT = 5.0, 900.0, 64 * 2**20, 40
_HEAVY = [
    "monai.networks.nets.diffusion_model_unet", "torch._dynamo", "h5py", "pydicom", "nibabel", "petsird", "SimpleITK",
]  # fmt: skip


def readers() -> dict[str, type[Reader]]:
    """All kinds of files, by name."""
    from . import binaries, images, list_mode, texts

    kinds: list[type[Reader]] = []
    for module in (texts, binaries, images, list_mode):
        found = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Reader)]
        kinds += [kind for kind in found if kind.__module__ == module.__name__ and "name" in vars(kind)]
    return {kind.name: kind for kind in kinds}


@dataclass
class Tally:
    """What became of the inputs of one reader: seconds are the processor's, memory is in MB, the slowest by number."""

    reader: str
    seed: int
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    unclean: int = 0
    slowest: float = 0.0
    slowest_input: int = 0
    memory: float = 0.0
    seconds: float = 0.0
    kinds: dict[str, int] = field(default_factory=dict)


def judge(reader: Reader, content: bytes) -> str:
    """``accepted``, ``refused``, or in what way the end was unclean."""
    reader.put(content)
    try:
        reader.read()
    except reader.errors:
        return "refused"
    except Broken as error:
        return f"nonsense accepted: {error}"
    except (Exception, SystemExit) as error:
        last = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in last if "sirf_diffusion" in frame.filename]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
        return f"{type(error).__name__} at {where}"
    return "accepted"


def input_of(reader: Reader, seed: int, number: int) -> bytes:
    """An input, the same for the same reader, seed and number."""
    return reader.content(Random(f"{seed} {reader.name} {number}"))


class _Quiet(logging.Handler):
    """Makes every message, and drops it."""

    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage()


def _work(name: str, seed: int, first: int, last: int, folder: str, state: Any) -> None:
    """Inputs ``first`` to ``last - 1``, in a process of its own; ``state`` has the numbers of a tally."""
    import warnings

    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger().handlers = [_Quiet()]
    logging.getLogger("nibabel.global").handlers = []
    place = Path(folder)
    work = place / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    reader = readers()[name](work)
    for number in range(-20, 0):  # imports and caches are no memory of an input
        judge(reader, input_of(reader, seed, number))
    kept = 0
    with (place / "unclean.jsonl").open("a") as unclean:
        for number in range(first, last):
            _limit_memory(None)  # making an input may take more than reading it
            content = input_of(reader, seed, number)
            _limit_memory(2 * MEMORY + 4 * LONGEST)
            state[0], began, resident = number, time.process_time(), _reset_peak()
            end = judge(reader, content)
            took, peak = time.process_time() - began, max(0, _peak() - resident)
            if took > LONGEST_TIME:
                end = f"{took:.1f} s"
            if peak > 4 * len(content) + MEMORY:
                end = f"{peak / 1e6:.0f} MB"
            state[1 if end == "accepted" else 2 if end == "refused" else 3] += 1
            state[7] += took
            if took > state[4]:
                state[4], state[5] = took, number
            state[6] = max(state[6], peak / 1e6)
            if end not in ("accepted", "refused"):
                kept += 1
                unclean.write(json.dumps([number, end]) + "\n")
                unclean.flush()
                if kept <= KEPT:
                    (place / f"{number}-{reader.file}").write_bytes(content)
    state[0] = last


def _limit_memory(more: int | None) -> None:
    """Let the process have so many bytes more than it has; None: as many as there are."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if more is not None:
        with open("/proc/self/statm") as file:
            more += int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (hard if more is None else more, hard))


def _spent(process: int | None) -> float:
    """Seconds of the processor that a process took."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _reset_peak() -> int:
    """Bytes that are resident now, from which the peak is counted anew."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _peak()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_reader(name: str, seed: int, inputs: int, folder: Path, tally: Tally) -> Tally:
    """Judge inputs ``tally.inputs`` to ``inputs - 1``; ``folder`` gets the unclean ones."""
    # Children of a server that has imported everything and computed nothing.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.{module}" for module in ("texts", "binaries")] + _HEAVY)
    folder.mkdir(parents=True, exist_ok=True)
    while tally.inputs < inputs:
        state = context.RawArray("d", 8)
        state[0] = tally.inputs
        job = (name, seed, tally.inputs, inputs, str(folder), state)
        process = context.Process(target=_work, args=job, daemon=True)
        process.start()
        seen, since, spent = -1.0, time.monotonic(), 0.0
        while process.is_alive():
            process.join(0.5)
            if state[0] != seen:
                seen, since, spent = state[0], time.monotonic(), _spent(process.pid)
            elif _spent(process.pid) - spent > 6 * LONGEST_TIME or time.monotonic() - since > NO_SIGN:
                process.kill()
                process.join()
        at = int(state[0])
        tally.accepted += int(state[1])
        tally.refused += int(state[2])
        tally.unclean += int(state[3])
        if state[4] > tally.slowest:
            tally.slowest, tally.slowest_input = round(state[4], 3), int(state[5])
        tally.memory, tally.seconds = max(tally.memory, round(state[6], 1)), round(tally.seconds + state[7], 1)
        tally.inputs = at
        if at < inputs and process.exitcode:
            code = process.exitcode
            how = f"died of {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            file_name = readers()[name].file
            if (folder / "work" / file_name).exists():
                shutil.copy(folder / "work" / file_name, folder / f"{at}-{file_name}")
            with (folder / "unclean.jsonl").open("a") as file:
                file.write(json.dumps([at, how]) + "\n")
            tally.unclean, tally.inputs = tally.unclean + 1, at + 1
    return tally


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser = subparsers.add_parser(
        "fuzz",
        parents=[common],
        help="give damaged and hostile files to every reader",
        description=__doc__,
        epilog="example: python -m benchmarks fuzz --inputs 20000 --reader DICOM",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--inputs", type=int, default=200_000, metavar="N", help="of each reader; default: 200000")
    parser.add_argument("--reader", action="append", metavar="NAME", help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="default: 0")
    parser.add_argument(
        "--out", type=Path, default=Path("fuzz"), metavar="DIR",
        help="folder for tallies and unclean inputs; a run that was stopped goes on; default: fuzz",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Fuzz and print the table; exit code 1 if an end was unclean."""
    kinds = readers()
    chosen = arguments.reader or list(kinds)
    if unknown := sorted({*chosen} - {*kinds}):
        raise ValueError(f"--reader {unknown[0]}: known are {', '.join(kinds)}")
    check_count("--inputs", arguments.inputs)
    arguments.out.mkdir(parents=True, exist_ok=True)
    tallies = []
    for name in chosen:
        folder = arguments.out / name.replace(" ", "-")
        done = folder / "tally.json"
        tally = Tally(name, arguments.seed)
        if done.exists():
            earlier = Tally(**read_record(done))
            tally = earlier if earlier.seed == arguments.seed else tally
        for step in _steps(tally.inputs, arguments.inputs):
            tally = run_reader(name, arguments.seed, step, folder, tally)
            write_json(done, asdict(tally))
            print(_row(tally), flush=True)
        tallies.append(tally)
    print("\n" + table(tallies))
    return 1 if any(tally.unclean for tally in tallies) else 0


def _steps(done: int, wanted: int, size: int = 10_000) -> list[int]:
    """Where to note the tally: at most every ``size`` inputs."""
    return [*range((done // size + 1) * size, wanted, size), wanted] if done < wanted else []


_COLUMNS = ("reader", "inputs", "accepted", "refused", "unclean", "slowest (s)", "memory (MB)", "ms per input")


def _row(t: Tally) -> str:
    each = 1000 * t.seconds / max(1, t.inputs)
    numbers = (f"{t.inputs:,}", f"{t.accepted:,}", f"{t.refused:,}", t.unclean, t.slowest, t.memory, f"{each:.2f}")
    return f"| {t.reader} | {' | '.join(map(str, numbers))} |"


def table(tallies: list[Tally]) -> str:
    """Markdown."""
    return "\n".join([f"| {' | '.join(_COLUMNS)} |", f"|{' --- |' * len(_COLUMNS)}", *map(_row, tallies)])
