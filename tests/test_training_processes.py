"""A training that is killed goes on bit for bit; two processes train as one does."""

import csv
import os
import signal
import socket
import time

import numpy as np
import pytest
import torch
from fresh import FRESH
from safetensors.torch import load_file
from training_file import write_training_file
from training_processes import RECIPE, run, run_rank

from sirf_diffusion.training.checkpoint import NAME, PREVIOUS, CheckpointError, read_checkpoint, write_checkpoint

KILLS = 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A data file, and the model and log of a training that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    data = write_training_file(folder / "data.h5")
    finish(FRESH.Process(target=run, args=(data, folder / "model.safetensors")))
    return data, folder / "model.safetensors"


def finish(child):
    child.start()
    child.join(120)
    assert child.exitcode == 0


def kill_after(child, checkpoint, writes, delay):
    """Start and kill a process a moment after it wrote so many checkpoints; whether it was still alive."""
    child.start()
    last = inode(checkpoint)
    while child.is_alive() and writes:
        if inode(checkpoint) != last:
            last, writes = inode(checkpoint), writes - 1
        time.sleep(0.002)
    time.sleep(delay)
    alive = child.is_alive()
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    return alive


def inode(path):
    return path.stat().st_ino if path.exists() else None


def log_of(model):
    with (model.with_name(model.name + ".training") / "log.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def test_killed_at_random_moments_it_goes_on_bit_for_bit(whole, tmp_path):
    data, uninterrupted = whole
    rng, model = np.random.default_rng(0), tmp_path / "model.safetensors"
    work = tmp_path / "model.safetensors.training"
    for _ in range(KILLS):
        child = FRESH.Process(target=run, args=(data, model))
        assert kill_after(child, work / NAME, int(rng.integers(1, 4)), float(rng.uniform(0, 0.15)))
        assert int(read_checkpoint(work)[1]["step"]) < RECIPE.num_steps
    assert not model.exists()
    finish(FRESH.Process(target=run, args=(data, model)))
    expected, found = load_file(uninterrupted), load_file(model)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert log_of(model) == log_of(uninterrupted)


def test_two_processes_train_as_one(whole, tmp_path):
    data, alone = whole
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = tmp_path / "model.safetensors"
    children = [FRESH.Process(target=run_rank, args=(data, model, rank, 2, port)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    expected, found = log_of(alone), log_of(model)
    assert [row["step"] for row in found] == [20, 40] == [row["step"] for row in expected]
    for one, two in zip(expected, found, strict=True):
        assert two == pytest.approx(one, rel=1e-3)
    assert expected[0]["training_loss"] != pytest.approx(expected[1]["training_loss"], rel=1e-2)
    assert RECIPE.batch_size % 2 == 0


def test_a_damaged_checkpoint_is_never_read_as_good(tmp_path):
    tensors = {"a": torch.arange(1000.0), "b": torch.tensor(3)}
    write_checkpoint(tmp_path, {**tensors, "b": torch.tensor(2)}, {"step": "2"})
    write_checkpoint(tmp_path, tensors, {"step": "3"})
    path = tmp_path / NAME
    good = path.read_bytes()
    rng = np.random.default_rng(1)
    assert read_checkpoint(tmp_path)[1]["step"] == "3"
    for _ in range(30):
        kind, place = int(rng.integers(3)), int(rng.integers(8, len(good)))
        damaged = {
            0: good[:place],
            1: good[:place] + bytes([good[place] ^ (1 << int(rng.integers(8)))]) + good[place + 1 :],
            2: good[:place] + bytes(len(good) - place),
        }[kind]
        path.write_bytes(damaged)
        found, metadata = read_checkpoint(tmp_path)
        # A flipped bit in the padding of the header may leave all contents as they were.
        newest = metadata["step"] == "3"
        assert newest or metadata["step"] == "2"
        assert newest >= (damaged == good)
        assert torch.equal(found["a"], tensors["a"])
        assert found["b"] == (3 if newest else 2)
    path.write_bytes(good[:100])
    (tmp_path / PREVIOUS).write_bytes(good[:50])
    with pytest.raises(CheckpointError, match="remove it to start again"):
        read_checkpoint(tmp_path)
