"""CIL's protocol: values, gradients and proximal operators of the right sign, in place and not, on any container."""

import logging
import math

import pytest
import torch
from image_kinds import KINDS, make_image, values_of
from small_scan import script_objects, write_small_scan
from toy_denoisers import ResidualOf, gaussian_score_model, mixture_denoiser
from toy_objective import make_toy

import sirf_diffusion
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.interop.cil import NegatedObjective, PriorFunction, subset_functions
from sirf_diffusion.priors import AnchorPenalty, QuadraticPenalty, RelativeDifferencePenalty, ScorePenalty
from sirf_diffusion.reconstructors import MAPEM

SHAPE = (2, 6, 6)
GRID = ImageGeometry(SHAPE, (2.0, 2.0, 2.0))


def an_image(seed=0, shape=SHAPE):
    return 0.3 + torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def make_function(name, shape=SHAPE):
    grid = ImageGeometry(shape, (2.0, 2.0, 2.0))
    if name == "anchor":
        prior = AnchorPenalty(an_image(1, shape), 2.0, weight=0.5 + an_image(2, shape))
    elif name == "quadratic":
        prior = QuadraticPenalty(grid, 0.7, kappa=an_image(3, shape))
    elif name == "rdp":
        return PriorFunction(RelativeDifferencePenalty(grid, 3.0, epsilon=0.02), lower=0.0, num_iterations=500)
    elif name == "score":
        prior = ScorePenalty(ResidualOf(mixture_denoiser(), 1.5), 0.3, 0.2, memory=False)
    else:
        return NegatedObjective(make_toy(shape, dtype=torch.float32)[0])
    return PriorFunction(prior, num_iterations=500)


FUNCTIONS = ("anchor", "quadratic", "rdp", "score", "likelihood")


