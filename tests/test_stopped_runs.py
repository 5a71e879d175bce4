"""Runs that are killed, stopped, or cannot write: nothing is lost, and the same command goes on to the same bits."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from fresh import FRESH, DieAt, exit_code
from safetensors.torch import load_file, save_file

from sirf_diffusion.cli import main
from sirf_diffusion.files.interfile import read_image
from sirf_diffusion.files.lock import LOCK
from sirf_diffusion.files.outputs import UNFINISHED, OutputError, OutputFolder
from sirf_diffusion.files.stopping import SIGNALS
from sirf_diffusion.reconstructors.checkpoint import CheckpointCallback
from sirf_diffusion.reconstructors.methods import METHODS
from sirf_diffusion.reconstructors.records import LogCallback
from sirf_diffusion.study.execution import Execution

pytestmark = pytest.mark.usefixtures("undrawn")
SETTINGS = {"osem": "num_iterations=4", "map-rdp": "num_iterations=5", "map-score": "num_iterations=3"}


@pytest.fixture
def command(small_scan, small_model, tmp_path):
    """``command(method, folder)``: the words of a command on the small scan."""

    def words(method: str = "dds", folder: str = "out", *more: str) -> list[str]:
        options = {"method": method, "out": tmp_path / folder}
        options |= {"adapt-set": "num_updates=1"} if method == "ddip" else {}
        options["set"] = SETTINGS.get(method, "num_steps=4")
        options["checkpoint-every"] = 0
        if METHODS[method].uses_model:
            options["model"] = small_model
        if METHODS[method].samples:
            options["samples"] = 2
        return ["recon", *small_scan.words(**options), *more]

    return words


def in_child(work, begin=None) -> int:
    """`exit_code` of a command or a function."""
    return exit_code(partial(main, work) if isinstance(work, list) else work, begin)


def images(folder: Path) -> dict[str, bytes]:
    assert json.loads((folder / "record.json").read_text())["files"]
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".v", ".h5")}


def listed(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("method", ["dds", "lisch", "ddip", "osem", "map-rdp"])
def test_killed_at_every_renaming_it_goes_on_to_the_same_bits(command, tmp_path, method):
    assert main(command(method, "whole")) == 0
    kills = 0
    while (code := in_child(command(method), DieAt(2 + 3 * kills, ("os.rename",), tmp_path))) != 0:
        assert code == -signal.SIGKILL
        kills += 1
    assert kills > 2
    assert listed(tmp_path / "out") == listed(tmp_path / "whole")
    assert images(tmp_path / "out") == images(tmp_path / "whole")


def write(folder: OutputFolder, **files: str) -> int:
    with folder.staged({}) as staging:
        (staging / "series").mkdir()
        for name, text in files.items():
            (staging / name).write_text(text)
        (staging / "series" / "1").write_text(next(iter(files.values())))
    return 0


def test_killed_anywhere_the_old_result_or_the_new_one_is_there_whole(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    write(OutputFolder(out, {"seed": 1}, overwrite=True), image="old", samples="old")
    shutil.copytree(out, tmp_path / "kept")
    found, number = set(), 0
    killers = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "open", "shutil.rmtree")
    while True:
        shutil.rmtree(out)
        shutil.copytree(tmp_path / "kept", out)
        new = OutputFolder(out, {"seed": 2}, overwrite=True)
        code = in_child(partial(write, new, image="new", mean="new"), DieAt(number, killers, out))
        with OutputFolder(out, {"seed": 2}, overwrite=True).held():
            pass
        texts = {name: (out / name).read_text() for name in listed(out) - {"record.json"}}
        assert texts.pop("notes.txt") == "mine"
        seed = json.loads((out / "record.json").read_text())["settings"]["seed"]
        names = ("image", "samples", "series/1") if seed == 1 else ("image", "mean", "series/1")
        assert texts == dict.fromkeys(names, "old" if seed == 1 else "new")
        found.add(seed)
        number += 1
        if code == 0:
            break
    assert found == {1, 2}
    assert number > 15


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_keep_the_state_and_say_how_to_go_on(command, tmp_path, monkeypatch, capsys, caplog, number):
    assert main(command("lisch", "whole")) == 0
    earlier = signal.signal(number, signal.default_int_handler)
    with monkeypatch.context() as patch:
        patch.setattr(LogCallback, "__call__", lambda self, step: step.step == 2 and os.kill(os.getpid(), number))
        assert main(command("lisch", "out", "--checkpoint-every", "3600")) == 128 + number
    signal.signal(number, earlier)
    assert f"stopped by {signal.Signals(number).name}" in capsys.readouterr().err
    assert "goes on from there" in caplog.text
    assert len(list((tmp_path / "out" / UNFINISHED).glob("*.safetensors"))) == 1
    steps = []
    monkeypatch.setattr(LogCallback, "__call__", lambda self, step: steps.append(step.step))
    assert main(command("lisch")) == 0
    assert steps == [3, 4]
    assert images(tmp_path / "out") == images(tmp_path / "whole")


def test_a_list_stops_as_a_whole_and_goes_on(command, tmp_path, monkeypatch):
    lines = [" ".join(command("osem", name)[1:]) for name in ("a", "b")]
    (tmp_path / "list").write_text("\n".join(lines))
    with monkeypatch.context() as patch:
        patch.setattr(LogCallback, "__call__", lambda self, step: os.kill(os.getpid(), signal.SIGTERM))
        assert main(["recon-many", str(tmp_path / "list")]) == 143
    assert not (tmp_path / "b").exists()
    assert main(["recon-many", str(tmp_path / "list")]) == 0
    assert images(tmp_path / "a") == images(tmp_path / "b")


def test_other_settings_and_other_data_are_refused_until_restarted(command, small_scan, tmp_path, capsys, caplog):
    scan = tmp_path / "scan"
    shutil.copytree(small_scan.folder, scan)
    arguments = [word.replace(str(small_scan.folder), str(scan)) for word in command()]
    assert in_child(arguments, DieAt(4, ("os.rename",), tmp_path)) == -signal.SIGKILL
    assert main([*arguments, "--seed", "5"]) == 2
    assert "unfinished run that differs: seed differ (seed: 0 there, 5 asked for)" in capsys.readouterr().err
    shutil.copy(scan / "additive.s", scan / "prompts.s")
    assert main(arguments) == 2
    assert "contents.prompts differ" in capsys.readouterr().err
    assert main([*arguments, "--seed", "5", "--restart"]) == 0
    assert json.loads((tmp_path / "out" / "record.json").read_text())["seed"] == 5
    assert "ended without finishing; the folder is free" in caplog.text


def test_a_run_goes_on_and_is_written_in_another_unit(command, tmp_path):
    assert main(command("dds", "plain")) == 0
    assert in_child(command("dds"), DieAt(4, ("os.rename",), tmp_path)) == -signal.SIGKILL
    assert main([*command("dds"), "--calibration", "2"]) == 0
    plain, doubled = (read_image(tmp_path / name / "reconstruction.hv")[0] for name in ("plain", "out"))
    assert torch.equal(doubled, 2 * plain)


def test_a_folder_in_use_elsewhere_is_not_taken(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK).write_text("elsewhere another-boot 1")
    with (
        pytest.raises(OutputError, match="process 1 on elsewhere: if it has ended, remove"),
        OutputFolder(tmp_path / "out", {}).held(),
    ):
        pass


def fill_disk(log: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
    sys.stderr = log.open("w", buffering=1)


def test_what_a_full_disk_does_not_take_is_written_later(command, tmp_path, monkeypatch):
    assert main(command("dds", "whole")) == 0
    log = tmp_path / "log"

    assert in_child(command(), partial(fill_disk, log)) == 2
    said = log.read_text()
    assert said.splitlines()[-1].startswith("sirf-diffusion recon: error: ")
    assert "Traceback" not in said
    steps = []
    monkeypatch.setattr(LogCallback, "__call__", lambda self, step: steps.append(step.step))
    assert main(command()) == 0
    assert steps == []
    assert images(tmp_path / "out") == images(tmp_path / "whole")


@pytest.mark.parametrize(
    ("method", "factor"),
    [(name, 1e38) for name, method in METHODS.items() if method.uses_model and not method.default_model]
    + [("map-score", -1e38)],
)
def test_a_network_that_overflows_is_one_line(command, small_model, tmp_path, capsys, method, factor):
    from safetensors import safe_open

    with safe_open(small_model, "pt") as file:
        metadata = file.metadata()
    weights = {
        name: weight * factor if name.startswith("out") else weight for name, weight in load_file(small_model).items()
    }
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    save_file(weights, tmp_path / "large.safetensors", metadata)
    assert main([*command(method), "--model", str(tmp_path / "large.safetensors")]) == 2
    said = capsys.readouterr().err
    assert "network gives values that are not finite" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("error", [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
    type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 20.00 GiB."),
])  # fmt: skip
def test_too_little_memory_is_one_line(command, monkeypatch, capsys, error):
    def fail(self):
        raise error

    monkeypatch.setattr("sirf_diffusion.study.reconstruction.Study.run", fail)
    assert main(command()) == 2
    said = capsys.readouterr().err
    assert "out of memory" in said
    assert "fewer samples or workers" in said


def runs(process: str) -> bool:
    """Whether a process is there and is not a zombie (some containers have nobody who buries orphans)."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_workers_end_with_their_parent_and_the_same_command_goes_on(command, tmp_path, monkeypatch):
    more = ("--workers", "2", "--set", "num_steps=24")
    process = FRESH.Process(target=main, args=(command("dds", "out", *more),))
    process.start()
    deadline = time.monotonic() + 300
    while len(list((tmp_path / "out").glob(f"{UNFINISHED}/*.safetensors"))) < 2:
        assert time.monotonic() < deadline
        assert process.is_alive()
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.join()
    assert len(children) >= 2
    while any(runs(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # The shares' bits are the same wherever they are made: here they need no new processes.
    monkeypatch.setattr(Execution, "results", lambda self, function, jobs: map(function, jobs))
    steps = []
    monkeypatch.setattr(CheckpointCallback, "__call__", lambda self, step: steps.append(step.step))
    assert main(command("dds", "out", *more)) == 0
    assert len(steps) < 2 * 24
    assert main(command("dds", "whole", *more)) == 0
    assert images(tmp_path / "out") == images(tmp_path / "whole")
