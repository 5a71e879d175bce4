"""Supervised training for volumes: what the network learns from is what it is shown in a reconstruction."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_supervised import VOLUME_RECIPE, files, loop_of  # noqa: F401

from sirf_diffusion.engines.em import em_update
from sirf_diffusion.engines.embedded.acquisition_model import AcquisitionModel
from sirf_diffusion.engines.embedded.poisson import PoissonObjective
from sirf_diffusion.interop.stir.callbacks import make_processor
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.models.h_transform import HTransform, HTransformConfig, correction_size
from sirf_diffusion.models.networks import build_network
from sirf_diffusion.reconstructors.diffusion.chain import Chain
from sirf_diffusion.reconstructors.diffusion.deft import DEFTReconstructor
from sirf_diffusion.training.data.augmentation import Augmentation
from sirf_diffusion.training.data.scan_stream import ScanStream
from sirf_diffusion.training.data.volume_file import VolumeFile
from sirf_diffusion.training.supervised import _UNCHANGED, SLICES, VOLUMES
from sirf_diffusion.training.views import AIR, Window, scanned

RINGS = ["ring3", "ring4"]


def scan(loop, view):
    """One, and the objective that a reconstruction makes of it."""
    scans = loop.simulator.scans(*scanned([view]), [np.random.default_rng(1)], 2e4)
    model = AcquisitionModel(
        loop.simulator.projector, multiplicative_factors=scans.factors[0], background_term=scans.background[0]
    )
    return scans, PoissonObjective(model, scans.prompts[0], 1)


def saved(folder, loop, trained=True):
    """An h-transform for the loop's score model, as a file."""
    network = build_network(VOLUME_RECIPE.architecture, seed=1).requires_grad_(False).eval()
    if trained:
        torch.nn.init.normal_(network.out[2].conv.weight, 0, 0.1, torch.Generator().manual_seed(0))
    config = HTransformConfig(VOLUME_RECIPE.architecture, "base", loop.base.hash, (1e-6, 1e6), 5, num_updates=7)
    path = folder / f"h{int(trained)}.safetensors"
    HTransform(network, loop.base, config).save(path, "float32")
    return path


