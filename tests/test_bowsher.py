"""Bowsher's prior: its definition by brute force, its derivatives, and what it is for."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.priors import BowsherPenalty, QuadraticPenalty

VOLUME = ImageGeometry((3, 4, 5), (3.0, 2.0, 2.5))
PLANE = ImageGeometry((1, 6, 7), (3.0, 2.0, 2.5))
BETA = 1.7


def random_image(geometry, seed=0):
    return torch.rand(geometry.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def neighbours(r, geometry):
    for d in itertools.product((-1, 0, 1), repeat=3):
        k = tuple(a + b for a, b in zip(r, d, strict=True))
        if d != (0, 0, 0) and all(0 <= a < n for a, n in zip(k, geometry.shape, strict=True)):
            distance = math.sqrt(sum((a * s) ** 2 for a, s in zip(d, geometry.voxel_size, strict=True)))
            yield k, geometry.voxel_size[2] / distance


def brute_force_value(x, anatomical, geometry, number, kappa):
    """The double sum, with each voxel's choice written down literally."""
    kept = {}
    for r in itertools.product(*map(range, geometry.shape)):
        ranked = sorted((abs(float(anatomical[r] - anatomical[k])), k) for k, _ in neighbours(r, geometry))
        kept[r] = {k for _, k in ranked[:number]}
    total = 0.0
    for r in kept:
        for k, weight in neighbours(r, geometry):
            votes = (k in kept[r]) + (r in kept[k])
            total += 0.25 * weight * votes / 2 * float(kappa[r] * kappa[k]) * float(x[r] - x[k]) ** 2
    return BETA * total


@pytest.mark.parametrize("geometry", [VOLUME, PLANE], ids=["volume", "plane"])
@pytest.mark.parametrize("number", [1, 3, 7])
def test_value_is_the_definition(geometry, number):
    x, anatomical, kappa = (random_image(geometry, seed) for seed in range(3))
    prior = BowsherPenalty(geometry, BETA, anatomical, number, kappa)
    expected = brute_force_value(x, anatomical.float(), geometry, number, kappa)
    assert float(prior.value(x)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("geometry", "number"), [(VOLUME, 26), (PLANE, 8)], ids=["volume", "plane"])
def test_with_all_neighbours_it_is_the_quadratic_prior(geometry, number):
    x, kappa = random_image(geometry), random_image(geometry, 2)
    bowsher = BowsherPenalty(geometry, BETA, random_image(geometry, 1), number, kappa)
    quadratic = QuadraticPenalty(geometry, BETA, kappa)
    torch.testing.assert_close(bowsher.gradient(x), quadratic.gradient(x), rtol=1e-12, atol=1e-12)
    assert float(bowsher.value(x)) == pytest.approx(float(quadratic.value(x)), rel=1e-12)


def test_anatomical_edges_are_not_smoothed_and_flat_regions_are():
    geometry = ImageGeometry((1, 8, 8), (2.0, 2.0, 2.0))
    anatomical = torch.zeros(geometry.shape)
    anatomical[..., 4:] = 10.0
    step = anatomical / 10 + 1  # PET has its edge at the same place
    prior = BowsherPenalty(geometry, 1.0, anatomical, num_neighbours=3)
    assert not prior.gradient(step).any()
    assert QuadraticPenalty(geometry, 1.0).gradient(step).abs().max() > 0.5
    noise = torch.rand(geometry.shape, generator=torch.Generator().manual_seed(0))
    assert (prior.gradient(noise) != 0).float().mean() > 0.95


def test_only_the_order_of_anatomical_differences_counts():
    x, anatomical = random_image(VOLUME), random_image(VOLUME, 1)
    first, second = (BowsherPenalty(VOLUME, BETA, a) for a in (anatomical, 1000 - 40 * anatomical))
    torch.testing.assert_close(first.gradient(x), second.gradient(x))


def test_many_planes_are_treated_like_few():
    """The choice is made in blocks of planes: no seam may show."""
    geometry = ImageGeometry((19, 4, 5), VOLUME.voxel_size)
    x, anatomical = random_image(geometry), random_image(geometry, 1)
    whole = BowsherPenalty(geometry, 1.0, anatomical, 5).gradient(x)
    cut = ImageGeometry((9, 4, 5), VOLUME.voxel_size)
    part = BowsherPenalty(cut, 1.0, anatomical[4:13], 5).gradient(x[4:13])
    # A plane's gradient needs its neighbours' choices, which need theirs: two planes at each end differ.
    torch.testing.assert_close(whole[6:11], part[2:7])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"anatomical": torch.zeros(3, 4, 4)}, "resample it"),
        ({"anatomical": torch.full(VOLUME.shape, float("nan"))}, "NaN"),
        ({"num_neighbours": 0}, "from 1 to 26"),
        ({"num_neighbours": 27}, "from 1 to 26"),
        ({"neighbourhood": "axial"}, "neighbourhood"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        BowsherPenalty(VOLUME, BETA, **{"anatomical": torch.zeros(VOLUME.shape), **arguments})
