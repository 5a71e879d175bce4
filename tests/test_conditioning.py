"""Models conditioned on anatomy: what the network is shown, guidance, and what is refused."""

import logging
import math

import pytest
import torch

from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models import ScoreModel, VPSchedule, intensity_scale
from sirf_diffusion.models.schedules import prediction_target

SCHEDULE, SCALE, VARIANCE, SIGMA = VPSchedule(), 50.0, 0.3, 0.4
GEOMETRY = ImageGeometry((2, 10, 12), (3.0, 2.0, 2.0))


class MeanFromAnatomy:
    """The ideal network for independent voxels whose mean is 1 plus the anatomical image; 1 where that is zero."""

    def __init__(self, prediction="eps"):
        self.prediction, self.seen = prediction, []

    def __call__(self, images, times, class_labels):
        assert images.shape[1] == 2
        self.seen.append(images[:, 1].clone())
        t = SCHEDULE.t_of_sigma(float(torch.exp(times[0].double() / 250)))
        gamma, nu = SCHEDULE.gamma(t), SCHEDULE.nu(t)
        u, mean = images[:, :1].double() * math.sqrt(gamma**2 + nu**2), 1 + images[:, 1:].double()
        u0 = mean + gamma * VARIANCE / (gamma**2 * VARIANCE + nu**2) * (u - gamma * mean)
        return prediction_target(self.prediction, u0, (u - gamma * u0) / nu, gamma, nu).to(images)


def random_image(seed=0, *leading):
    return torch.rand(*leading, *GEOMETRY.shape, generator=torch.Generator().manual_seed(seed))


def anatomy():
    image = 300 * random_image(7)
    image[:, :3] = 0
    return image


def make(prediction="eps"):
    return ScoreModel(MeanFromAnatomy(prediction), SCHEDULE, prediction, (2.0, 2.0, 2.0), multiple=4, in_channels=2)


def expected(x, mean):
    return SCALE * mean + VARIANCE / (VARIANCE + SIGMA**2) * (x - SCALE * mean)


