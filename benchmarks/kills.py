"""``python -m benchmarks kills``: every command killed at random moments, and given again until it ends.

After a kill, what stands under a final name must be the bits of the uninterrupted run (or those of an earlier result);
at the end all of it must be there, with nothing left over, no process of the killed command may live on, and its exit
code must be that of the signal.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.kill_commands import Command, Products, commands

_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_PATIENCE = 1800.0
_COLUMNS = {
    "command": "s", "signal": "s", "kills": "d", "resumes": "d", "equal_bits": "d", "blocked": "d", "false_files": "d",
    "left_over": "d", "living_on": "d", "other_exit": "d",
}  # fmt: skip

#: Processes that start fast, and come from one that never computed: OpenMP does not survive a fork.
FRESH = multiprocessing.get_context("forkserver")


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Declare the options."""
    about = "Kill every command at random moments and give it again; needs the tests beside it. Exit code 1: a loss."
    parser = subparsers.add_parser("kills", parents=[common], help="kill every command at random", description=about)
    parser.add_argument("--count", type=int, default=100, metavar="N", help="kills; default: %(default)d")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the moments; default: 0")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="commands at a time; default: 1")
    parser.add_argument("--only", metavar="WORD", help="only commands that have it in their name")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep folders of what went wrong here")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Kill, resume, compare, print."""
    from sirf_diffusion.study.report import format_table

    FRESH.set_forkserver_preload(["sirf_diffusion.cli.recon", "sirf_diffusion.study.reconstruction", "h5py",
                                  "sirf_diffusion.training.trainer", "matplotlib.backends.backend_agg",
                                  "sirf_diffusion.reconstructors.methods", "torch._dynamo"])  # fmt: skip
    counts: dict[tuple[str, str], Counter[str]] = {}
    with tempfile.TemporaryDirectory(prefix="kills-") as name, ThreadPoolExecutor(arguments.workers) as threads:
        folder = Path(name)
        chosen = [c for c in commands(folder / "data") if (arguments.only or "") in c.name]

        def kill_all(place: int) -> None:
            trial, rng = Trial(chosen[place], folder, arguments.keep), random.Random(arguments.seed + place)
            for number in range(place, arguments.count, len(chosen)):
                how = _SIGNALS[(place + number // len(chosen)) % len(_SIGNALS)]
                found = trial.kill(how, rng)
                print(f"{trial.command.name}, {how.name}: {dict(found)}", flush=True)
                counts.setdefault((trial.command.name, how.name.removeprefix("SIG")), Counter()).update(found)

        list(threads.map(kill_all, range(len(chosen))))
    rows = [{"command": key[0], "signal": key[1], **_complete(counts[key])} for key in sorted(counts)]
    total = sum(counts.values(), Counter())
    print(format_table([*rows, {"command": "all", "signal": "", **_complete(total)}], _COLUMNS))
    lost = total["kills"] - total["equal_bits"] + sum(total[name] for name in list(_COLUMNS)[5:])
    return 1 if lost else 0


class Trial:
    """One command: its uninterrupted result, and what becomes of it when it is killed."""

    def __init__(self, command: Command, folder: Path, keep: Path | None = None) -> None:
        self.command, self.folder, self.keep = command, folder, keep
        self.earlier: Products = {}
        self.expected = self._uninterrupted()

    def kill(self, how: signal.Signals, rng: random.Random) -> Counter[str]:
        """Kill it at a random moment, look, run it to its end, look again; tells what was found."""
        found: Counter[str] = Counter()
        out = self._prepared()
        while True:
            process = _start(self.command, out)
            process.join(rng.uniform(0.02, 1.0) * self.seconds)
            if process.is_alive():
                os.kill(process.pid, how)
                process.join(_PATIENCE)
            there, left = self.command.products(out), any(_unfinished(path) for path in out.rglob("*"))
            if process.exitcode != 0 and (left or there != self.expected):
                break
            shutil.rmtree(out)  # it was faster, and had nothing left to do
            self.seconds *= 0.9
            out = self._prepared()
        found["kills"] += 1
        found["other_exit"] += process.exitcode not in (-how, 128 + how)
        found["false_files"] += sum(there[n] not in (self.expected.get(n), self.earlier.get(n)) for n in there)
        again = _start(self.command, out)
        again.join(_PATIENCE)
        found["resumes" if again.exitcode == 0 else "blocked"] += 1
        found["equal_bits"] += self.command.products(out) == self.expected
        found["left_over"] += any(_unfinished(path) for path in out.rglob("*"))
        found["living_on"] += _lives_on(process.pid)
        if found["equal_bits"] == 0 or sum(found.values()) > 3:
            log = (out.parent / f"{out.name}.log").read_text()
            print(f"{self.command.name}, {how.name}: {found}\n{log[-3000:]}", file=sys.stderr)
            if self.keep is not None:
                shutil.copytree(out, self.keep / f"{self.command.name}-{process.pid}")
        _end(again)
        shutil.rmtree(out)
        return found

    def _uninterrupted(self) -> Products:
        out = self._prepared()
        self.earlier = self.command.products(out)
        start = time.monotonic()
        process = _start(self.command, out)
        process.join(_PATIENCE)
        self.seconds = time.monotonic() - start
        found = self.command.products(out)
        if process.exitcode != 0 or not found:
            log = (out.parent / f"{out.name}.log").read_text()
            raise RuntimeError(f"{self.command.name} ends with {process.exitcode} by itself: {log[-3000:]}")
        shutil.rmtree(out)
        print(f"{self.command.name}: {self.seconds:.1f} s, {len(found)} files", flush=True)
        return found

    def _prepared(self) -> Path:
        """The same folder every time: its name is in some results."""
        out = self.folder / self.command.name.replace(" ", "-").replace(",", "")
        out.mkdir()
        process = FRESH.Process(target=_child, args=(self.command.name, self.folder, out, True))
        process.start()
        process.join(_PATIENCE)
        return out


def _start(command: Command, out: Path) -> Any:
    process = FRESH.Process(target=_child, args=(command.name, out.parent, out, False))
    process.start()
    return process


def _child(name: str, folder: Path, out: Path, prepare: bool) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores, and what it starts too
    log = os.open(out.parent / f"{out.name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.chdir(folder)
    command = next(c for c in commands(folder / "data", write=False) if c.name == name)
    try:
        sys.exit(command.prepare(out) if prepare else command.run(out))
    except KeyboardInterrupt:  # of a script: Python then ends of the signal, multiprocessing with 1
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


def _unfinished(path: Path) -> bool:
    name = path.name
    return name in (".lock", ".unfinished", ".complete") or ".part" in name


def _lives_on(session: int, patience: float = 60.0) -> bool:
    """Whether processes of a session are still there after a while."""
    deadline = time.monotonic() + patience
    while _members(session):
        if time.monotonic() > deadline:
            return True
        time.sleep(0.2)
    return False


def _members(session: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(state[3]) == session and state[0] != "Z":
            found.append(int(path.parent.name))
    return found


def _end(process: Any) -> None:
    if process.is_alive():
        process.kill()
        process.join()


def _complete(found: Counter[str]) -> dict[str, int]:
    return {name: found[name] for name in list(_COLUMNS)[2:]}
