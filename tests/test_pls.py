"""Parallel level sets: the definition, its derivatives, STIR's numbers, and what it is for."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.priors import ParallelLevelSetsPenalty

VOLUME = ImageGeometry((3, 4, 5), (3.0, 2.0, 2.5))
PLANE = ImageGeometry((1, 6, 7), (3.0, 2.0, 2.5))
BETA, ALPHA, ETA = 1.7, 0.3, 0.5
each_grid = pytest.mark.parametrize("geometry", [VOLUME, PLANE], ids=["volume", "plane"])


def random_image(geometry, seed=0):
    return torch.rand(geometry.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def prior_of(geometry, kappa=None, **changed):
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
def test_value_is_the_definition(geometry):
    x, anatomical, kappa = (random_image(geometry, seed) for seed in range(3))
    expected = 0.0
    for r in itertools.product(*map(range, geometry.shape)):
        dx, dv = slopes_at(x, r), slopes_at(anatomical, r)
        along = sum(a * b for a, b in zip(dx, dv, strict=True)) / math.sqrt(sum(b * b for b in dv) + ETA**2)
        expected += BETA * float(kappa[r]) * math.sqrt(ALPHA**2 + sum(a * a for a in dx) - along**2)
    assert float(prior_of(geometry, kappa).value(x)) == pytest.approx(expected, rel=1e-12)


def test_shared_edges_are_free_and_others_cost():
    geometry = ImageGeometry((1, 8, 8), (2.0, 2.0, 2.0))
    anatomical = torch.zeros(geometry.shape)
    anatomical[..., 4:] = 100.0
    prior = ParallelLevelSetsPenalty(geometry, 1.0, anatomical, alpha=1e-3, eta=0.1)
    shared = anatomical / 100
    assert float(prior.value(shared)) < 0.2
    assert float(prior.value(shared.transpose(-1, -2))) == pytest.approx(8, rel=0.2)
    assert float(prior.value(-shared)) == pytest.approx(float(prior.value(shared)))


@pytest.mark.requires_stir
@pytest.mark.parametrize("flat", [False, True], ids=["volume", "plane"])
def test_agrees_with_a_real_stir(flat):
    import stir

    from sirf_diffusion.engines.stir.images import tensor_of

    geometry = PLANE if flat else VOLUME
    (nz, ny, nx), (dz, dy, dx) = geometry.shape, geometry.voxel_size

    def image(values):
        found = stir.FloatVoxelsOnCartesianGrid(
            stir.IndexRange3D(stir.Int3BasicCoordinate((0, 0, 0)), stir.Int3BasicCoordinate((nz - 1, ny - 1, nx - 1))),
            stir.FloatCartesianCoordinate3D(0, 0, 0),
            stir.FloatCartesianCoordinate3D(dz, dy, dx),
        )
        found.fill(values.float().numpy().flat)
        return found

    x, anatomical = random_image(geometry), random_image(geometry, 1)
    theirs = stir.PLSPrior3DFloat()
    theirs.set_penalisation_factor(BETA)
    theirs.set_only_2D(flat)
    theirs.set_alpha(ALPHA)
    theirs.set_eta(ETA)
    theirs.set_anatomical_image_sptr(image(anatomical))
    theirs.set_up(image(x))
    mine = prior_of(geometry)
    gradient = image(torch.zeros(geometry.shape))
    theirs.compute_gradient(gradient, image(x))
    assert float(mine.value(x)) == pytest.approx(theirs.compute_value(image(x)), rel=1e-6)
    # STIR's is not the gradient of its value in the outermost planes, rows and columns.
    inner = (slice(None) if flat else slice(1, -1), slice(1, -1), slice(1, -1))
    torch.testing.assert_close(tensor_of(gradient).double()[inner], mine.gradient(x)[inner], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"eta": float("inf")}, "eta"),
    ],
)
def test_bad_settings_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        prior_of(VOLUME, **changed)
