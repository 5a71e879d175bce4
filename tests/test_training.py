"""Training: recipes, checkpoints, what is checked before the first step, and the validation."""

import errno
import pickle
import shutil
from collections import namedtuple
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from training_file import ball, write_training_file
from training_processes import RECIPE

from sirf_diffusion.models import ScoreModel
from sirf_diffusion.simulation import FIRST_HELD_OUT_SUBJECT
from sirf_diffusion.training import RECIPES, RunOptions, checkpoint, loop, train
from sirf_diffusion.training.checkpoint import CheckpointError
from sirf_diffusion.training.data.phantom_data import PhantomOptions
from sirf_diffusion.training.evaluation.validation import ValidationSet

pytestmark = pytest.mark.usefixtures("undrawn")


def test_checkpoint_of_another_recipe_or_damaged_is_refused(data, tmp_path):
    out, checkpoint = tmp_path / "a.safetensors", tmp_path / "checkpoint.safetensors"
    train(RECIPE, out, data=data, work_dir=tmp_path, max_steps=1)
    with pytest.raises(CheckpointError, match=r"another training: recipe\.learning_rate differ"):
        train(replace(RECIPE, learning_rate=1e-5), out, data=data, work_dir=tmp_path)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        train(RECIPE, out, data=data, work_dir=tmp_path)


def test_recipes_leave_the_held_out_subjects_alone():
    for recipe in RECIPES.values():
        assert recipe.phantoms.first + recipe.phantoms.subjects <= FIRST_HELD_OUT_SUBJECT


def test_a_recipe_simulates_what_it_needs_and_starts_where_it_says(tmp_path, monkeypatch):
    def here(number, function, jobs):  # in a process of its own each would load PyTorch
        return [(key, pickle.loads(pickle.dumps(function))(job)) for key, job in jobs.items()]

    monkeypatch.setattr("sirf_diffusion.training.data.phantom_data.in_processes", here)
    small = PhantomOptions("fdg", "head-parametric", subjects=2, voxel_size=8.0, fractions=(1.0, 0.0, 0.0))
    recipe = replace(RECIPES["brain-fdg"], phantoms=small, crops=(16,), batch_size=2, cycles=(2,), warmup_steps=0)
    model = ScoreModel.load(train(recipe, tmp_path / "m.safetensors", threads=1))
    told = model.metadata["training"]
    assert model.metadata["licence"] == "Apache-2.0"
    assert told["init"]["name"] == "brain"
    assert told["recipe"]["phantoms"]["subjects"] == 2
    other = replace(recipe, phantoms=replace(small, first=7))
    with pytest.raises(ValueError, match="other subjects"):
        train(other, tmp_path / "m.safetensors", threads=1)


@pytest.mark.parametrize(("name", "words"), [
    ("brain-xyz", "brain-fdg"), ("brain-fdg-mr", r"--recipe fdg-start --out .* --init fdg-start\.safetensors"),
])  # fmt: skip
def test_a_recipe_that_cannot_run_says_what_to_do(tmp_path, name, words):
    with pytest.raises(ValueError, match=words):
        train(name, tmp_path / "m.safetensors")


@pytest.fixture
def no_step(monkeypatch):
    """A test with this fixture fails if a training gets to its first step."""
    monkeypatch.setattr(loop.TrainingLoop, "advance", lambda *_: pytest.fail("trained"))


