"""What the machine does to a command: full disks, other processes, readers that go, memory that ends, clocks."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from foreign_networks import ARGUMENTS, unet
from fresh import exit_code
from patient_images import activity, write_interfile
from test_stopped_runs import images

from benchmarks import long_run
from benchmarks.kill_commands import TRAINING
from sirf_diffusion.cli import main
from sirf_diffusion.cli.command_line import leave
from sirf_diffusion.files.atomic import atomic_path
from sirf_diffusion.files.lock import LOCK, locked
from sirf_diffusion.reconstructors.records import LogCallback
from sirf_diffusion.training.data.volume_file import VolumeFile

pytestmark = pytest.mark.usefixtures("undrawn", "few_levels")


@pytest.fixture(scope="module")
def commands(small_scan, small_model, data, tmp_path_factory):
    """``commands[name](folder)``: the words of a small command whose output is in the folder, and its lock there."""
    folder = tmp_path_factory.mktemp("commands")
    pictures = [write_interfile(folder / f"{k}.hv", activity(k), None) for k in range(2)]
    torch.save(unet().state_dict(), folder / "unet.pt")
    (folder / "unet.json").write_text(json.dumps(ARGUMENTS))
    (folder / "train.toml").write_text(TRAINING.replace("[30]", "[4]").replace("every = 20", "every = 2"))
    recon = ["recon", *small_scan.options, "--model", small_model, "--method", "dds", "--samples", 4, "--set"]
    foreign = [folder / "unet.pt", "--config", folder / "unet.json", "--schedule", "ddpm", "--prediction", "eps"]
    words = {
        "recon": ([*recon, "num_steps=3"], "out"),
        "data build": (["data", "build", *pictures], "b.h5"),
        "data phantom": (["data", "phantom", "--body", "head-parametric", "--voxel-size", 10, "--subjects", 1], "p.h5"),
        "train": (["train", "--data", data, "--config", folder / "train.toml"], "m.safetensors"),
        "models import": (["models", "import", *foreign], "i.safetensors"),
        "models evaluate": (["models", "evaluate", small_model, "--data", data, "--size", 16], "card"),
    }
    return {
        name: lambda where, first=first, out=out: [*map(str, first), "--out", str(where / out)]
        for name, (first, out) in words.items()
    }


COMMANDS = ("recon", "data build", "data phantom", "train", "models import", "models evaluate")
LOCKS = {
    "recon": "out", "data build": "b.h5.parts", "data phantom": "p.h5.parts", "train": "m.safetensors.training",
    "models evaluate": "card",
}  # fmt: skip


def heard(log: Path, *others) -> None:
    """For a child: standard error goes to a file; then do the others."""
    sys.stderr = log.open("w", buffering=1)
    for other in others:
        other()


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_said_with_the_file_and_what_to_do(commands, tmp_path, name):
    words, log = commands[name](tmp_path), tmp_path / "log"
    assert exit_code(partial(main, words), partial(heard, log, partial(limit_files, 3500))) == 2
    said = log.read_text().splitlines()[-1]
    assert "error: " in said
    assert "File too large" in said
    assert "free some space and give the same command again" in said
    assert str(tmp_path) in said
    assert main(words) == 0


def without_privileges() -> None:
    """Let root be refused what others are."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    assert ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="privileges are given up as on Linux")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_cannot_be_written_is_refused_at_once(commands, tmp_path, name):
    where, log = tmp_path / "closed", tmp_path / "log"
    where.mkdir(mode=0o555)
    assert exit_code(partial(main, commands[name](where)), partial(heard, log, without_privileges)) == 2
    said = log.read_text().splitlines()[-1]
    assert str(where) in said
    assert "Permission denied" in said


@pytest.mark.parametrize("name", LOCKS)
def test_a_second_process_is_refused_by_the_first_ones_number(commands, tmp_path, capsys, name):
    (tmp_path / LOCKS[name]).mkdir()
    with locked(tmp_path / LOCKS[name] / LOCK):
        assert main(commands[name](tmp_path)) == 2
    assert f"in use by process {os.getpid()}" in capsys.readouterr().err


