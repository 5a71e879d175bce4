"""Penalties that get their grid and images later are the penalties themselves."""

from __future__ import annotations

import pytest
import torch

from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.priors import AnchorPenalty, BowsherPenalty
from sirf_diffusion.priors.late import LateAnchorPenalty, LateBowsherPenalty

GRID = ImageGeometry((2, 5, 6), (4.0, 2.0, 2.0))


def an_image(seed):
    return torch.rand(GRID.shape, generator=torch.Generator().manual_seed(seed))


def assert_same(late, prior):
    x, v = an_image(8), an_image(9)
    torch.testing.assert_close(late.value(x), prior.value(x))
    torch.testing.assert_close(late.gradient(x), prior.gradient(x))
    torch.testing.assert_close(late.curvature(x), prior.curvature(x))
    torch.testing.assert_close(late.hessian_times(x, v), prior.hessian_times(x, v))
    for found, expected in zip(late.majoriser(x), prior.majoriser(x), strict=True):
        torch.testing.assert_close(found, expected)


def test_anchor_follows_every_setting_after_set_up():
    late = LateAnchorPenalty()
    late.set_anchor(an_image(0))
    late.set_up(GRID)
    assert_same(late, AnchorPenalty(an_image(0), 1.0))
    late.penalisation_factor = 3.0
    late.set_weight(an_image(1))
    late.set_anchor(an_image(2))
    assert_same(late, AnchorPenalty(an_image(2), 3.0, an_image(1)))
    late.set_weight(None)
    assert_same(late, AnchorPenalty(an_image(2), 3.0))


def test_bowsher_follows_every_setting_after_set_up():
    late = LateBowsherPenalty()
    late.set_anatomical(an_image(0))
    late.set_up(GRID)
    assert_same(late, BowsherPenalty(GRID, 1.0, an_image(0)))
    late.set_kappa(an_image(1))
    late.penalisation_factor = 2.0
    assert_same(late, BowsherPenalty(GRID, 2.0, an_image(0), kappa=an_image(1)))
    late.set_num_neighbours(3)
    late.set_anatomical(an_image(2))
    assert_same(late, BowsherPenalty(GRID, 2.0, an_image(2), 3, an_image(1)))
    assert late.settings["num_neighbours"] == 3


@pytest.mark.parametrize(
    ("late", "message"), [(LateAnchorPenalty(), "anchor image"), (LateBowsherPenalty(), "anatomical image")]
)
def test_what_is_missing_is_named_at_set_up(late, message):
    with pytest.raises(RuntimeError, match="set_up"):
        late.gradient(an_image(0))
    with pytest.raises(ValueError, match=message):
        late.set_up(GRID)


def test_images_of_another_grid_are_refused():
    late = LateAnchorPenalty()
    late.set_anchor(torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match="anchor image has shape"):
        late.set_up(GRID)
    late.set_anchor(an_image(0))
    late.set_weight(torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match="weight has shape"):
        late.set_up(GRID)
