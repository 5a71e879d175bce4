"""The patch-based prior: a gradient that is one, a majoriser that touches and lies above, and patches that matter."""

from __future__ import annotations

import pytest
import torch

from benchmarks.bench.patch import PatchPenalty
from sirf_diffusion.geometry.images import ImageGeometry

SHAPES = [(1, 9, 8), (4, 6, 5)]


def make(shape, delta=0.3):
    generator = torch.Generator().manual_seed(1)
    prior = PatchPenalty(ImageGeometry(shape, (2.0, 2.0, 2.0)), 2.5, delta)
    return prior, torch.rand(shape, generator=generator, dtype=torch.float64), generator


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_is_that_of_the_value(shape):
    prior, x, generator = make(shape)
    direction = torch.randn(shape, generator=generator, dtype=torch.float64)
    h = 1e-6
    slope = float(prior.value(x + h * direction) - prior.value(x - h * direction)) / (2 * h)
    assert slope == pytest.approx(float((prior.gradient(x) * direction).sum()), rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_majoriser_touches_the_penalty_and_lies_above_it(shape):
    prior, x, generator = make(shape)
    anchor, rho = prior.majoriser(x)

    def surrogate(z):
        return 0.5 * float((rho * (z - anchor).square()).sum())

    for size in (0.01, 0.3, 3.0):
        z = x + size * torch.randn(shape, generator=generator, dtype=torch.float64)
        rise = float(prior.value(z) - prior.value(x))
        assert surrogate(z) - surrogate(x) >= rise - 1e-9


def test_a_constant_image_costs_nothing_and_batches_are_independent():
    prior, x, _ = make((1, 9, 8))
    assert float(prior.value(torch.full_like(x, 3.0))) == 0
    batch = torch.stack([x, 2 * x])
    assert torch.allclose(prior.gradient(batch)[1], prior.gradient(2 * x))
    assert torch.allclose(prior.value(batch), torch.stack([prior.value(x), prior.value(2 * x)]))


def test_an_edge_is_pulled_less_than_noise_of_its_size():
    geometry = ImageGeometry((1, 16, 16), (2.0, 2.0, 2.0))
    edge, dot = torch.zeros(1, 16, 16), torch.zeros(1, 16, 16)
    edge[..., 8:] = 1.0
    dot[..., 8, 8] = 1.0
    prior = PatchPenalty(geometry, 1.0, 0.05)
    assert float(prior.gradient(edge)[0, 8, 8].abs()) < 0.6 * float(prior.gradient(dot)[0, 8, 8].abs())


def test_delta_must_be_positive():
    with pytest.raises(ValueError, match="delta"):
        PatchPenalty(ImageGeometry((1, 4, 4), (1.0, 1.0, 1.0)), 1.0, 0.0)