@pytest.mark.usefixtures("no_step")
@pytest.mark.parametrize(("place", "value", "words"), [
    ("/@voxel_size", (0.0, 4.0, 4.0), "voxels of"), ("/@voxel_size", (4.0, np.nan, 4.0), "voxels of"),
    ("/@voxel_size", (4.0, -4.0, 4.0), "voxels of"), ("/@voxel_size", 4.0, "voxels of"),
    ("/@settings", "[", "damaged"),
    ("/volumes/00001@intensity_scale", np.inf, "intensity scale inf"), ("/volumes/00001@split", 3, "split '3'"),
    ("/volumes/00001@occupancy_y", np.ones(7), "do not fit"), ("/volumes/00000/emission", np.nan, "not finite"),
    ("/volumes/00001/emission", -1.0, "negative"), ("/volumes/00000/anatomy", np.inf, "not finite"),
])  # fmt: skip
def test_a_file_that_holds_nonsense_is_refused_before_the_first_step(tmp_path, place, value, words):
    path = write_training_file(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        where, _, name = place.partition("@")
        if name:
            file[where].attrs[name] = value
        else:
            file[where][3, 4, 5] = value
    with pytest.raises(ValueError, match=words) as error:
        train(RECIPE, tmp_path / "m.safetensors", data=path)
    assert str(path) in str(error.value)


def enlarged(volume, path):
    del volume["mask"]
    volume.create_dataset("mask", (3000, 3000, 3000), "u1", chunks=(1, 3000, 3000))


def elsewhere(volume, path):
    del volume["emission"]
    with h5py.File(path.with_name("other.h5"), "w") as other:
        other["x"] = np.ones((32, 32, 32), np.float16)
    volume["emission"] = h5py.ExternalLink("other.h5", "x")


def raw(volume, path):
    del volume["mask"]
    path.with_name("raw").write_bytes(bytes(32**3))
    volume.create_dataset("mask", (32, 32, 32), "u1", external=[(str(path.with_name("raw")), 0, 32**3)])


def missing(volume, path):
    del volume.attrs["notes"]


def list_of_numbers(volume, path):
    del volume.attrs["split"]
    values = np.empty(1, object)
    values[0] = np.arange(3)
    volume.attrs.create("split", values, dtype=h5py.vlen_dtype(np.int64))


@pytest.mark.parametrize(("change", "words"), [
    (list_of_numbers, "neither numbers nor text"),
    (enlarged, "mask"), (elsewhere, "as a link"), (raw, "in the file itself"), (missing, "notes"),
])  # fmt: skip
def test_a_hostile_file_is_one_documented_error(tmp_path, change, words):
    from sirf_diffusion.training.data.volume_file import VolumeFile, VolumeFileError

    path = write_training_file(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        change(file["volumes/00000"], path)
    with pytest.raises(VolumeFileError, match=words):
        VolumeFile(path)


def test_a_text_that_would_be_longer_than_its_file_is_found(tmp_path):
    from sirf_diffusion.training.data.hdf5_damage import longest_text
    from sirf_diffusion.training.data.volume_file import FORMAT, VolumeFile, VolumeFileError

    path = write_training_file(tmp_path / "a.h5")
    with h5py.File(path) as file, path.open("rb") as raw:
        for owner in (file, *file["volumes"].values()):
            texts = [value for value in owner.attrs.values() if isinstance(value, str)]
            assert longest_text(raw, owner) == max(len(text.encode()) for text in texts)
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL\x01").to_bytes(8, "little")
    place = content.index(len(FORMAT).to_bytes(4, "little") + heap)
    content[place : place + 4] = (2**27).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(VolumeFileError, match="longer than the file"):
        VolumeFile(path)


def test_a_heap_that_hdf5_would_read_for_ever_is_found(tmp_path):
    from sirf_diffusion.training.data.volume_file import VolumeFile, VolumeFileError

    path = write_training_file(tmp_path / "a.h5")
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL\x01")
    content[heap + 16 : heap + 32] = bytes(16)
    path.write_bytes(content)
    with pytest.raises(VolumeFileError, match="heap without end"):
        VolumeFile(path)


@pytest.mark.usefixtures("no_step")
@pytest.mark.parametrize(("values", "words"), [
    ({"threads": 0}, "threads must be an integer of at least 1"), ({"max_steps": -1}, "max_steps"),
    ({"out": "model.pt"}, "ends in"),
])  # fmt: skip
def test_settings_are_checked_first(data, tmp_path, values, words):
    values = dict(values)
    with pytest.raises(ValueError, match=words):
        train(RECIPE, tmp_path / values.pop("out", "m.safetensors"), data=data, **values)


@pytest.mark.parametrize("values", [
    {"seed": 10**22}, {"learning_rate": float("nan")}, {"log_sigma_sd": float("inf")}, {"batch_size": 0},
])  # fmt: skip
def test_numbers_out_of_range_are_named(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        replace(RECIPE, **values)
    with pytest.raises(ValueError, match="checkpoint_every"):
        RunOptions(checkpoint_every=0)


@pytest.mark.usefixtures("no_step")
def test_a_disk_with_too_little_space_is_found_before_training(data, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(OSError, match="MB are free") as error:
        train(RECIPE, tmp_path / "m.safetensors", data=data)
    assert error.value.errno == errno.ENOSPC


def test_a_full_disk_keeps_the_checkpoint_and_says_so(data, tmp_path, monkeypatch):
    out = tmp_path / "m.safetensors"
    train(RECIPE, out, data=data, max_steps=2)
    kept = (tmp_path / "m.safetensors.training" / "checkpoint.safetensors").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    with pytest.raises(OSError, match=r"No space left .*; the checkpoint before is kept: free some space"):
        train(RECIPE, out, data=data, max_steps=4)
    monkeypatch.undo()
    assert (tmp_path / "m.safetensors.training" / "checkpoint.safetensors").read_bytes() == kept
    train(RECIPE, out, data=data, max_steps=4)


def test_validation_of_a_perfect_and_a_lazy_denoiser():
    validation = ValidationSet.from_volume(torch.from_numpy(ball(0)), RECIPE)

    class Zero(torch.nn.Module):
        """``v = 0`` means ``u0 = gamma u_t = gamma^2 (u0 + sigma z)``: a known error."""

        def forward(self, images, time, class_labels=None):
            return torch.zeros_like(images)

    errors = validation.network_errors(Zero(), "v")
    clean = torch.cat([s[0].flatten() for s in validation.slices]).double()
    for sigma, error in errors.items():
        shrink = 1 / (1 + sigma**2)
        expected = ((1 - shrink) ** 2 * clean.square().mean() + (shrink * sigma) ** 2).sqrt()
        assert error == pytest.approx(float(expected), rel=0.03)
    best = validation.gaussian_errors()
    assert all(best[sigma] < sigma for sigma in best)
    assert list(best.values()) == sorted(best.values())
