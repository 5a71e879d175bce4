"""Penalties of neighbouring voxels: their definitions by brute force, STIR's numbers, and what they are for."""

import itertools
import math

import pytest
import torch
from toy_objective import make_toy

from benchmarks.bench.patch import PatchPenalty
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.priors import (
    BowsherPenalty,
    ParallelLevelSetsPenalty,
    QuadraticPenalty,
    RelativeDifferencePenalty,
    kappa_image,
    neighbours,
)

VOLUME = ImageGeometry((3, 4, 5), (3.0, 2.0, 2.5))
PLANE = ImageGeometry((1, 6, 7), (3.0, 2.0, 2.5))
BETA, ALPHA, ETA = 1.7, 0.3, 0.5
each_grid = pytest.mark.parametrize("geometry", [VOLUME, PLANE], ids=["volume", "plane"])


def random_image(geometry=VOLUME, seed=0):
    return torch.rand(geometry.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def voxels(geometry):
    return itertools.product(*map(range, geometry.shape))


def neighbours_of(r, geometry, neighbourhood="3x3x3"):
    """Each neighbour of a voxel within the image, and the pair's weight."""
    for d in itertools.product((-1, 0, 1), repeat=3):
        k = tuple(a + b for a, b in zip(r, d, strict=True))
        taken = {"3x3x3": any(d), "transverse": any(d) and d[0] == 0, "axial": any(d) and d[1:] == (0, 0)}
        if taken[neighbourhood] and all(0 <= a < n for a, n in zip(k, geometry.shape, strict=True)):
            distance = math.sqrt(sum((a * s) ** 2 for a, s in zip(d, geometry.voxel_size, strict=True)))
            yield k, geometry.voxel_size[2] / distance


# Relative differences and quadratic -----------------------------------------------------------------------------------


@pytest.mark.parametrize("neighbourhood", ["3x3x3", "transverse", "axial"])
@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_relative_differences_are_the_double_sum_of_the_definition(neighbourhood, epsilon):
    x, kappa, gamma, expected = random_image(), random_image(seed=1), 1.5, 0.0
    x[0, 0, :2] = 0
    for r in voxels(VOLUME):
        for k, weight in neighbours_of(r, VOLUME, neighbourhood):
            difference = float(x[r] - x[k])
            denominator = float(x[r] + x[k]) + gamma * abs(difference) + epsilon
            if denominator:
                expected += BETA * weight * 0.5 * difference**2 / denominator * float(kappa[r] * kappa[k])
    options = {"kappa": kappa, "neighbourhood": neighbourhood}
    prior = RelativeDifferencePenalty(VOLUME, BETA, gamma=gamma, epsilon=epsilon, **options)
    assert float(prior.value(x)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", [RelativeDifferencePenalty, BowsherPenalty])
def test_blocks_of_planes_do_not_change_the_result(kind, monkeypatch):
    geometry = ImageGeometry((19, 4, 5), VOLUME.voxel_size)
    anatomical = {"anatomical": random_image(geometry, 5)} if kind is BowsherPenalty else {"epsilon": 0.05}
    batch = torch.stack([random_image(geometry, s) for s in range(3)])
    found = []
    for size in (20, 10**6):
        monkeypatch.setitem(neighbours.BLOCK_VOXELS, "cpu", size)
        prior = kind(geometry, BETA, kappa=random_image(geometry, 4), **anatomical)
        found.append((prior.gradient(batch), prior.value(batch)))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_gradient_at_zero_pairs_is_zero_and_second_derivative_infinite_without_epsilon():
    x = torch.zeros(VOLUME.shape)
    prior = RelativeDifferencePenalty(VOLUME, 1.0)
    assert float(prior.value(x)) == 0
    assert not prior.gradient(x).any()
    assert torch.isinf(prior.hessian_diagonal(x)).all()
    with pytest.raises(ValueError, match="epsilon"):
        prior.hessian_times(x, torch.ones_like(x))


def test_scaling_laws_without_epsilon():
    x = random_image() + 0.1
    prior = RelativeDifferencePenalty(VOLUME, 1.0)
    assert float(prior.value(5 * x)) == pytest.approx(5 * float(prior.value(x)), rel=1e-12)
    torch.testing.assert_close(prior.gradient(5 * x), prior.gradient(x))


def test_kappa_is_the_square_root_of_the_hessian_of_the_likelihood_applied_to_ones():
    objective, truth = make_toy(blind_voxel=True)
    q = objective.expected(truth)
    seen = (objective.sensitivity() > 0).double().flatten()
    expected = (objective.matrix.T @ (objective.prompts / q**2 * (objective.matrix @ seen))).sqrt()
    torch.testing.assert_close(kappa_image(objective, truth).flatten(), expected, rtol=1e-3, atol=1e-6)


# Bowsher and parallel level sets --------------------------------------------------------------------------------------


@each_grid
@pytest.mark.parametrize("number", [1, 3, 7])
def test_bowshers_is_the_double_sum_with_each_voxels_choice(geometry, number):
    x, anatomical, kappa = (random_image(geometry, seed) for seed in range(3))
    kept, expected, shown = {}, 0.0, anatomical.float()
    for r in voxels(geometry):
        ranked = sorted((abs(float(shown[r] - shown[k])), k) for k, _ in neighbours_of(r, geometry))
        kept[r] = {k for _, k in ranked[:number]}
    for r in kept:
        for k, weight in neighbours_of(r, geometry):
            votes = (k in kept[r]) + (r in kept[k])
            expected += BETA * 0.25 * weight * votes / 2 * float(kappa[r] * kappa[k]) * float(x[r] - x[k]) ** 2
    prior = BowsherPenalty(geometry, BETA, anatomical, number, kappa)
    assert float(prior.value(x)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("geometry", "number"), [(VOLUME, 26), (PLANE, 8)], ids=["volume", "plane"])
def test_with_all_neighbours_it_is_the_quadratic_prior(geometry, number):
    x, kappa = random_image(geometry), random_image(geometry, 2)
    bowsher = BowsherPenalty(geometry, BETA, random_image(geometry, 1), number, kappa)
    quadratic = QuadraticPenalty(geometry, BETA, kappa)
    torch.testing.assert_close(bowsher.gradient(x), quadratic.gradient(x), rtol=1e-12, atol=1e-12)
    assert float(bowsher.value(x)) == pytest.approx(float(quadratic.value(x)), rel=1e-12)


def level_sets(geometry, kappa=None, **changed):
    return ParallelLevelSetsPenalty(
        geometry, BETA, random_image(geometry, 1), **{"alpha": ALPHA, "eta": ETA, "kappa": kappa, **changed}
    )


def slopes_at(image, r):
    found = []
    for axis in range(3):
        k = tuple(a + (i == axis) for i, a in enumerate(r))
        found.append(float(image[k] - image[r]) if k[axis] < image.shape[axis] else 0.0)
    return found


@each_grid
def test_level_sets_are_their_definition(geometry):
    x, anatomical, kappa = (random_image(geometry, seed) for seed in range(3))
    expected = 0.0
    for r in voxels(geometry):
        dx, dv = slopes_at(x, r), slopes_at(anatomical, r)
        along = sum(a * b for a, b in zip(dx, dv, strict=True)) / math.sqrt(sum(b * b for b in dv) + ETA**2)
        expected += BETA * float(kappa[r]) * math.sqrt(ALPHA**2 + sum(a * a for a in dx) - along**2)
    assert float(level_sets(geometry, kappa).value(x)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: RelativeDifferencePenalty(VOLUME, 1.0, gamma=-1.0), "gamma"),
    (lambda: RelativeDifferencePenalty(VOLUME, 1.0, epsilon=math.inf), "epsilon"),
    (lambda: RelativeDifferencePenalty(VOLUME, 1.0, neighbourhood="5x5x5"), "neighbourhood"),
    (lambda: BowsherPenalty(VOLUME, 1.0, torch.zeros(3, 4, 4)), "resample it"),
    (lambda: BowsherPenalty(VOLUME, 1.0, torch.full(VOLUME.shape, math.nan)), "NaN"),
    (lambda: BowsherPenalty(VOLUME, 1.0, random_image(), 0), "at least 1, found 0"),
    (lambda: BowsherPenalty(VOLUME, 1.0, random_image(), 27), "at most 26, found 27"),
    (lambda: BowsherPenalty(VOLUME, 1.0, random_image(), neighbourhood="axial"), "neighbourhood"),
    (lambda: level_sets(VOLUME, alpha=0.0), "alpha"), (lambda: level_sets(VOLUME, eta=math.inf), "eta"),
    (lambda: PatchPenalty(PLANE, 1.0, 0.0), "delta"),
])  # fmt: skip
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_edge_is_pulled_by_patches_less_than_noise_of_its_size():
    geometry = ImageGeometry((1, 16, 16), (2.0, 2.0, 2.0))
    edge, dot = torch.zeros(1, 16, 16), torch.zeros(1, 16, 16)
    edge[..., 8:] = 1.0
    dot[..., 8, 8] = 1.0
    prior = PatchPenalty(geometry, 1.0, 0.05)
    assert float(prior.gradient(edge)[0, 8, 8].abs()) < 0.6 * float(prior.gradient(dot)[0, 8, 8].abs())
