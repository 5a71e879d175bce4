"""Anchor and score priors: derivatives, majorisers, and what the score prior means for a known density."""

from __future__ import annotations

import pytest
import torch
from toy_denoisers import ResidualOf, gaussian_denoiser, mixture_denoiser, mixture_log_density, swirling_denoiser

from sirf_diffusion.priors import AnchorPenalty, ScorePenalty

SHAPE = (2, 3, 4)
SCALE, SIGMA = 5.0, 0.6


def image(seed=0, *leading):
    return 2 * SCALE * torch.rand(*leading, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(name):
    if name == "anchor":
        return AnchorPenalty(image(5), 0.7, weight=image(6) / 10)
    denoiser = {"gaussian": gaussian_denoiser(0.5, 1.0), "mixture": mixture_denoiser()}[name]
    return ScorePenalty(ResidualOf(denoiser, SCALE), SIGMA, penalisation_factor=0.7)


PRIORS = pytest.mark.parametrize("name", ["anchor", "gaussian", "mixture"])


@PRIORS
def test_gradient_is_the_slope_of_the_value(name):
    prior, x, v = make(name), image(), image(1) - SCALE
    h = 1e-4
    slope = float(prior.value(x + h * v) - prior.value(x - h * v)) / (2 * h)
    assert slope == pytest.approx(float((prior.gradient(x) * v).sum()), rel=2e-2)


@PRIORS
def test_hessian_times_is_the_slope_of_the_gradient_and_symmetric(name):
    prior, x, v, w = make(name), image(), image(1) - SCALE, image(2) - SCALE
    h = 1e-5
    slope = (prior.gradient(x + h * v) - prior.gradient(x - h * v)) / (2 * h)
    torch.testing.assert_close(prior.hessian_times(x, v), slope, rtol=1e-2, atol=1e-2 * float(slope.abs().max()))
    left, right = (prior.hessian_times(x, v) * w).sum(), (prior.hessian_times(x, w) * v).sum()
    assert float(left) == pytest.approx(float(right), rel=2e-2)
    assert not prior.hessian_times(x, torch.zeros_like(x)).any()


@PRIORS
def test_majoriser_touches_the_penalty_and_lies_above_it(name):
    prior, x = make(name), image()
    target, rho = prior.majoriser(x)
    torch.testing.assert_close(rho * (x - target), prior.gradient(x))
    for seed in range(1, 20):
        z = image(seed)
        rise = float(prior.value(z) - prior.value(x))
        bound = float((0.5 * rho * ((z - target) ** 2 - (x - target) ** 2)).sum())
        assert rise <= bound + 1e-3 * abs(bound)


@PRIORS
def test_batches_are_independent_images(name):
    prior, batch = make(name), image(0, 3)
    for function in (prior.value, prior.gradient, prior.curvature):
        torch.testing.assert_close(function(batch), torch.stack([function(x) for x in batch]))


def test_score_prior_is_the_negative_log_density_of_noisy_images():
    """Bayes: with beta 1 the value is -log p(x / c) up to a constant, so its differences are exact."""
    prior = ScorePenalty(ResidualOf(mixture_denoiser(), SCALE), SIGMA, 1.0)
    x, y = image(), image(1)
    expected = mixture_log_density(x / SCALE, SIGMA) - mixture_log_density(y / SCALE, SIGMA)
    assert float(prior.value(y) - prior.value(x)) == pytest.approx(float(expected), rel=2e-2)


def test_score_prior_of_a_gaussian_has_its_smoothed_variance():
    prior = ScorePenalty(ResidualOf(gaussian_denoiser(0.5, 1.0), SCALE), SIGMA, 1.0)
    x = image()
    torch.testing.assert_close(prior.gradient(x), (x - SCALE) / (SCALE**2 * (0.5 + SIGMA**2)))


def test_score_prior_of_the_identity_vanishes():
    prior = ScorePenalty(ResidualOf(lambda u, sigma: u, SCALE), SIGMA)
    assert not prior.gradient(image()).any()
    assert float(prior.value(image())) == pytest.approx(0, abs=1e-12)


def test_score_prior_does_not_care_about_the_unit_of_the_image():
    x = image()
    unit = ScorePenalty(ResidualOf(mixture_denoiser(), 1.0), SIGMA)
    scaled = ScorePenalty(ResidualOf(mixture_denoiser(), SCALE), SIGMA)
    torch.testing.assert_close(scaled.gradient(x), unit.gradient(x / SCALE) / SCALE)
    torch.testing.assert_close(scaled.value(x), unit.value(x / SCALE))


def test_loop_discrepancy_tells_a_gradient_from_a_swirl():
    conservative = ScorePenalty(ResidualOf(mixture_denoiser(), SCALE), SIGMA)
    swirling = ScorePenalty(ResidualOf(swirling_denoiser, SCALE), SIGMA)
    assert conservative.loop_discrepancy(image(), image(1)) < 0.02
    assert swirling.loop_discrepancy(image(), image(1)) > 0.03


def test_lipschitz_estimate_finds_the_largest_eigenvalue():
    shrink = torch.linspace(-0.5, 0.9, 24, dtype=torch.float64).reshape(SHAPE)
    prior = ScorePenalty(ResidualOf(lambda u, sigma: shrink * u, SCALE), SIGMA, penalisation_factor=2.0)
    assert prior.estimate_lipschitz(image(), num_iterations=60) == pytest.approx(1.5, rel=1e-2)
    doubled = ScorePenalty(prior.model, SIGMA, penalisation_factor=2.0, lipschitz=2.0)
    torch.testing.assert_close(doubled.curvature(image()), 2 * prior.curvature(image()))


def test_factor_zero_asks_nothing_of_the_network():
    model = ResidualOf(mixture_denoiser(), SCALE)
    prior = ScorePenalty(model, SIGMA, penalisation_factor=0.0)
    assert not prior.gradient(image()).any()
    assert model.calls == 0


def test_bad_settings_are_named():
    with pytest.raises(TypeError, match="residual"):
        ScorePenalty(object(), SIGMA)
    with pytest.raises(ValueError, match="sigma"):
        ScorePenalty(ResidualOf(swirling_denoiser), 0.0)
    with pytest.raises(ValueError, match="lipschitz"):
        ScorePenalty(ResidualOf(swirling_denoiser), SIGMA, lipschitz=-1.0)
    with pytest.raises(ValueError, match="anchor"):
        AnchorPenalty(torch.full(SHAPE, float("nan")), 1.0)
    with pytest.raises(ValueError, match="weight"):
        AnchorPenalty(torch.ones(SHAPE), 1.0, weight=-torch.ones(SHAPE))
