"""A companion of half the resolution: what it is given, when it is asked, and who is told."""

import json
import math

import pytest
import torch
from tiny_model import tiny_model

from sirf_diffusion import reconstruct
from sirf_diffusion.cli import main
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models import ScoreModel, VPSchedule

GEOMETRY = ImageGeometry((1, 32, 24), (2.0, 2.0, 2.0))
VOLUME = ImageGeometry((16, 32, 24), (2.0, 2.0, 2.0))


class Seen(torch.nn.Module):
    """A network that keeps what it is given, and finds the clean image that it was told."""

    def __init__(self, clean: float = 1.0) -> None:
        super().__init__()
        self.clean, self.calls = clean, []

    def forward(self, images, time, class_labels):
        self.calls.append((images, float(time[0])))
        return torch.full_like(images[:, :1], self.clean)


def pair(clean: float = 1.0, multiple: int = 1, inputs: int = 1):
    """A model of 2 mm and its companion of 4 mm, and their networks."""
    fine, coarse = Seen(), Seen(clean)
    model = ScoreModel(fine, VPSchedule(), "x0", multiple=2, in_channels=inputs)
    of_twice = {"voxel_size": (4.0, 4.0, 4.0), "multiple": multiple, "in_channels": inputs}
    model.companion = ScoreModel(coarse, VPSchedule(), "x0", **of_twice)
    return model, fine, coarse


@pytest.mark.parametrize(("geometry", "voxels"), [(GEOMETRY, 4), (VOLUME, 8)])
def test_it_is_given_means_at_their_own_noise_level(geometry, voxels, generator):
    model, fine, coarse = pair()
    bound = model.for_data(geometry, intensity_scale=1.0, sampling=True, coarse_above=1.0)
    sigma = 4.0
    t = bound.schedule.t_of_sigma(sigma)
    gamma, nu = bound.schedule.gamma(t), bound.schedule.nu(t)
    noise = torch.randn((3, *geometry.shape), generator=generator)
    found, eps = bound.predict(gamma * torch.full(geometry.shape, 2.0) + nu * noise, t, 0)
    assert not fine.calls
    ((images, told),) = coarse.calls
    there = VPSchedule().t_of_sigma(sigma / voxels**0.5)
    assert told == pytest.approx(250 * math.log(sigma / voxels**0.5), rel=1e-5)
    size = (VPSchedule().gamma(there) ** 2 + VPSchedule().nu(there) ** 2) ** 0.5
    assert float(images.mean()) * size == pytest.approx(2.0 * VPSchedule().gamma(there), abs=0.1)
    assert float(images.std()) * size == pytest.approx(VPSchedule().nu(there), rel=0.1)
    torch.testing.assert_close(found, torch.ones_like(found))
    torch.testing.assert_close(gamma * found + nu * eps, gamma * torch.full_like(found, 2.0) + nu * noise)
    assert bound.counter.evaluations == 3


def test_it_is_asked_above_its_noise_level_alone():
    model, fine, coarse = pair()
    bound = model.for_data(GEOMETRY, intensity_scale=1.0, coarse_above=1.0)
    for sigma in (0.5, 0.99, 1.01, 3.0):
        bound.predict(torch.zeros(GEOMETRY.shape), bound.schedule.t_of_sigma(sigma))
    assert (len(fine.calls), len(coarse.calls)) == (2, 2)
    model.for_data(GEOMETRY, intensity_scale=1.0).predict(torch.zeros(GEOMETRY.shape), bound.schedule.t_max)
    bound.on(GEOMETRY, 1.0).predict(torch.zeros(GEOMETRY.shape), bound.schedule.t_max)
    assert (len(fine.calls), len(coarse.calls)) == (4, 2)


def test_a_ramp_of_means_is_interpolated_between_their_centres():
    model, _, coarse = pair()
    coarse.forward = lambda images, time, class_labels: torch.arange(images.shape[-1]) * torch.ones_like(images[:, :1])
    bound = model.for_data(GEOMETRY, intensity_scale=1.0, coarse_above=1.0)
    found, _ = bound.predict(torch.zeros(GEOMETRY.shape), bound.schedule.t_max)
    torch.testing.assert_close(found[0, 5, 5:-5], (torch.arange(5, 19) - 0.5) / 2)


def test_means_of_the_finer_image_are_those_of_the_coarse_one():
    model, _, coarse = pair()
    peak = torch.zeros(16, 12)
    peak[7, 5] = 1.0
    coarse.forward = lambda images, time, class_labels: peak.expand_as(images)
    bound = model.for_data(GEOMETRY, intensity_scale=1.0, coarse_above=1.0)
    found, _ = bound.predict(torch.zeros(GEOMETRY.shape), bound.schedule.t_max)
    assert float(torch.nn.functional.avg_pool2d(found, 2)[0, 7, 5]) > 0.85  # 0.56 by linear interpolation alone