def test_ctrl_c_ends_a_shells_loop_too():
    words = "from sirf_diffusion.cli.command_line import leave; leave(130)"
    child = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=False)
    assert (child.returncode, child.stderr) == (-signal.SIGINT, "")
    for code in (2, 143):
        with pytest.raises(SystemExit, match=str(code)):
            leave(code)


def close_reader() -> None:
    """As ``| head -0``."""
    reader, writer = os.pipe()
    os.close(reader)
    for stream in (1, 2):
        os.dup2(writer, stream)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))


def test_work_goes_on_when_nobody_reads_what_it_says(commands, tmp_path):
    lines = [" ".join(commands["recon"](tmp_path / name)[1:]) for name in ("a", "b")]
    (tmp_path / "list").write_text("\n".join(lines))
    assert exit_code(partial(main, ["recon-many", str(tmp_path / "list")]), close_reader) == 0
    assert all((tmp_path / name / "out" / "record.json").is_file() for name in ("a", "b"))


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + 100 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


@pytest.mark.skipif(sys.platform != "linux", reason="the size of the process is read as on Linux")
def test_memory_that_ends_is_one_line(tmp_path):
    log = tmp_path / "log"
    words = ["data", "phantom", "--body", "head-parametric", "--voxel-size", "1", "--subjects", "1", "--out"]
    assert exit_code(partial(main, [*words, str(tmp_path / "p.h5")]), partial(heard, log, limit_memory)) == 2
    assert "out of memory" in log.read_text().splitlines()[-1]
    assert "Traceback" not in log.read_text()


def turn_clock_back() -> None:
    """Every look at the clock finds it earlier by an hour."""
    now, hours = time.time(), itertools.count(1)
    time.time = lambda: now - 3600 * next(hours)


def test_a_clock_that_goes_backwards_changes_nothing(commands, tmp_path, monkeypatch):
    assert main(commands["recon"](tmp_path / "whole")) == 0
    words = [*commands["recon"](tmp_path), "--checkpoint-every", "0"]
    with monkeypatch.context() as patch:
        patch.setattr(
            LogCallback, "__call__", lambda self, step: step.step == 2 and os.kill(os.getpid(), signal.SIGTERM)
        )
        assert main(words) == 143
    for path in (tmp_path / "out").rglob("*"):
        os.utime(path, (time.time() + 1e6,) * 2)
    assert exit_code(partial(main, words), turn_clock_back) == 0
    assert images(tmp_path / "out") == images(tmp_path / "whole" / "out")


def test_data_that_are_cut_off_while_a_run_reads_them_no_more_change_nothing(
    commands, small_scan, tmp_path, monkeypatch
):
    assert main(commands["recon"](tmp_path / "whole")) == 0
    scan = shutil.copytree(small_scan.folder, tmp_path / "scan")
    words = [word.replace(str(small_scan.folder), str(scan)) for word in commands["recon"](tmp_path)]

    def cut(self, step) -> None:
        for path in scan.glob("*.*s"):
            os.truncate(path, 10)

    monkeypatch.setattr(LogCallback, "__call__", cut)
    assert main(words) == 0
    assert images(tmp_path / "out") == images(tmp_path / "whole" / "out")
    assert main(words) == 2  # not with what is left of them


def test_training_data_that_are_cut_off_are_named(data, tmp_path):
    path = Path(shutil.copy(data, tmp_path / "d.h5"))
    file = VolumeFile(path, memory_mb=0.01)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises((OSError, ValueError), match=str(path)):
        [file.volume(k) for k in range(len(file))]


@pytest.mark.slow
def test_run_after_run_a_process_holds_no_more(tmp_path, monkeypatch):
    number = len(long_run.METHODS)
    monkeypatch.setattr(long_run, "_WRITTEN", number)
    early, late = long_run.states(tmp_path, 2 * number, every=number).values()
    assert late[1] <= early[1]
    assert late[2] <= early[2]
    assert late[0] < 1.1 * early[0]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(tmp_path):
    with atomic_path(tmp_path / "x.json") as temporary:
        temporary.touch()
    dead, living = (temporary.with_name(temporary.name.replace(str(os.getpid()), n)) for n in ("4194304", "1"))
    for path in (dead, living):
        path.touch()
    with atomic_path(tmp_path / "x.json") as temporary:
        temporary.touch()
    assert sorted(tmp_path.iterdir()) == sorted([living, tmp_path / "x.json"])
