"""What holds for the likelihood of every engine: derivatives, subsets, batches, the projections it counts, refusals."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from sirf_diffusion.data import load_example
from sirf_diffusion.engines import Objective, as_objective
from sirf_diffusion.engines.em import inside

NUM_SUBSETS = 6


@dataclass
class Case:
    objective: Objective
    #: Whether the counts are known, and with them the values of subsets.
    known: bool = True
    #: Forward projections of a value and its gradient.
    forward: int = 1
    #: Of finite differences.
    tolerance: float = 2e-3


def of_stir():
    from stir_scan import stir_objective

    return Case(as_objective(stir_objective(num_subsets=NUM_SUBSETS)[0]), forward=2, tolerance=1e-2)


def of_sirf(pet, known):
    from sirf_scan import bundled

    scan = bundled(pet)
    obj = scan.objective(pet, NUM_SUBSETS)
    return Case(as_objective(obj, acquisition_data=scan.prompts) if known else as_objective(obj), known, 2 - known)


@pytest.fixture(scope="module", params=[
    "embedded", pytest.param("stir", marks=pytest.mark.requires_stir),
    pytest.param("sirf", marks=pytest.mark.requires_sirf),
    pytest.param("sirf, data unknown", marks=pytest.mark.requires_sirf),
])  # fmt: skip
def case(request):
    if request.param == "embedded":
        yield Case(load_example("brain2d").acquisition.objective(NUM_SUBSETS))
    elif request.param == "stir":
        yield of_stir()
    else:
        from sirf_scan import quiet_sirf

        with quiet_sirf() as pet:
            yield of_sirf(pet, "unknown" not in request.param)


@pytest.fixture
def objective(case):
    return case.objective


@pytest.fixture
def x():
    return load_example("brain2d").truth + 1


def test_it_is_an_objective_on_the_grid_of_the_data(objective):
    assert isinstance(objective, Objective)
    assert objective.num_subsets == NUM_SUBSETS
    assert objective.geometry == load_example("brain2d").acquisition.geometry


@pytest.mark.parametrize("subset", [None, 0, 4])
def test_gradient_is_the_derivative_of_the_value(case, objective, x, generator, subset):
    if subset is not None and not case.known:
        with pytest.raises(NotImplementedError, match="acquisition_data"):
            objective.value(x, subset)
        return
    direction = torch.rand(x.shape, generator=generator) * inside(objective.sensitivity())
    step = 0.02
    change = objective.value(x + step * direction, subset) - objective.value(x - step * direction, subset)
    slope = (objective.gradient(x, subset).double() * direction).sum()
    assert float(change / (2 * step)) == pytest.approx(float(slope), rel=case.tolerance)


def test_subsets_are_shares_that_add_up(case, objective, x):
    subsets, scale = range(NUM_SUBSETS), float(objective.sensitivity().max())
    gradient = objective.gradient(x)
    assert torch.allclose(sum(objective.gradient(x, k) for k in subsets), gradient, atol=1e-5 * scale)
    total = sum(objective.sensitivity(k) for k in subsets)
    assert torch.allclose(total, objective.sensitivity(), atol=1e-6 * scale)
    assert 0.5 / NUM_SUBSETS < float(objective.gradient(x, 1).norm() / gradient.norm()) < 2 / NUM_SUBSETS
    if case.known:
        value = sum(float(objective.value(x, k)) for k in subsets)
        assert value == pytest.approx(float(objective.value(x)), rel=1e-7)


def test_a_batch_is_its_images_and_inactive_ones_are_left_out(objective, x):
    batch = torch.stack((x, 2 * x, x.flip(-1)))
    point = objective.at(batch)
    assert point.value.dtype == torch.float64
    assert torch.allclose(point.value, torch.stack([objective.value(image) for image in batch]))
    each = torch.stack([objective.gradient(image) for image in batch])
    assert torch.allclose(point.gradient(), each, atol=1e-5 * float(each.abs().max()))
    active = torch.tensor([True, False, True])
    assert torch.allclose(point.gradient(active), each[active], atol=1e-5 * float(each.abs().max()))
    assert point.gradient(torch.zeros(3, dtype=torch.bool)).shape == (0, *x.shape)


def test_projections_are_counted(case, objective, x):
    counter = objective.counter
    forward, back, seconds = counter.forward, counter.back, counter.seconds
    point = objective.at(torch.stack((x, x)))
    assert bool(torch.isfinite(point.value).all())
    assert (counter.forward - forward, counter.back) == (pytest.approx(2), back)
    point.gradient(torch.tensor([True, False]))
    assert (counter.forward - forward, counter.back - back) == pytest.approx((1 + case.forward, 1))
    objective.gradient(x.expand(3, *x.shape), 0)
    assert counter.back - back == pytest.approx(1 + 3 / NUM_SUBSETS)
    objective.sensitivity()
    assert counter.back - back == pytest.approx(1 + 3 / NUM_SUBSETS)
    assert counter.seconds > seconds


def test_the_likelihood_rises_along_its_gradient_from_the_uniform_image(objective):
    x = objective.uniform_image()
    assert x[inside(objective.sensitivity())].unique().numel() == 1
    up = x * (1 + objective.gradient(x) / objective.sensitivity().clamp_min(1e-6))
    assert float(objective.value(up)) > float(objective.value(x))


def test_what_cannot_be_is_refused(objective, x):
    for call, message in (
        (lambda: objective.value(x[:, 1:]), "shape"),
        (lambda: objective.gradient(x * float("nan")), "not finite"),
        (lambda: objective.gradient(x, NUM_SUBSETS), r"subset must be in 0\.\.5, found 6"),
        (lambda: objective.sensitivity(NUM_SUBSETS), r"subset must be in 0\.\.5, found 6"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