def test_it_sees_multiples_of_its_own_and_the_grid_stays_small(generator):
    model, _, coarse = pair(multiple=8)
    bound = model.for_data(GEOMETRY, intensity_scale=1.0, coarse_above=1.0)
    assert bound.latent_shape == GEOMETRY.shape
    found, _ = bound.predict(torch.randn((2, *GEOMETRY.shape), generator=generator), bound.schedule.t_max)
    ((images, _),) = coarse.calls
    assert images.shape == (2, 1, 16, 16)
    torch.testing.assert_close(images[..., 12:], images[..., 7:11].flip(-1))
    assert found.shape == (2, *GEOMETRY.shape)


def test_it_is_shown_means_of_the_anatomical_image(generator, caplog):
    model, fine, coarse = pair(multiple=8, inputs=2)
    anatomical = 5 * torch.rand(GEOMETRY.shape, generator=generator)
    of = {"intensity_scale": 1.0, "anatomical": anatomical, "guidance": 1.0, "coarse_above": 1.0}
    bound = model.for_data(GEOMETRY, **of)
    bound.predict(torch.zeros(GEOMETRY.shape), bound.schedule.t_max)
    (with_it, _), (without, _) = coarse.calls
    means = torch.nn.functional.avg_pool2d(bound.anatomy, 2)
    torch.testing.assert_close(with_it[0, 1, :, :12], means[0])
    assert float(means.mean()) == pytest.approx(1.0, abs=0.2)
    assert not without[:, 1].any()
    assert not fine.calls
    unguided = model.for_data(GEOMETRY, intensity_scale=1.0, guidance=-1.0, coarse_above=1.0)
    unguided.predict(torch.zeros(GEOMETRY.shape), bound.schedule.t_max)
    assert len(coarse.calls) == 3
    # It shows what is finer than the companion's voxels, whatever the noise.
    assert (bound.coarse.above, unguided.coarse.above) == (1.4, 1.0)
    assert "unconditionally" not in caplog.text


@pytest.mark.parametrize("there", [{"voxel_size": (3.0, 3.0, 3.0)}, {"voxel_size": (4.0,) * 3, "in_channels": 2}, None])
def test_without_one_that_suits_the_model_is_asked(there, caplog):
    model, fine, coarse = pair()
    model.companion = ScoreModel(coarse, VPSchedule(), "x0", **there) if there else None
    bound = model.for_data(GEOMETRY, intensity_scale=1.0, coarse_above=1.0)
    bound.predict(torch.zeros(GEOMETRY.shape), bound.schedule.t_max)
    assert (len(fine.calls), len(coarse.calls)) == (1, 0)
    assert ("companion" in caplog.text) == bool(there)


@pytest.fixture
def files(tmp_path):
    """A model and its companion as files."""
    model, other = tiny_model(), tiny_model(seed=1)
    model.voxel_size, other.voxel_size = (4.0, 4.0, 4.0), (8.0, 8.0, 8.0)
    model.save(tmp_path / "own.safetensors")
    (tmp_path / "coarse").mkdir()
    other.save(tmp_path / "coarse" / "own.safetensors")
    return tmp_path


def test_a_run_takes_the_file_beside_the_models_and_the_record_tells(small_scan, files, capsys):
    records = {}
    for name, more in {
        "with": (),
        "without": ("--set", "coarse_above=None"),
        "adapted": ("--adapt", "steerable", "--speed", "balanced"),
    }.items():
        words = ["recon", *small_scan.options, "--model", str(files / "own.safetensors"), "--out", str(files / name)]
        assert main([*words, "--set", "num_steps=3", "--samples", "2", "--device", "cpu", *more]) == 0
        records[name] = json.loads((files / name / "record.json").read_text())["model"]["coarse"]
    assert records["with"] == {"sha256": ScoreModel.load(files / "coarse" / "own.safetensors").hash, "above": 0.5}
    assert records["without"] is records["adapted"] is None
    capsys.readouterr()
    assert main(["models", "show", str(files / "own.safetensors")]) == 0
    assert f'"companion": "{records["with"]["sha256"]}"' in capsys.readouterr().out


def test_a_run_that_goes_on_needs_the_same_one(small_scan, files):
    from sirf_diffusion.study.data import InterfileData

    data = InterfileData(small_scan.prompts_hs, small_scan.multiplicative_hs, small_scan.additive_hs)
    options = {"settings": {"num_steps": 3, "coarse_above": 1.0}, "num_samples": 1, "device": "cpu"}
    kept = files / "state.safetensors"
    model = files / "own.safetensors"
    whole = reconstruct(data, "hqs", model=model, checkpoint=kept, **options).image

    def stop(record):
        if record.step == 2:
            raise KeyboardInterrupt

    kept.unlink(missing_ok=True)
    with pytest.raises(KeyboardInterrupt):
        reconstruct(data, "hqs", model=model, checkpoint=kept, callbacks=[stop], **options)
    torch.testing.assert_close(reconstruct(data, "hqs", model=model, checkpoint=kept, **options).image, whole)
    kept.unlink()
    with pytest.raises(KeyboardInterrupt):
        reconstruct(data, "hqs", model=model, checkpoint=kept, callbacks=[stop], **options)
    (files / "coarse" / "own.safetensors").unlink()
    with pytest.raises(ValueError, match="coarse"):
        reconstruct(data, "hqs", model=model, checkpoint=kept, **options)
