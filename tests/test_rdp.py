"""The relative difference prior against its definition, its own derivatives and numbers that STIR produced."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import h5py
import pytest
import torch
from toy_objective import make_toy

from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.priors import QuadraticPenalty, RelativeDifferencePenalty, kappa_image, neighbours

GEOMETRY = ImageGeometry((3, 4, 5), (3.0, 2.0, 2.5))
REFERENCE = Path(__file__).parent / "reference" / "stir_reference.h5"


def random_image(shape=GEOMETRY.shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def allowed(neighbourhood, offset):
    z, y, x = offset
    return {"3x3x3": True, "transverse": z == 0, "axial": (y, x) == (0, 0)}[neighbourhood]


def brute_force_value(x, geometry, beta, gamma, epsilon, kappa, neighbourhood):
    """The double sum over voxels and neighbours, literally."""
    total = 0.0
    spacing = geometry.voxel_size
    for r in itertools.product(*map(range, geometry.shape)):
        for d in itertools.product((-1, 0, 1), repeat=3):
            k = tuple(a + b for a, b in zip(r, d, strict=True))
            if d == (0, 0, 0) or not allowed(neighbourhood, d):
                continue
            if not all(0 <= a < n for a, n in zip(k, geometry.shape, strict=True)):
                continue
            weight = spacing[2] / math.sqrt(sum((a * s) ** 2 for a, s in zip(d, spacing, strict=True)))
            difference = float(x[r] - x[k])
            denominator = float(x[r] + x[k]) + gamma * abs(difference) + epsilon
            if denominator:
                total += weight * 0.5 * difference**2 / denominator * float(kappa[r] * kappa[k])
    return beta * total


@pytest.mark.parametrize("neighbourhood", ["3x3x3", "transverse", "axial"])
@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_value_is_the_double_sum_of_the_definition(neighbourhood, epsilon):
    x, kappa = random_image(), random_image(seed=1)
    x[0, 0, :2] = 0
    options = {"kappa": kappa, "neighbourhood": neighbourhood}
    prior = RelativeDifferencePenalty(GEOMETRY, 1.7, gamma=1.5, epsilon=epsilon, **options)
    expected = brute_force_value(x, GEOMETRY, 1.7, 1.5, epsilon, kappa, neighbourhood)
    assert float(prior.value(x)) == pytest.approx(expected, rel=1e-12)


@pytest.fixture
def prior():
    return RelativeDifferencePenalty(GEOMETRY, 1.7, epsilon=0.05, kappa=random_image(seed=1))


def test_blocks_of_planes_do_not_change_the_result(prior, monkeypatch):
    batch = torch.stack([random_image(seed=s) for s in range(3)])
    whole = prior.gradient(batch), prior.value(batch)
    monkeypatch.setitem(neighbours.BLOCK_VOXELS, "cpu", 20)
    torch.testing.assert_close((prior.gradient(batch), prior.value(batch)), whole, rtol=1e-12, atol=1e-12)


def test_edges_are_skipped_not_wrapped():
    x = torch.zeros(GEOMETRY.shape, dtype=torch.float64)
    x[0, 0, 0] = 1.0
    gradient = RelativeDifferencePenalty(GEOMETRY, 1.0, epsilon=0.1).gradient(x)
    touched = gradient.nonzero().amax(0)
    assert touched.tolist() == [1, 1, 1]


def test_gradient_at_zero_pairs_is_zero_and_second_derivative_infinite_without_epsilon():
    x = torch.zeros(GEOMETRY.shape)
    prior = RelativeDifferencePenalty(GEOMETRY, 1.0)
    assert float(prior.value(x)) == 0
    assert not prior.gradient(x).any()
    assert torch.isinf(prior.hessian_diagonal(x)).all()
    with pytest.raises(ValueError, match="epsilon"):
        prior.hessian_times(x, torch.ones_like(x))


def test_scaling_laws_without_epsilon():
    x = random_image() + 0.1
    prior = RelativeDifferencePenalty(GEOMETRY, 1.0)
    assert float(prior.value(5 * x)) == pytest.approx(5 * float(prior.value(x)), rel=1e-12)
    torch.testing.assert_close(prior.gradient(5 * x), prior.gradient(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": -1.0}, "gamma"),
        ({"epsilon": math.inf}, "epsilon"),
        ({"neighbourhood": "5x5x5"}, "neighbourhood"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        RelativeDifferencePenalty(GEOMETRY, **{"penalisation_factor": 1.0, **arguments})


def test_quadratic_prior_has_stirs_gradient():
    x, kappa = random_image(), random_image(seed=1)
    prior = QuadraticPenalty(GEOMETRY, 2.0, kappa=kappa)
    middle = (1, 1, 1)
    by_hand = 0.0
    for d in itertools.product((-1, 0, 1), repeat=3):
        if d != (0, 0, 0):
            k = tuple(1 + a for a in d)
            weight = 2.5 / math.sqrt(sum((a * s) ** 2 for a, s in zip(d, GEOMETRY.voxel_size, strict=True)))
            by_hand += 2.0 * weight * float((x[middle] - x[k]) * kappa[middle] * kappa[k])
    assert float(prior.gradient(x)[middle]) == pytest.approx(by_hand, rel=1e-12)


def test_kappa_is_the_square_root_of_the_hessian_of_the_likelihood_applied_to_ones():
    objective, truth = make_toy(blind_voxel=True)
    q = objective.expected(truth)
    seen = (objective.sensitivity() > 0).double().flatten()
    expected = (objective.matrix.T @ (objective.prompts / q**2 * (objective.matrix @ seen))).sqrt()
    torch.testing.assert_close(kappa_image(objective, truth).flatten(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["plain", "epsilon", "kappa"])
def test_agrees_with_a_real_stir(name):
    with h5py.File(REFERENCE) as file:
        group = file["oblique/rdp"]
        stored = group[f"gradient_{name}"]
        settings = dict(stored.attrs)
        x, kappa, gradient = (
            torch.from_numpy(d[()].astype("float32")) for d in (group["image"], group["kappa"], stored)
        )
        voxel_size = json.loads(file["oblique"].attrs["geometry"])["image"]["voxel_size"]
    prior = RelativeDifferencePenalty(
        ImageGeometry(x.shape, voxel_size),
        float(settings["penalisation_factor"]),
        gamma=float(settings["gamma"]),
        epsilon=float(settings["epsilon"]),
        kappa=kappa if settings["kappa"] else None,
    )
    assert float(prior.value(x)) == pytest.approx(float(settings["value"]), rel=1e-5)
    assert (prior.gradient(x) - gradient).norm() < 1e-5 * gradient.norm()