@pytest.mark.parametrize("rings", RINGS)
def test_scans_have_the_counts_of_all_planes_and_the_increment_of_the_objective(files, rings):  # noqa: F811
    loop = loop_of(files, recipe=VOLUME_RECIPE, rings=rings)
    view = loop._view(0)
    scans, objective = scan(loop, view)
    assert float(scans.prompts.sum()) == pytest.approx(2e4 * len(view.truth), rel=0.02)
    x = (loop.base.to_image(view.v).clamp(min=0) + 1e-3) * (objective.sensitivity() > 0)
    torch.testing.assert_close(x + scans.increment(x[None])[0], em_update(objective, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("number", "step"), [(9, 0), (10, 1), (11, 2), (16, 4)])  # the last level: all orientations
@pytest.mark.parametrize("rings", RINGS)
def test_what_is_shown_is_what_a_reconstruction_shows(files, tmp_path, monkeypatch, rings, number, step):  # noqa: F811
    whole = Window((32, 32), (32, 32), ((0, 0),))
    monkeypatch.setattr(Window, "around", lambda images, multiple: whole)
    loop = loop_of(files, recipe=VOLUME_RECIPE, rings=rings)
    view = loop._view(number)
    scans, objective = scan(loop, view)
    example, shown = loop._shown([view], scans), []
    made = DEFTReconstructor(objective, loop.base, h_transform=str(saved(tmp_path, loop)))
    made.set_up()
    made.times = [float(view.t)] * 6

    def network(images, times, class_labels):
        shown.append((images.clone(), times.clone()))
        return torch.zeros_like(images[:, :1])

    made.h.network = network
    chain = Chain.start(view.u, 0.0, 1, 0)
    chain.u, chain.step = view.u[None], step
    found = made.denoise(chain, loop.base)
    images, times = (torch.cat(part) for part in zip(*shown, strict=True))
    torch.testing.assert_close(times, example.time)
    torch.testing.assert_close(images, example.images, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.u0[0], view.v.clamp(min=0), rtol=1e-4, atol=1e-5)


def test_where_subsets_are_fixed_as_many_updates_are_made(files, tmp_path, monkeypatch):  # noqa: F811
    loop = loop_of(files, recipe=VOLUME_RECIPE, rings="ring3")
    view = loop._view(0)
    _, objective = scan(loop, view)
    monkeypatch.setattr(PoissonObjective, "with_subsets", lambda self, number: self)
    made = DEFTReconstructor(objective, loop.base, h_transform=str(saved(tmp_path, loop)))
    made.set_up()
    before = made.consistency.admissible(loop.base.to_image(view.v)[None])
    after, found = before, made._increments(before)
    for k in range(1, 15):
        after = em_update(objective, after)
        if k in (1, 7, 14):
            torch.testing.assert_close(before + found.pop(0), after, rtol=1e-4, atol=1e-5)
    assert not found


def test_the_filter_of_parameter_files_refuses_it(files, tmp_path):  # noqa: F811
    loop = loop_of(files, recipe=VOLUME_RECIPE, rings="ring3")
    keys = {
        "model filename": str(files / "base.safetensors"), "h-transform filename": str(saved(tmp_path, loop)),
        "sensitivity filename": "s.hv",
    }  # fmt: skip
    with pytest.raises(ValueError, match="wants to see ordered subsets, which no filter sees"):
        make_processor("Diffusion Sampler", keys, {})


def test_untrained_it_is_the_score_model_to_the_bit(files, tmp_path):  # noqa: F811
    loop = loop_of(files, recipe=VOLUME_RECIPE, rings="ring3")
    view, base = loop._view(0), loop.base
    counts = torch.ones(base.latent_shape)
    for trained in (False, True):
        h = HTransform.load(saved(tmp_path, loop, trained), base)
        found = h.estimate(base, view.u, view.v, float(view.t), [0.1 * view.v] * 3, counts)
        assert torch.equal(found, view.v) is not trained


def test_a_step_has_active_slices(files):  # noqa: F811
    loop = loop_of(files, recipe=VOLUME_RECIPE, rings="ring3")
    for step in range(4):
        example, view = loop._example(step), loop._view(step)
        assert len(example.images) == VOLUME_RECIPE.batch_size
        sigma = loop.recipe.schedule.sigma(view.t)
        clean = example.images[:, 1:2] - correction_size(sigma) * example.target
        assert float(clean.flatten(1).amax(1).min()) > AIR
        assert float(clean.min()) > -1e-4
    whole, parts = loop._example(1), []
    for rank in range(2):
        loop.peers = SimpleNamespace(rank=rank, world=2, first=True)
        parts.append(loop._example(1))
    assert torch.equal(whole.images[::2], parts[0].images)
    assert torch.equal(whole.target[1::2], parts[1].target)


@pytest.mark.parametrize(("depth", "spacing"), [(5, 4.1), (9, 2.0), (40, 4.0)])
def test_stacks_are_planes_of_a_volume(files, depth, spacing):  # noqa: F811
    file = VolumeFile(files / "train.h5", "train")
    stream = ScanStream(file, (32,), 0, augmentation=_UNCHANGED, depth=depth, spacing=spacing)
    volumes = [file.volume(k).float() for k in range(len(file))]
    for step in range(3):
        stack = stream.batch(step, 1)[0][0, 0]
        assert stack.shape == (depth, 32, 32)
        if depth == 40:
            assert any(torch.allclose(stack[4:36], v, atol=1e-3) for v in volumes)
            assert float(stack[:4].max()) == float(stack[36:].max()) == 0
        elif spacing > 4:
            assert any(torch.allclose(stack, v[k : k + depth], atol=1e-3) for v in volumes for k in range(28))
        else:  # between two planes, and every other of the volume's
            torch.testing.assert_close(stack[1:-1:2], (stack[:-1:2] + stack[2::2]) / 2, atol=0.05, rtol=0.05)
    moved = replace(stream, augmentation=Augmentation()).batch(0, 1)[0]
    assert bool(torch.isfinite(moved).all())


def test_pixels_of_another_size_are_refused(files, tmp_path):  # noqa: F811
    base = ScoreModel.load(files / "base.safetensors")
    base.voxel_size = (4.0, 3.0, 3.0)
    base.save(tmp_path / "base.safetensors")
    shutil.copy(files / "ring3.hs", tmp_path)
    shutil.copy(files / "train.h5", tmp_path)
    with pytest.raises(ValueError, match="pixels of 4 x 4 mm, the score model was trained with 3 x 3 mm"):
        loop_of(tmp_path, recipe=VOLUME_RECIPE, rings="ring3")


def test_it_starts_from_another(files, tmp_path):  # noqa: F811
    """Of a network of slices, what it was not shown has no say at first."""
    recipe = replace(VOLUME_RECIPE, architecture=replace(VOLUME_RECIPE.architecture, in_channels=5))
    network = build_network(recipe.architecture, seed=1).eval()
    torch.nn.init.normal_(network.out[2].conv.weight, 0, 0.1, torch.Generator().manual_seed(0))
    loop = loop_of(files, recipe=VOLUME_RECIPE, rings="ring3")
    config = HTransformConfig(recipe.architecture, "base", loop.base.hash, (1e-6, 1e6))
    HTransform(network, loop.base, config).save(tmp_path / "h.safetensors", "float32")
    started = loop_of(files, recipe=replace(VOLUMES, crops=(32,)), rings="ring3", start=tmp_path / "h.safetensors")
    assert started.recipe.architecture == VOLUME_RECIPE.architecture
    assert "start" in started.supervision.provenance()
    other = replace(VOLUMES, crops=(32,), architecture=replace(VOLUMES.architecture, channels=(16, 32, 32)))
    config = replace(config, architecture=VOLUME_RECIPE.architecture, num_updates=7)
    HTransform(build_network(config.architecture), loop.base, config).save(tmp_path / "volumes.safetensors")
    for recipe, rings, name in ((other, "ring3", "h"), (replace(SLICES, crops=(32,)), "ring1", "volumes")):
        with pytest.raises(ValueError, match="cannot start this network"):
            loop_of(files, recipe=recipe, rings=rings, start=tmp_path / f"{name}.safetensors")
    images, times = torch.randn(3, 18, 16, 16), torch.full((3,), 100.0)
    with torch.no_grad():
        expected = network(images[:, :5], times)
        found = started.state.network.eval()(images, times)
    torch.testing.assert_close(found, expected)
