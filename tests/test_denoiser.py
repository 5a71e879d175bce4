"""Enhancement of a finished image."""

import logging

import pytest
import torch
from toy_denoisers import gaussian_score_model

from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models import ScoreModel, VPSchedule
from sirf_diffusion.models.denoiser import Denoiser, estimate_noise_level

GRID = ImageGeometry((1, 16, 16), (2.0, 2.0, 2.0))
VARIANCE = 0.2


def gaussian_model():
    return gaussian_score_model(VARIANCE, voxel_size=(2.0, 2.0, 2.0))


def an_image(scale=3.0, noise=0.3):
    generator = torch.Generator().manual_seed(0)
    return (scale * (1 + noise * torch.randn(GRID.shape, generator=generator))).clamp(min=0)


def test_one_step_is_the_posterior_mean():
    x, c, sigma = an_image(), 3.0, 0.4
    found = Denoiser(gaussian_model(), sigma, intensity_scale=c)(x, GRID)
    expected = c * (VARIANCE * x / c + sigma**2) / (VARIANCE + sigma**2)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_more_steps_take_less_away_and_keep_the_structure():
    x = an_image()
    removed = [
        float((Denoiser(gaussian_model(), 0.4, num_steps=n, intensity_scale=3.0)(x, GRID) - x).norm()) for n in (1, 100)
    ]
    # The probability flow maps N(m, v + sigma^2) on N(m, v): deviations shrink by the root of the mean's share.
    share = VARIANCE / (VARIANCE + 0.4**2)
    assert removed[1] / removed[0] == pytest.approx((1 - share**0.5) / (1 - share), rel=0.02)


def test_result_scales_with_the_image_and_is_never_negative(caplog):
    x = an_image()
    with caplog.at_level(logging.INFO, "sirf_diffusion"):
        one, other = Denoiser(gaussian_model()), Denoiser(gaussian_model())
        torch.testing.assert_close(other(5 * x, GRID), 5 * one(x, GRID), rtol=1e-3, atol=1e-3)
    assert one.used_noise_level == pytest.approx(other.used_noise_level, rel=1e-2)
    assert "estimated" in caplog.text
    negative = Denoiser(ScoreModel(lambda x, t, class_labels: -torch.ones_like(x), VPSchedule(), "x0"), 0.2)
    assert float(negative(x, GRID).min()) == 0


def test_the_input_is_left_alone():
    x = an_image()
    before = x.clone()
    Denoiser(gaussian_model(), 0.3)(x, GRID)
    assert torch.equal(x, before)


@pytest.mark.parametrize(("settings", "message"), [
    ({"noise_level": 0.0}, "noise level"), ({"num_steps": 0}, "num_steps"), ({"intensity_scale": -1.0}, "intensity"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Denoiser(gaussian_model(), **settings)


@pytest.mark.parametrize("sigma", [0.1, 0.3, 1.0])
def test_noise_level_is_found(sigma):
    """The ideal denoiser of a constant image finds the noise level; more noise is more."""
    grid = ImageGeometry((1, 64, 64), (4.0, 4.0, 4.0))
    model = ScoreModel(lambda images, times, class_labels: 0 * images + 1, VPSchedule(), "x0", (4.0, 4.0, 4.0))
    noise = torch.randn(grid.shape, generator=torch.Generator().manual_seed(0))
    assert estimate_noise_level(model.on(grid, 20.0), 20 * (1 + sigma * noise)) == pytest.approx(sigma, rel=0.07)
    with pytest.raises(ValueError, match="activity"):
        estimate_noise_level(model.on(grid, 20.0), torch.zeros(grid.shape))