@pytest.mark.parametrize("shape", [SHAPE, (1, 6, 6)], ids=["volume", "slice"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_in_place_or_not_every_container_gets_the_same_numbers(name, kind, shape):
    function, values = make_function(name, shape), an_image(4, shape)
    grid = ImageGeometry(shape, (2.0, 2.0, 2.0))
    assert function(make_image(kind, values, grid)) == pytest.approx(function(values), rel=1e-6)
    for method in (function.gradient, lambda x, out=None: function.proximal(x, 0.1, out=out)):
        expected = method(values)
        assert expected.shape == shape
        x = make_image(kind, values, grid)
        fresh = method(x)
        assert type(fresh) is type(x)
        torch.testing.assert_close(values_of(fresh), expected)
        torch.testing.assert_close(values_of(x), values)
        out = make_image(kind, torch.full(shape, float("nan")), grid)
        assert method(x, out=out) is out
        torch.testing.assert_close(values_of(out), expected)
        torch.testing.assert_close(values_of(x), values)
        assert method(x, out=x) is x
        torch.testing.assert_close(values_of(x), expected)


@pytest.mark.parametrize("tau", [0.05, 3.0, "per voxel"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_proximal_meets_its_optimality_condition(name, tau):
    """``z - x + tau F'(z)`` vanishes, or is positive where the lower bound is met."""
    function, x = make_function(name), an_image(7)
    function.num_iterations, function.tolerance = 2000 if name == "likelihood" else 500, 1e-7
    tau = 0.02 + 0.2 * an_image(8) if tau == "per voxel" else tau
    z = function.proximal(x, tau)
    slope = (z - x) + tau * function.gradient(z)
    tolerance = 2e-4 * max(1.0, float((tau * function.gradient(x)).abs().max()))
    assert float((slope * z.clamp_max(1)).abs().max()) < tolerance
    assert float(slope.min()) > -tolerance


def test_a_score_prior_with_memory_has_one_proximal_map_and_no_bound_before_it_has_a_scale():
    model = gaussian_score_model(0.3, 1.2, voxel_size=(2.0, 2.0, 2.0))
    function, x = PriorFunction(ScorePenalty(model, 0.3, 0.2)), an_image(7)
    function.prior.set_up(ImageGeometry(SHAPE, (2.0, 2.0, 2.0)))
    assert function.L is None
    first = function.proximal(x, 0.1)
    assert function.L > 0
    function.gradient(x)
    torch.testing.assert_close(function.proximal(x, 0.1), first, rtol=0, atol=0)
    assert function.prior.noise is not None
    with pytest.raises(ValueError, match="memory=False"):
        subset_functions(make_toy(SHAPE, num_subsets=4)[0], function.prior)


def test_lower_bounds_hold_where_the_penalty_is_not_defined_below():
    prior = RelativeDifferencePenalty(GRID, 3.0)  # epsilon 0: no second derivative between two zeros
    x = an_image(1) - 0.8
    z = PriorFunction(prior, lower=0.0).proximal(x, 0.5)
    assert float(z.min()) >= 0
    assert bool(torch.isfinite(z).all())


def test_signs_are_cils():
    objective, truth = make_toy(SHAPE, dtype=torch.float32)
    function = NegatedObjective(objective)
    assert function(truth) == pytest.approx(-float(objective.value(truth)))
    worse = truth * 3
    assert function(worse) > function(truth)
    penalty = PriorFunction(QuadraticPenalty(GRID, 1.0))
    assert penalty(truth) > penalty(torch.ones(SHAPE)) == 0


def test_subsets_add_up_with_the_penalty_in_once():
    objective, truth = make_toy(SHAPE, dtype=torch.float32, num_subsets=4)
    prior = RelativeDifferencePenalty(GRID, 5.0, epsilon=0.01)
    x = truth + 0.2
    parts, whole = subset_functions(objective, prior), NegatedObjective(objective, prior)
    assert len(parts) == 4
    assert sum(part(x) for part in parts) == pytest.approx(whole(x), rel=1e-6)
    torch.testing.assert_close(sum(part.gradient(x) for part in parts), whole.gradient(x), rtol=1e-4, atol=1e-2)
    expected = -objective.gradient(x) + prior.gradient(x)
    torch.testing.assert_close(whole.gradient(x), expected)


def test_lipschitz_constants_bound_gradient_differences():
    x, y = an_image(1), an_image(2)
    for name in ("anchor", "quadratic", "score"):
        function = make_function(name)
        change = float((function.gradient(x) - function.gradient(y)).norm())
        assert 0 < change <= function.L * float((x - y).norm())
    assert make_function("rdp").L is None
    function = make_function("rdp")
    function.L = 3.0
    assert function.L == 3.0


def test_an_unfinished_proximal_operator_says_so_once(caplog):
    prior = ScorePenalty(ResidualOf(mixture_denoiser()), 0.05, memory=False)
    function = PriorFunction(prior, num_iterations=2)
    with caplog.at_level(logging.WARNING, "sirf_diffusion"):
        for _ in range(2):
            function.proximal(an_image(1), 100.0)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("name", ["rdp", "likelihood"])
def test_the_conjugate_that_pdhg_reports_is_nan_and_that_is_said_once(name, caplog):
    function = make_function(name)
    with caplog.at_level(logging.WARNING, "sirf_diffusion"):
        assert all(math.isnan(function.convex_conjugate(an_image())) for _ in range(2))
    assert [record.getMessage().count("gap are NaN") for record in caplog.records] == [1]


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: PriorFunction(3), TypeError, "Penalty"),
        (lambda: PriorFunction(sirf_diffusion.get_engine("embedded").AnchorPrior()), TypeError, "give its .penalty"),
        (lambda: NegatedObjective(make_toy(SHAPE)[0], 3), TypeError, "Penalty"),
        (lambda: PriorFunction(QuadraticPenalty(GRID, 1.0), num_iterations=0), ValueError, "num_iterations"),
        (lambda: make_function("rdp").proximal(an_image(), 0.0), ValueError, "tau"),
        (lambda: make_function("rdp").proximal(an_image(), math.nan), ValueError, "tau"),
        (lambda: make_function("rdp").gradient([1.0]), TypeError, "as_array"),
        (lambda: NegatedObjective(make_toy(SHAPE)[0], subset=1), ValueError, "subset"),
        (
            lambda: NegatedObjective(make_toy(SHAPE)[0], QuadraticPenalty(GRID, 1.0)).proximal(an_image(), 1.0),
            NotImplementedError,
            "PriorFunction",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


@pytest.fixture
def cil():
    pytest.importorskip("cil.optimisation.algorithms", reason="CIL is not installed")
    import cil.optimisation

    return cil.optimisation


def test_cils_algebra_of_functions_applies(cil):
    from cil.optimisation.functions import Function

    likelihood, prior = make_function("likelihood"), make_function("rdp")
    assert isinstance(prior, Function)
    x = make_image("cil", an_image(1), GRID)
    total = likelihood + 2 * prior
    assert total(x) == pytest.approx(likelihood(x) + 2 * prior(x))
    expected = likelihood.gradient(an_image(1)) + 2 * prior.gradient(an_image(1))
    torch.testing.assert_close(values_of(total.gradient(x)), expected, rtol=1e-4, atol=1e-3)
    scaled = (2 * prior).proximal(x, 0.1)
    torch.testing.assert_close(values_of(scaled), prior.proximal(an_image(1), 0.2))


@pytest.mark.parametrize("algorithm", ["ISTA", "FISTA"])
def test_cils_algorithms_find_the_map_image(cil, algorithm):
    objective, truth = make_toy((1, 6, 6), dtype=torch.float32, background=0.5)
    grid = ImageGeometry((1, 6, 6), (2.0, 2.0, 2.0))
    prior = RelativeDifferencePenalty(grid, 20.0, epsilon=0.05)
    mapem = MAPEM(objective, prior, 300)
    expected = mapem.process().get_output()
    f, g = NegatedObjective(objective), PriorFunction(prior, lower=0.0, num_iterations=200)
    start = make_image("cil", torch.full((1, 6, 6), float(truth.mean())), grid)
    run = getattr(cil.algorithms, algorithm)(initial=start, f=f, g=g, step_size=2e-3, update_objective_interval=100)
    run.run(600, verbose=0)
    found = values_of(run.solution)
    assert float((found - expected).norm() / expected.norm()) < 5e-3
    assert run.objective[-1] == pytest.approx(f(expected) + g(expected), abs=0.05)


def test_cils_svrg_takes_the_subset_functions(cil):
    from cil.optimisation.functions import SVRGFunction
    from cil.optimisation.utilities import Sampler

    objective, truth = make_toy(SHAPE, dtype=torch.float32, num_subsets=4)
    prior = QuadraticPenalty(GRID, 1.0)
    function = SVRGFunction(subset_functions(objective, prior), Sampler.sequential(4))
    x = make_image("cil", truth + 0.1, GRID)
    expected = NegatedObjective(objective, prior).gradient(truth + 0.1)
    torch.testing.assert_close(values_of(function.gradient(x)), expected, rtol=1e-3, atol=1e-2)


@pytest.mark.requires_sirf
def test_a_sirf_objective_and_prior_go_through_cils_ista(cil, tmp_path):
    """Images, likelihood and container algebra are SIRF's, the loop is CIL's, the penalty ours."""

    pet = sirf_diffusion.get_engine("sirf")
    pet.set_verbosity(0)
    files = write_small_scan(tmp_path, planes=1, counts=2e5)
    _, image, _, native = script_objects(pet, files)
    native.set_up(image)
    f = NegatedObjective(native)
    assert f(image) == pytest.approx(-native.value(image), rel=1e-5)
    expected = -torch.from_numpy(native.gradient(image).as_array())
    torch.testing.assert_close(
        values_of(f.gradient(image)), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())
    )

    g = PriorFunction(QuadraticPenalty(files.geometry, 0.1), lower=0.0)
    start = image.get_uniform_copy(float(image.as_array().mean()))
    # The curvature of the likelihood is about sensitivity over activity.
    step_size = 0.5 * float(start.max()) / float(f.objective.sensitivity().max())
    run = cil.algorithms.ISTA(initial=start, f=f, g=g, step_size=step_size, update_objective_interval=10)
    run.run(30, verbose=0)
    assert isinstance(run.solution, type(image))
    assert run.objective == sorted(run.objective, reverse=True)
    assert (run.solution - image).norm() < 0.8 * (start - image).norm()
