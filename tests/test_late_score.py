"""The score prior that finds its grid and intensity scale by itself."""

from __future__ import annotations

import logging

import pytest
import torch
from test_conditioning import MeanFromAnatomy

from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models import ScoreModel, VPSchedule, intensity_scale
from sirf_diffusion.priors import LateScorePenalty, ScorePenalty

GEOMETRY = ImageGeometry((1, 8, 12), (2.0, 2.0, 2.0))
SCHEDULE = VPSchedule()


class Shrink:
    """Predicts half of what it sees."""

    def __call__(self, images, times, class_labels):
        return 0.5 * images


def model():
    return ScoreModel(Shrink(), SCHEDULE, "x0", multiple=4)


def image(seed=0):
    return 40 * torch.rand(GEOMETRY.shape, generator=torch.Generator().manual_seed(seed)) + 1


def test_the_scale_comes_from_the_first_image_with_structure_and_stays(caplog):
    prior = LateScorePenalty(model(), 0.3, 2.0)
    prior.set_up(GEOMETRY)
    with caplog.at_level(logging.WARNING, "sirf_diffusion"):
        for _ in range(2):
            uniform = torch.full(GEOMETRY.shape, 7.0)
            assert not prior.gradient(uniform).any()
            assert float(prior.value(uniform)) == 0
    assert sum("uniform" in record.getMessage() for record in caplog.records) == 1
    prior.gradient(image())
    c = intensity_scale(image(), GEOMETRY)
    assert prior.intensity_scale == c
    expected = ScorePenalty(model().on(GEOMETRY, c), 0.3, 2.0)
    for x in (image(), 3 * image(1)):
        torch.testing.assert_close(prior.gradient(x), expected.gradient(x))
        torch.testing.assert_close(prior.curvature(x), expected.curvature(x))
        torch.testing.assert_close(prior.hessian_times(x, image(2)), expected.hessian_times(x, image(2)))
        torch.testing.assert_close(prior.value(x), expected.value(x))


def test_a_given_scale_is_used():
    prior = LateScorePenalty(model(), 0.3, intensity_scale=10.0)
    prior.set_up(GEOMETRY)
    torch.testing.assert_close(prior.gradient(image()), ScorePenalty(model().on(GEOMETRY, 10.0), 0.3).gradient(image()))


def test_settings_may_change_after_set_up():
    prior = LateScorePenalty(model(), 0.3, intensity_scale=10.0)
    prior.set_up(GEOMETRY)
    prior.gradient(image())
    kappa = image(3)
    prior.sigma, prior.penalisation_factor = 0.6, 5.0
    prior.set_kappa(kappa)
    expected = ScorePenalty(model().on(GEOMETRY, 10.0), 0.6, 5.0)
    torch.testing.assert_close(prior.gradient(image()), kappa**2 * expected.gradient(image()))
    torch.testing.assert_close(prior.curvature(image()), kappa**2 * expected.curvature(image()))


def test_the_anatomical_image_reaches_the_network():
    conditional = ScoreModel(MeanFromAnatomy(), SCHEDULE, multiple=4, in_channels=2)
    prior = LateScorePenalty(conditional, 0.3, intensity_scale=10.0)
    prior.set_up(GEOMETRY)
    plain = prior.gradient(image())
    prior.set_anatomical(image(5), guidance=0.5)
    bound = conditional.on(GEOMETRY, 10.0, anatomical=image(5), guidance=0.5)
    torch.testing.assert_close(prior.gradient(image()), ScorePenalty(bound, 0.3).gradient(image()))
    assert not torch.allclose(plain, prior.gradient(image()))


def test_a_model_that_is_bound_already_is_used_as_it_is():
    bound = model().on(GEOMETRY, 12.0)
    prior = LateScorePenalty(bound, 0.3)
    prior.set_up(GEOMETRY)
    torch.testing.assert_close(prior.gradient(image()), ScorePenalty(bound, 0.3).gradient(image()))
    assert prior.intensity_scale == 12.0


def test_wrong_use_is_explained():
    with pytest.raises(RuntimeError, match="set_up"):
        LateScorePenalty(model(), 0.3).gradient(image())
    with pytest.raises(ValueError, match="noise level"):
        LateScorePenalty(model(), 0.0)
    with pytest.raises(ValueError, match="intensity_scale"):
        LateScorePenalty(model(), 0.3, intensity_scale=-1.0)
    with pytest.raises(ValueError, match="no-such-model"):
        LateScorePenalty("no-such-model")
    prior = LateScorePenalty(model(), 0.3)
    prior.set_kappa(torch.ones(1, 2, 2))
    with pytest.raises(ValueError, match="kappa"):
        prior.set_up(GEOMETRY)
