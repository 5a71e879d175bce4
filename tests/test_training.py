"""Training: the batch is a function of the step, resuming equals going on, checkpoints are checked."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from sirf_diffusion.models import ScoreModel
from sirf_diffusion.models.networks import NetworkConfig
from sirf_diffusion.simulation.subjects import FIRST_HELD_OUT_SUBJECT
from sirf_diffusion.training import RECIPES, Recipe, train, trainer
from sirf_diffusion.training.data.phantom_data import PhantomOptions
from sirf_diffusion.training.dataset import SIMULATION_VERSION, SliceSampler, build_dataset
from sirf_diffusion.training.evaluation.validation import ValidationSet
from sirf_diffusion.training.trainer import CheckpointError

TINY = Recipe(
    name="tiny", tracer="none", subjects=(0, 1), validation_subjects=(2,), contrasts=1,
    architecture=NetworkConfig(channels=(8, 8), attention_levels=(False, False), num_head_channels=8, patch_size=2),
    crops=(16, 24), batch_size=2, cycles=(6,), warmup_steps=2,
)  # fmt: skip


def volume(seed: int) -> np.ndarray:
    """A blob that is different along each axis."""
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, 32)] * 3, indexing="ij")
    return (1.5 * np.exp(-3 * (z**2 + (y - 0.1 * seed) ** 2 + 2 * (x - 0.2) ** 2))).astype(np.float16)


@pytest.fixture
def work(tmp_path):
    """A work folder whose training data are there already."""
    for name, subjects in (("training", TINY.subjects), ("validation", TINY.validation_subjects)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file.attrs["simulation_version"] = SIMULATION_VERSION
            file["subjects"] = np.asarray(subjects)
            file["done"] = np.ones(len(subjects), bool)
            file["activity"] = np.stack([volume(s)[None] for s in subjects])
    return tmp_path


def test_batch_depends_on_step_only():
    volumes = torch.from_numpy(np.stack([volume(0), volume(1)]))
    first, second = SliceSampler(volumes, (16, 24), 0), SliceSampler(volumes, (16, 24), 0)
    images, planes = first.batch(5, 4)
    first.batch(6, 4)
    again, same_planes = second.batch(5, 4)
    assert torch.equal(images, again)
    assert torch.equal(planes, same_planes)
    assert images.shape[0] == 4
    assert images.shape[2] in (16, 24)
    assert not torch.equal(images, first.batch(6, 4)[0][:, :, : images.shape[2], : images.shape[3]])


def test_resumed_training_equals_uninterrupted(work, tmp_path_factory):
    whole = train(TINY, work / "a.safetensors", work_dir=work, resume=False)
    other = tmp_path_factory.mktemp("interrupted")
    for name in ("training.h5", "validation.h5"):
        (other / name).write_bytes((work / name).read_bytes())
    train(TINY, other / "b.safetensors", work_dir=other, max_steps=3)
    resumed = train(TINY, other / "b.safetensors", work_dir=other)
    from safetensors.torch import load_file

    a, b = load_file(whole), load_file(resumed)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    untrained = trainer.build_network(TINY.architecture, seed=TINY.seed).state_dict()
    assert any(not torch.equal(a[name].float(), untrained[name]) for name in a)


def test_checkpoint_of_another_recipe_or_damaged_is_refused(work):
    train(TINY, work / "a.safetensors", work_dir=work, max_steps=1)
    with pytest.raises(CheckpointError, match="another recipe"):
        train(replace(TINY, learning_rate=1e-5), work / "a.safetensors", work_dir=work)
    checkpoint = work / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        train(TINY, work / "a.safetensors", work_dir=work)


def test_dataset_of_other_subjects_is_refused(work):
    with pytest.raises(ValueError, match="other training data"):
        build_dataset(work / "training.h5", (5, 6), 1)


def test_unknown_recipe_names_the_known(tmp_path):
    with pytest.raises(ValueError, match="brain-fdg"):
        train("brain-xyz", tmp_path / "a.safetensors")


def test_recipes_leave_the_held_out_subjects_alone():
    for recipe in RECIPES.values():
        made = recipe.phantoms
        seeds = {*recipe.subjects, *(() if made is None else range(made.first, made.first + made.subjects))}
        assert seeds
        assert max(seeds | set(recipe.validation_subjects)) < FIRST_HELD_OUT_SUBJECT
        assert not set(recipe.subjects) & set(recipe.validation_subjects)


def test_a_recipe_simulates_what_it_needs_and_starts_where_it_says(tmp_path):
    small = PhantomOptions("fdg", "head-parametric", subjects=2, voxel_size=8.0, fractions=(0.5, 0.5, 0.0))
    recipe = replace(RECIPES["brain-fdg"], phantoms=small, crops=(16,), batch_size=2, cycles=(2,), warmup_steps=0)
    model = ScoreModel.load(train(recipe, tmp_path / "m.safetensors", threads=1))
    told = model.metadata["training"]
    assert model.metadata["licence"] == "Apache-2.0"
    assert told["init"]["name"] == "brain"
    assert told["recipe"]["phantoms"]["subjects"] == 2
    other = replace(recipe, phantoms=replace(small, first=7))
    with pytest.raises(ValueError, match="other subjects"):
        train(other, tmp_path / "m.safetensors", threads=1)


def test_a_recipe_that_starts_from_another_recipes_model_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"--recipe fdg-start --out .* --init fdg-start\.safetensors"):
        train("brain-fdg-mr", tmp_path / "m.safetensors")


def test_validation_of_a_perfect_and_a_lazy_denoiser():
    volumes = torch.from_numpy(volume(0)[None])
    validation = ValidationSet.from_volumes(volumes, TINY.schedule)

    class Zero(torch.nn.Module):
        """``v = 0`` means ``u0 = gamma u_t = gamma^2 (u0 + sigma z)``: a known error."""

        def forward(self, images, time, class_labels=None):
            return torch.zeros_like(images)

    errors = validation.network_errors(Zero(), "v")
    clean = torch.cat([s.flatten() for s in validation.slices]).double()
    for sigma, error in errors.items():
        shrink = 1 / (1 + sigma**2)
        expected = ((1 - shrink) ** 2 * clean.square().mean() + (shrink * sigma) ** 2).sqrt()
        assert error == pytest.approx(float(expected), rel=0.03)
    best = validation.gaussian_errors()
    assert all(best[sigma] < sigma for sigma in best)
    assert list(best.values()) == sorted(best.values())
