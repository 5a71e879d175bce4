"""What holds for the likelihood of every engine: derivatives, subsets, batches, the projections it counts, refusals."""

from dataclasses import dataclass

import pytest
import torch
from small_scan import relative

from sirf_diffusion.data import load_example
from sirf_diffusion.engines import Objective, as_objective
from sirf_diffusion.engines.autograd import log_likelihood
from sirf_diffusion.engines.em import inside
from sirf_diffusion.engines.toolkit import check_prompts
from sirf_diffusion.models import ScoreModel, intensity_scale
from sirf_diffusion.reconstructors.methods import build_reconstructor

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


NATIVE = [
    pytest.param("stir", marks=pytest.mark.requires_stir),
    pytest.param("sirf", marks=pytest.mark.requires_sirf),
    pytest.param("sirf, data unknown", marks=pytest.mark.requires_sirf),
]


def case_of(name):
    if name == "embedded":
        yield Case(load_example("brain2d").acquisition.objective(NUM_SUBSETS))
    elif name == "stir":
        yield of_stir()
    else:
        from sirf_scan import quiet_sirf

        with quiet_sirf() as pet:
            yield of_sirf(pet, "unknown" not in name)


@pytest.fixture(scope="module", params=["embedded", *NATIVE])
def case(request):
    yield from case_of(request.param)


@pytest.fixture(scope="module", params=NATIVE)
def native(request):
    yield from case_of(request.param)


@pytest.fixture(scope="module")
def embedded():
    return load_example("brain2d").acquisition.objective(NUM_SUBSETS)


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


# Against the embedded engine ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subset", [None, 1])
def test_numbers_are_those_of_the_embedded_engine(native, embedded, x, subset):
    objective = native.objective
    # 10 rays and exact strips differ by a few 1e-4 of the projections.
    assert relative(objective.gradient(x, subset), embedded.gradient(x, subset)) < 0.03
    assert relative(objective.sensitivity(subset), embedded.sensitivity(subset)) < 0.01
    if native.known:
        assert torch.allclose(objective.value(x, subset), embedded.value(x, subset), rtol=2e-4)
        assert float(objective.uniform_image().max()) == pytest.approx(float(embedded.uniform_image().max()), rel=1e-3)
        found, expected = objective.expected_log_likelihood(x - 1), embedded.expected_log_likelihood(x - 1)
        assert found == (pytest.approx(expected[0], abs=0.1 * expected[1]), pytest.approx(expected[1], rel=0.01))


METHODS = {
    "osem": {"num_iterations": 2}, "map-rdp": {"num_iterations": 5}, "map-score": {"num_iterations": 5},
    "dds": {"num_steps": 10}, "hqs": {"num_steps": 10}, "lisch": {"num_steps": 10},
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_every_reconstructor_gives_the_image_of_the_embedded_engine(native, embedded, x, method):
    scale, images, costs = intensity_scale(x - 1, embedded.geometry), [], []
    for objective in (native.objective, embedded):
        model = ScoreModel.load("brain-fdg").on(embedded.geometry, scale)
        run = build_reconstructor(method, objective, METHODS[method], model=model, intensity_scale=scale, seed=3)
        run.set_up(embedded.uniform_image())  # from one image: early ones differ as the subsets do
        images.append(run.process().get_output())
        costs.append(run.record["projections"])
    assert not isinstance(images[0], torch.Tensor)
    assert relative(native.objective.to_tensor(images[0]), images[1]) < 0.03
    assert costs[0]["back"] == pytest.approx(costs[1]["back"], rel=0.2)


def test_autograd_goes_through_it(objective):
    x = objective.uniform_image().expand(2, *objective.geometry.shape).clone().requires_grad_()
    value = log_likelihood(objective, x)
    (value[0] - 2 * value[1]).backward()
    expected = objective.gradient(x[0].detach())
    assert torch.allclose(x.grad, torch.stack((expected, -2 * expected)), atol=1e-4)


def test_prompts_of_a_toolkit_are_counts_up_to_rounding():
    check_prompts(torch.tensor([0.0, -1e-9, 3.0]))
    for value in (-1.0, torch.nan):
        with pytest.raises(ValueError, match="1 prompts are negative or not finite"):
            check_prompts(torch.tensor([0.0, value, 3.0]))