@pytest.mark.parametrize("planes", ["transverse", "three"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score"])
def test_the_network_sees_the_scaled_anatomy_voxel_by_voxel(prediction, planes):
    model = make(prediction).on(ImageGeometry(GEOMETRY.shape, (2.0,) * 3), SCALE, planes, anatomical=anatomy())
    x = SCALE * random_image(0, 3)
    mean = 1 + anatomy() / intensity_scale(anatomy(), ImageGeometry(GEOMETRY.shape, (2.0,) * 3))
    torch.testing.assert_close(model.denoise_at(x, SIGMA), expected(x, mean), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("change", [lambda a: a - 1000 * (a == 0), lambda a: a / 1000], ids=["air below 0", "unit"])
def test_neither_air_nor_the_unit_of_the_anatomy_matters(change):
    x = SCALE * random_image()
    results = [make().on(GEOMETRY, SCALE, anatomical=a).denoise_at(x, SIGMA) for a in (anatomy(), change(anatomy()))]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score"])
@pytest.mark.parametrize("guidance", [-1.0, -0.5, 0.0, 0.5])
def test_guidance_mixes_the_scores_with_and_without_anatomy(guidance, prediction, caplog):
    model, x = make(prediction), SCALE * random_image()
    t = SCHEDULE.t_of_sigma(SIGMA)
    with_anatomy = model.on(GEOMETRY, SCALE, anatomical=anatomy()).score(x, t)
    without = model.on(GEOMETRY, SCALE).score(x, t)
    guided = model.on(GEOMETRY, SCALE, anatomical=anatomy(), guidance=guidance)
    scale = float(with_anatomy.abs().max())
    torch.testing.assert_close(
        guided.score(x, t), (1 + guidance) * with_anatomy - guidance * without, rtol=1e-4, atol=1e-5 * scale
    )
    assert guided.counter.evaluations == (1 if guidance in (-1, 0) else 2)


def test_without_an_anatomy_it_runs_on_zeros_and_says_so_once(caplog):
    model = make()
    with caplog.at_level(logging.WARNING, "sirf_diffusion"):
        bound = model.on(GEOMETRY, SCALE)
        x = SCALE * random_image()
        bound.denoise_at(x, SIGMA)
        torch.testing.assert_close(bound.denoise_at(x, SIGMA), expected(x, torch.ones_like(x)), rtol=1e-4, atol=1e-3)
    assert [r.getMessage().count("unconditionally") for r in caplog.records] == [1]
    assert not any(seen.any() for seen in model.network.seen)
    caplog.clear()
    model.on(GEOMETRY, SCALE, guidance=-1)
    assert not caplog.records


def test_the_anatomy_goes_through_the_same_grid_adapter():
    fine = ImageGeometry((1, 20, 24), (3.0, 1.0, 1.0))
    image = torch.rand(fine.shape, generator=torch.Generator().manual_seed(1)) + 0.5
    model = make()
    bound = model.on(fine, 1.0, anatomical=image)
    bound.denoise_at(torch.ones(fine.shape), SIGMA)
    shown = model.network.seen[-1]
    torch.testing.assert_close(shown, bound.to_latent(image / intensity_scale(image, fine)))
    assert shown.shape[-2:] != fine.shape[-2:]


def test_binding_anew_forgets_the_anatomy_and_leaves_the_first_model_alone():
    model = make()
    first = model.on(GEOMETRY, SCALE, anatomical=anatomy())
    x = SCALE * random_image()
    before = first.denoise_at(x, SIGMA)
    second = first.on(GEOMETRY, SCALE, guidance=-1)
    assert not torch.allclose(second.denoise_at(x, SIGMA), before)
    torch.testing.assert_close(first.denoise_at(x, SIGMA), before, rtol=0, atol=0)


def test_what_makes_no_sense_is_refused():
    plain = ScoreModel(lambda images, times, class_labels: images, SCHEDULE, multiple=4)
    with pytest.raises(ValueError, match="without anatomical images"):
        plain.on(GEOMETRY, SCALE, anatomical=anatomy())
    with pytest.raises(ValueError, match="guidance"):
        plain.on(GEOMETRY, SCALE, guidance=0.5)
    with pytest.raises(ValueError, match="guidance"):
        make().on(GEOMETRY, SCALE, anatomical=anatomy(), guidance=-1.5)
    with pytest.raises(ValueError, match="resample"):
        make().on(GEOMETRY, SCALE, anatomical=torch.ones(2, 3, 4))
    with pytest.raises(ValueError, match="smoothed maximum"):
        make().on(GEOMETRY, SCALE, anatomical=torch.zeros(GEOMETRY.shape))
    with pytest.raises(ValueError, match="3 input images"):
        ScoreModel(lambda *_, **__: None, SCHEDULE, in_channels=3)


def test_a_run_is_not_resumed_with_another_anatomical_image(tmp_path):
    from toy_model import StopAt
    from toy_objective import make_toy

    from sirf_diffusion.reconstructors import DDSReconstructor
    from sirf_diffusion.reconstructors.checkpoint import CheckpointCallback

    objective, _ = make_toy((1, 16, 16), num_bins=400)

    def dds(image, **kwargs):
        model = make().on(objective.geometry, SCALE, anatomical=image)
        return DDSReconstructor(objective, model, num_steps=4, **kwargs)

    image = torch.rand((1, 16, 16), generator=torch.Generator().manual_seed(0)) + 0.5
    path = tmp_path / "checkpoint.safetensors"
    first = dds(image, callbacks=[CheckpointCallback(path), StopAt(2)]).process()
    assert first.record["model"]["conditioning"]["guidance"] == 0
    dds(image, resume_from=path).process()
    with pytest.raises(ValueError, match="conditioning"):
        dds(image.flip(-1), resume_from=path).process()
