"""The likelihood: its gradient, its subsets, its statistics, and what it refuses."""

import pytest
import torch

from sirf_diffusion.engines.embedded.acquisition import Acquisition
from sirf_diffusion.engines.embedded.acquisition_model import AcquisitionModel, attenuation_factors
from sirf_diffusion.engines.embedded.poisson import PoissonObjective, poisson_divergence
from sirf_diffusion.engines.embedded.projector import Projector
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.geometry.projdata import ProjDataGeometry, Segment
from sirf_diffusion.geometry.scanners import Scanner


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def projector() -> Projector:
    scanner = Scanner("small", 2, 96, 120.0, 5.0, 6.0, 3.5)
    segments = (Segment(0, 0, 0, 2), Segment(1, 1, 1, 1), Segment(-1, -1, -1, 1))
    return Projector(ImageGeometry((3, 25, 25), (3.0, 4.0, 4.0)), ProjDataGeometry(scanner, segments, 24, 40))


@pytest.fixture(scope="module")
def truth(projector) -> torch.Tensor:
    x = torch.zeros(projector.geometry.shape)
    x[:, 6:17, 8:20] = 0.3
    x[1:, 9:12, 10:13] = 1.2
    return x


@pytest.fixture(scope="module")
def model(projector) -> AcquisitionModel:
    shape = projector.projdata.shape
    factors = 0.3 + torch.rand(shape, generator=generator(1))
    factors[:, 5, 10:15] = 0
    additive = torch.rand(shape, generator=generator(2)) + 0.2
    return AcquisitionModel(projector, factors, additive, torch.full(shape, 0.1), psf_fwhm_mm=5.0)


@pytest.fixture
def objective(model, truth) -> PoissonObjective:
    prompts = torch.poisson(model.forward(truth), generator=generator(3))
    return PoissonObjective(model, prompts, num_subsets=4)


def test_model_is_as_stir_defines_it(projector, truth):
    shape = projector.projdata.shape
    m, a, b = (torch.rand(shape, generator=generator(i)) for i in range(3))
    model = AcquisitionModel(projector, m, a, b)
    torch.testing.assert_close(model.forward(truth), m * (projector.forward(truth) + a) + b)
    torch.testing.assert_close(model.constant_term, m * a + b)
    torch.testing.assert_close(model.forward(truth, range(1, 24, 4)), model.forward(truth)[:, 1::4])
    assert AcquisitionModel(projector).constant_term is None


def test_model_adjoint_with_blur(model):
    x = torch.rand(model.geometry.shape, generator=generator(1))
    p = torch.rand(model.projector.projdata.shape, generator=generator(2))
    for views in (None, range(2, 24, 3)):
        part = p if views is None else p[:, 2::3]
        left = (model.linear(x, views).double() * part.double()).sum()
        right = (x.double() * model.adjoint(part, views).double()).sum()
        torch.testing.assert_close(left, right, rtol=1e-6, atol=0)


def test_blur_has_the_width_asked_for(projector):
    x = torch.zeros(projector.geometry.shape)
    x[1, 12, 12] = 1
    blurred = AcquisitionModel(projector, psf_fwhm_mm=(0.0, 10.0, 6.0)).psf(x).double()
    torch.testing.assert_close(blurred.sum(), torch.tensor(1.0, dtype=torch.float64), rtol=1e-4, atol=0)
    offset = (torch.arange(25, dtype=torch.float64) - 12) * 4.0
    for axis, width in ((1, 10.0), (2, 6.0)):
        profile = blurred.sum(tuple({0, 1, 2} - {axis}))
        assert (profile * offset**2).sum().sqrt() * 2.3548 == pytest.approx(width, rel=0.02)
    assert float(blurred[[0, 2]].abs().max()) == 0


def test_attenuation_of_a_water_cylinder(projector):
    axis = (torch.arange(25) - 12) * 4.0
    mu = 0.096 * (torch.hypot(axis[:, None], axis[None]) < 40).float().expand(3, -1, -1)
    factors = attenuation_factors(mu, projector)
    assert float(factors.max()) == 1.0
    # The oblique sinogram in the middle: those of the end rings lie half outside the image.
    assert float(factors[2, :, 20].log().mean()) == pytest.approx(-0.096 * 8.0, rel=0.05)


def test_value_is_the_definition(objective, truth):
    x = truth + 0.1
    expected = objective.model.forward(x).double()
    value = (torch.xlogy(objective.prompts.double(), expected) - expected).sum()
    torch.testing.assert_close(objective.value(x), value, rtol=1e-7, atol=0)


def test_uniform_image_predicts_the_counts(objective):
    uniform = objective.uniform_image()
    assert float(objective.model.forward(uniform).sum()) == pytest.approx(float(objective.prompts.sum()), rel=1e-4)
    assert uniform[objective.sensitivity() > 0].unique().numel() == 1


def test_dead_bins_do_not_matter(model, truth):
    without = AcquisitionModel(model.projector, model.multiplicative_factors)
    prompts = torch.poisson(without.forward(truth), generator=generator(3))
    dead = model.multiplicative_factors == 0
    background = AcquisitionModel(model.projector, model.multiplicative_factors, background_term=dead.float())
    objective, other = (PoissonObjective(m, prompts) for m in (without, background))
    assert bool(dead.any())
    assert bool(torch.isfinite(objective.gradient(truth + 0.1)).all())
    torch.testing.assert_close(objective.gradient(truth + 0.1), other.gradient(truth + 0.1))


def test_empty_bins_without_background(projector):
    # y = 0 and q = 0 contribute nothing to the value and -1 to the ratio, also where the image is empty.
    prompts = torch.zeros(projector.projdata.shape)
    prompts[0, 0, 20] = 3
    x = torch.zeros(projector.geometry.shape)
    x[:, 12, 12] = 1
    objective = PoissonObjective(AcquisitionModel(projector), prompts)
    expected = projector.forward(x).double()
    torch.testing.assert_close(objective.value(x), 3 * expected[0, 0, 20].log() - expected.sum(), rtol=1e-6, atol=0)
    assert bool(torch.isfinite(objective.gradient(x)).all())


def test_impossible_bins_say_where(projector):
    prompts = torch.zeros(projector.projdata.shape)
    prompts[2, 7, 3] = 1
    factors = torch.ones(projector.projdata.shape)
    factors[2, 7, 3] = 0
    objective = PoissonObjective(AcquisitionModel(projector, factors), prompts, num_subsets=4)
    x = torch.ones(projector.geometry.shape)
    with pytest.raises(ValueError, match=r"1 bins .* sinogram 2, view 7, tangential position 3; 1 of them"):
        objective.value(x, subset=3)
    assert bool(torch.isfinite(objective.value(x, subset=2)))
    x[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="image has 1 values that are not finite"):
        PoissonObjective(AcquisitionModel(projector, background_term=factors), prompts).value(x + 0)


def test_divergence_of_a_poisson_variable():
    q = torch.tensor([0.01, 0.1, 0.5, 1, 2, 5, 20, 100], dtype=torch.float64)
    expected = torch.tensor([0.046, 0.237, 0.504, 0.573, 0.570, 0.523, 0.504, 0.501], dtype=torch.float64)
    mean, _ = poisson_divergence(q)
    torch.testing.assert_close(mean, expected, rtol=0, atol=6e-4)
    # Exact sums, away from the table's points.
    for rate in (0.0037, 0.77, 3.3, 47.0, 2000.5):
        y = torch.arange(0, 4000, dtype=torch.float64)
        probability = torch.exp(torch.xlogy(y, torch.tensor(rate)) - rate - torch.lgamma(y + 1))
        divergence = torch.xlogy(y, y / rate) - y + rate
        exact = (probability * divergence).sum()
        variance = (probability * (divergence - exact) ** 2).sum()
        mean, found = poisson_divergence(torch.tensor(rate, dtype=torch.float64))
        torch.testing.assert_close(mean, exact, rtol=2e-4, atol=0)
        torch.testing.assert_close(found, variance, rtol=2e-3, atol=0)
    for part in poisson_divergence(torch.tensor([0.0, 1e-9, 9.9e3, 1.01e4, 1e8])):
        assert bool((part >= 0).all())
        assert float(part[0]) == 0
        torch.testing.assert_close(part[2:], torch.full((3,), 0.5, dtype=torch.float64), rtol=1e-3, atol=0)


def test_expected_log_likelihood_covers_the_truth(model, truth):
    expected = model.forward(truth)
    scores = []
    for seed in range(40):
        objective = PoissonObjective(model, torch.poisson(expected, generator=generator(100 + seed)))
        mean, deviation = objective.expected_log_likelihood(truth)
        scores.append((float(objective.value(truth)) - mean) / deviation)
    scores = torch.tensor(scores)
    assert abs(float(scores.mean())) < 0.5
    assert 0.7 < float(scores.std()) < 1.35


@pytest.mark.parametrize(("change", "message"), [
    (lambda y: y[:, :-1], "prompts has shape"), (lambda y: y - 1, "negative"), (lambda y: y / 0, "not finite"),
    (lambda y: y * 0, "zero in all bins"),
])  # fmt: skip
def test_bad_prompts_are_refused(model, change, message):
    prompts = torch.ones(model.projector.projdata.shape)
    prompts[0, 0, 0] = 0
    with pytest.raises(ValueError, match=message):
        PoissonObjective(model, change(prompts))


@pytest.mark.parametrize("name", ["multiplicative_factors", "additive_term", "background_term"])
@pytest.mark.parametrize(("value", "message"), [(-1.0, "negative"), (float("inf"), "not finite")])
def test_bad_terms_are_refused(projector, name, value, message):
    term = torch.ones(projector.projdata.shape)
    term[1, 2, 3] = value
    with pytest.raises(ValueError, match=rf"{name} has 1 values that are {message}, the first one in bin \(1, 2, 3\)"):
        AcquisitionModel(projector, **{name: term})


@pytest.mark.parametrize("what", ["additive", "attenuation"])
def test_rounding_negatives_count_as_zero_and_are_said(projector, caplog, what):
    prompts, grid = torch.ones(projector.projdata.shape), projector.geometry
    values = torch.full(prompts.shape if what == "additive" else grid.shape, 0.1)
    values[0, 0, 0] = -1e-9
    options = {what: values} | ({"attenuation_geometry": grid} if what == "attenuation" else {})
    acquisition = Acquisition(prompts, projector.projdata, grid, **options)
    assert getattr(acquisition, what).min() == 0
    assert "1 values down to -1e-09 are rounding" in caplog.text
    values[0, 0, 0] = -1e-3
    with pytest.raises(ValueError, match="negative"):
        Acquisition(prompts, projector.projdata, grid, **options)


def test_more_background_than_counts_is_refused(projector):
    background = torch.full(projector.projdata.shape, 2.0)
    objective = PoissonObjective(AcquisitionModel(projector, background_term=background), background / 2)
    with pytest.raises(ValueError, match="background exceeds"):
        objective.uniform_image()
