"""Every claim of every penalty: its flags, its derivatives, its bounds; and what the score penalty means."""

import json
import logging
from functools import partial

import pytest
import torch
from test_conditioning import MeanFromAnatomy
from test_sirf_priors import Ridge
from toy_denoisers import ResidualOf, gaussian_denoiser, mixture_denoiser, mixture_log_density
from toy_objective import make_toy

from benchmarks.bench.patch import PatchPenalty
from sirf_diffusion import priors
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.interop.callback import CallbackPenalty
from sirf_diffusion.models import ScoreModel, VPSchedule, intensity_scale
from sirf_diffusion.priors import AnchorPenalty, BowsherPenalty, ScorePenalty
from sirf_diffusion.priors.score import MEMORY_PULL, MEMORY_RATE
from sirf_diffusion.reconstructors import MAPEM

VOLUME = ImageGeometry((3, 3, 4), (3.0, 2.0, 2.5))
PLANE = ImageGeometry((1, 4, 5), (3.0, 2.0, 2.5))
SCALE, SIGMA, BETA = 5.0, 0.6, 0.7
PlainPenalty = partial(ScorePenalty, memory=False)


def image(seed=0, grid=VOLUME, *leading):
    generator = torch.Generator().manual_seed(seed)
    return 2 * SCALE * torch.rand(*leading, *grid.shape, generator=generator, dtype=torch.float64) + 0.1


def make(name, grid=VOLUME, late=False):
    """A penalty made with its grid, or without it."""
    given, mr = None if late else grid, image(7, grid)
    return {
        "anchor": lambda: AnchorPenalty(image(5, grid), BETA, weight=image(6, grid) / 10),
        "quadratic": lambda: priors.QuadraticPenalty(given, BETA),
        "rdp": lambda: priors.RelativeDifferencePenalty(given, BETA, 1.5, 0.05),
        "rdp in plane": lambda: priors.RelativeDifferencePenalty(given, BETA, 2.0, 0.3, neighbourhood="transverse"),
        "bowsher": lambda: BowsherPenalty(given, BETA, mr, 3),
        "pls": lambda: priors.ParallelLevelSetsPenalty(given, BETA, mr, 0.3, 0.5),
        "pls in plane": lambda: priors.ParallelLevelSetsPenalty(given, BETA, mr, 0.3, 0.5, only_2d=True),
        "patch": lambda: PatchPenalty(grid, BETA, 0.3),
        "gaussian": lambda: PlainPenalty(ResidualOf(gaussian_denoiser(0.5, 1.0), SCALE), SIGMA, BETA),
        "mixture": lambda: PlainPenalty(ResidualOf(mixture_denoiser(), SCALE), SIGMA, BETA),
        "user's": lambda: CallbackPenalty(Ridge(), BETA),
    }[name]()


every_penalty = pytest.mark.parametrize(
    "name",
    ["anchor", "quadratic", "rdp", "rdp in plane", "bowsher", "pls", "pls in plane", "patch", "gaussian", "mixture",
     "user's"],
)  # fmt: skip
each_grid = pytest.mark.parametrize("grid", [VOLUME, PLANE], ids=["volume", "plane"])


def with_kappa(penalty, grid):
    if penalty.has_kappa:
        penalty.set_kappa(image(4, grid) / SCALE)
    return penalty


def tolerance(name):
    """Networks are differentiated by differences, path integrals are sums, a user's arrays are float32."""
    return {"mixture": 2e-2, "gaussian": 1e-4, "user's": 1e-3}.get(name, 1e-6)


def hessian_of(penalty, x):
    eye = torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape)
    return torch.stack([penalty.hessian_times(x, v).flatten() for v in eye])


@each_grid
@every_penalty
def test_gradient_is_the_slope_of_the_value(name, grid):
    penalty, x, v = make(name, grid), image(0, grid), image(1, grid) - SCALE
    if name not in ("gaussian", "mixture"):  # for those only where kappa is smooth
        with_kappa(penalty, grid)
    h = 1e-2 if name == "user's" else 1e-4
    slope = float(penalty.value(x + h * v) - penalty.value(x - h * v)) / (2 * h)
    assert slope == pytest.approx(float((penalty.gradient(x) * v).sum()), rel=tolerance(name))
    assert penalty.has_gradient
    assert penalty.has_value == (name not in ("gaussian", "mixture"))


@each_grid
@every_penalty
def test_second_derivatives_are_the_slope_of_the_gradient(name, grid):
    penalty, x, v = with_kappa(make(name, grid), grid), image(0, grid), image(1, grid) - SCALE
    h, rough = (1e-2, 1e-3) if name == "user's" else (1e-5, tolerance(name))
    slope = (penalty.gradient(x + h * v) - penalty.gradient(x - h * v)) / (2 * h)
    found = penalty.hessian_times(x, v)
    torch.testing.assert_close(found, slope, rtol=rough, atol=rough * max(float(slope.abs().max()), 1e-6))
    assert not penalty.hessian_times(x, torch.zeros_like(x)).any()
    if penalty.has_hessian_diagonal:
        torch.testing.assert_close(penalty.hessian_diagonal(x).flatten(), hessian_of(penalty, x).diagonal())
    else:
        with pytest.raises(NotImplementedError, match="diagonal"):
            penalty.hessian_diagonal(x)


@each_grid
@every_penalty
def test_curvature_bounds_the_symmetric_hessian_and_the_majoriser_lies_above(name, grid):
    penalty, x = make(name, grid), image(0, grid)
    if name not in ("gaussian", "mixture"):
        with_kappa(penalty, grid)
    assert penalty.has_curvature
    hessian, size = hessian_of(penalty, x), float(penalty.curvature(x).max())
    torch.testing.assert_close(hessian, hessian.T, rtol=0, atol=2e-2 * size if name == "mixture" else 1e-9 * size)
    gap = torch.diag(penalty.curvature(x).flatten()) - (hessian + hessian.T) / 2
    assert torch.linalg.eigvalsh(gap).min() > -1e-2 * size if name == "mixture" else -1e-9 * size
    target, rho = penalty.majoriser(x)
    torch.testing.assert_close(rho * (x - target), penalty.gradient(x))
    for seed in range(1, 12) if penalty.has_majoriser else ():
        z = image(seed, grid)
        bound = float((0.5 * rho * ((z - target) ** 2 - (x - target) ** 2)).sum())
        assert float(penalty.value(z) - penalty.value(x)) <= bound + 1e-3 * abs(bound)


@every_penalty
def test_the_proximal_operator_is_the_minimiser(name):
    penalty, x = make(name), image()
    for tau in (0.3, image(3)):
        if not penalty.has_prox:
            with pytest.raises(NotImplementedError, match="proximal"):
                penalty.prox(x, tau)
            continue
        z = penalty.prox(x, tau)
        torch.testing.assert_close(z + tau * penalty.gradient(z), x)


@every_penalty
def test_kappa_scales_the_penalty_and_is_refused_where_there_is_none(name):
    penalty, x = make(name), image()
    before = penalty.gradient(x)
    if not penalty.has_kappa:
        with pytest.raises(ValueError, match="no kappa"):
            penalty.set_kappa(image(1))
        return
    penalty.set_kappa(torch.full(VOLUME.shape, 3.0))
    torch.testing.assert_close(penalty.gradient(x), (3 if "pls" in name else 9) * before)
    assert penalty.settings["kappa"]
    if name not in ("gaussian", "mixture"):  # their models know no grid
        with pytest.raises(ValueError, match="kappa has shape"):
            penalty.set_kappa(torch.ones(2, 2, 2))
    with pytest.raises(ValueError, match="negative"):
        penalty.set_kappa(-torch.ones(VOLUME.shape))
    with pytest.raises(ValueError, match="NaN"):
        penalty.set_kappa(torch.full(VOLUME.shape, float("nan")))
    penalty.set_kappa(None)
    torch.testing.assert_close(penalty.gradient(x), before)


@every_penalty
def test_batches_are_independent_images_and_the_factor_is_linear(name):
    penalty, batch = make(name), image(0, VOLUME, 2, 3)
    for function in (penalty.value, penalty.gradient, penalty.curvature):
        apart = torch.stack([function(x) for x in batch.flatten(0, 1)])
        torch.testing.assert_close(function(batch).flatten(0, 1), apart)
    before = penalty.gradient(batch), penalty.value(batch)
    penalty.penalisation_factor *= 3
    torch.testing.assert_close((penalty.gradient(batch), penalty.value(batch)), (3 * before[0], 3 * before[1]))
    penalty.penalisation_factor = 0
    assert not penalty.gradient(batch).any()
    assert not penalty.value(batch).any()
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="penalisation_factor"):
            penalty.penalisation_factor = wrong
    json.dumps(penalty.settings)


@every_penalty
def test_a_penalty_may_be_made_before_the_grid_is_known(name):
    early, late, x = with_kappa(make(name), VOLUME), with_kappa(make(name, late=True), VOLUME), image()
    if late.geometry is None and name in ("quadratic", "rdp", "bowsher", "pls"):
        with pytest.raises(RuntimeError, match="set_up"):
            late.gradient(x)
    late.set_up(VOLUME)
    assert late.geometry == VOLUME
    torch.testing.assert_close(late.gradient(x), early.gradient(x), rtol=0, atol=0)
    if late.has_kappa:
        with pytest.raises(ValueError, match="kappa has shape"):
            late.set_up(PLANE)


# Settings that may change ---------------------------------------------------------------------------------------------


def test_images_and_numbers_of_a_penalty_may_change_after_set_up():
    x = image()
    anchor = AnchorPenalty(penalisation_factor=3.0)
    with pytest.raises(ValueError, match="anchor image"):
        anchor.set_up(VOLUME)
    anchor.set_anchor(image(1))
    anchor.set_up(VOLUME)
    anchor.set_weight(image(2))
    torch.testing.assert_close(anchor.gradient(x), AnchorPenalty(image(1), 3.0, image(2)).gradient(x))
    bowsher = BowsherPenalty()
    with pytest.raises(ValueError, match="anatomical image"):
        bowsher.set_up(VOLUME)
    bowsher.set_anatomical(image(1))
    bowsher.set_up(VOLUME)
    bowsher.set_num_neighbours(2)
    bowsher.set_anatomical(image(2))
    torch.testing.assert_close(bowsher.gradient(x), BowsherPenalty(VOLUME, 1.0, image(2), 2).gradient(x))
    pls = priors.ParallelLevelSetsPenalty(VOLUME, 1.0, image(1))
    pls.set_scales(0.3, 0.5)
    pls.set_anatomical(image(7))
    torch.testing.assert_close(BETA * pls.gradient(x), make("pls").gradient(x))


@pytest.mark.parametrize(("call", "kind", "message"), [
    (lambda: AnchorPenalty(torch.full(VOLUME.shape, float("nan"))), ValueError, "anchor image has .* not finite"),
    (lambda: AnchorPenalty(image(), weight=-image()), ValueError, "weight must not be negative"),
    (lambda: AnchorPenalty(torch.zeros(1, 2, 2)).set_up(VOLUME), ValueError, "anchor image has shape"),
    (lambda: ScorePenalty(object(), SIGMA), TypeError, "residual"),
    (lambda: ScorePenalty(ResidualOf(mixture_denoiser()), 0.0), ValueError, "noise level"),
    (lambda: PlainPenalty(unbound(), intensity_scale=-1.0), ValueError, "intensity_scale"),
    (lambda: ScorePenalty("no-such-model"), ValueError, "no-such-model"),
    (lambda: PlainPenalty(unbound()).gradient(image()), RuntimeError, "set_up"),
    (lambda: make("rdp").gradient(torch.ones(2, 3, 5)), ValueError, "expected"),
    (lambda: make("rdp").gradient(image().numpy()), TypeError, "image must be a PyTorch tensor"),
    (lambda: make("rdp").value(image().long()), TypeError, "must hold real numbers"),
    (lambda: AnchorPenalty(image()).set_up(VOLUME.shape), TypeError, "geometry must be a sirf_diffusion.ImageGeometry"),
    (lambda: AnchorPenalty(image().numpy()), TypeError, "anchor image must be a PyTorch tensor"),
    (lambda: priors.kappa_image(image(), image()), TypeError, "objective must be an objective"),
    (lambda: priors.kappa_image(make_toy((1, 4, 4))[0], image()), ValueError, "has shape"),
])  # fmt: skip
def test_wrong_use_is_explained(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


# The score penalty ----------------------------------------------------------------------------------------------------

GRID = ImageGeometry((1, 8, 12), (2.0, 2.0, 2.0))


def unbound():
    return ScoreModel(lambda images, times, class_labels: 0.5 * images, VPSchedule(), "x0", multiple=4)


def activity(seed=0):
    return 40 * torch.rand(GRID.shape, generator=torch.Generator().manual_seed(seed)) + 1


def test_it_is_the_negative_log_density_of_noisy_images_whatever_their_unit():
    """Bayes: with beta 1 the value is -log p(x / c) up to a constant, so its differences are exact."""
    penalty = PlainPenalty(ResidualOf(mixture_denoiser(), SCALE), SIGMA, 1.0)
    x, y = image(), image(1)
    expected = mixture_log_density(x / SCALE, SIGMA) - mixture_log_density(y / SCALE, SIGMA)
    assert float(penalty.value(y) - penalty.value(x)) == pytest.approx(float(expected), rel=2e-2)
    unit = PlainPenalty(ResidualOf(mixture_denoiser(), 1.0), SIGMA, 1.0)
    torch.testing.assert_close(penalty.gradient(x), unit.gradient(x / SCALE) / SCALE)
    gaussian = PlainPenalty(ResidualOf(gaussian_denoiser(0.5, 1.0), SCALE), SIGMA, 1.0)
    torch.testing.assert_close(gaussian.gradient(x), (x - SCALE) / (SCALE**2 * (0.5 + SIGMA**2)))
    identity = PlainPenalty(ResidualOf(lambda u, sigma: u, SCALE), SIGMA)
    assert float(identity.gradient(x).abs().max()) < 1e-12


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize(("size", "latent"), [(2.0, 1.0), (5.0, 2.5**3), (1.0, 1.0)])
def test_on_larger_voxels_the_bound_holds_and_is_no_larger_than_it_must_be(size, latent, memory):
    """A denoiser that finds nothing: the penalty is quadratic, and a smooth image has the largest eigenvalue."""
    nothing = ScoreModel(lambda images, time, class_labels: 0 * images[:, :1], VPSchedule(), "x0")
    geometry = ImageGeometry((12, 20, 20), (size,) * 3)
    prior = ScorePenalty(nothing.on(geometry, 1.0, "three"), 0.5, 1.0, memory=memory)
    x = torch.ones(geometry.shape)
    curvature = prior.curvature(x)
    middle = curvature[4:8, 8:12, 8:12]
    assert float(middle.mean()) == pytest.approx(latent * 4 * (1.7 if memory else 1), rel=0.1)
    prior.forget()
    assert bool((prior.gradient(x) <= curvature * (1 + 1e-5)).all())
    for _ in range(20):
        x = prior.hessian_times(x, x / x.norm())
    assert float(x.norm()) <= float(curvature.max()) * (1 + 1e-4)
    prior.forget()
    centre, rho = prior.majoriser(torch.ones(geometry.shape))
    assert bool((rho <= curvature * (1 + 1e-5)).all())
    assert bool((centre >= -1e-5 - memory).all())  # to the minimum, and with memory as far beyond


def test_factor_zero_asks_nothing_of_the_network():
    model = ResidualOf(mixture_denoiser(), SCALE)
    assert not PlainPenalty(model, SIGMA, 0.0).gradient(image()).any()
    assert model.calls == 0


def test_the_scale_comes_from_the_first_image_with_structure_and_stays(caplog):
    penalty = PlainPenalty(unbound(), 0.3, 2.0)
    penalty.set_up(GRID)
    with caplog.at_level(logging.WARNING, "sirf_diffusion"):
        for _ in range(2):
            uniform = torch.full(GRID.shape, 7.0)
            assert not penalty.gradient(uniform).any()
            assert float(penalty.value(uniform)) == 0
    assert sum("uniform" in record.getMessage() for record in caplog.records) == 1
    penalty.set_up(GRID)
    penalty.gradient(activity())
    c = intensity_scale(activity(), GRID)
    assert penalty.intensity_scale == c
    expected = PlainPenalty(unbound().on(GRID, c), 0.3, 2.0)
    for x in (activity(), 3 * activity(1)):
        torch.testing.assert_close(penalty.gradient(x), expected.gradient(x))
        torch.testing.assert_close(penalty.curvature(x), expected.curvature(x))
        torch.testing.assert_close(penalty.hessian_times(x, activity(2)), expected.hessian_times(x, activity(2)))
        torch.testing.assert_close(penalty.value(x), expected.value(x))


def test_the_scale_of_other_data_is_found_anew_unless_it_was_given(caplog):
    penalty, given = PlainPenalty(unbound(), 0.3), PlainPenalty(unbound(), 0.3, intensity_scale=10.0)
    for unit in (1.0, 1.2, 1000.0):
        for each in (penalty, given):
            each.set_up(GRID)
            each.gradient(unit * activity())
    assert penalty.intensity_scale == pytest.approx(1000 * intensity_scale(activity(), GRID))
    assert given.intensity_scale == 10
    assert sum("of other data" in record.getMessage() for record in caplog.records) == 1


def test_a_scale_that_was_told_holds_where_a_run_starts_from_nothing(caplog):
    """The first images of such a run have scales that are several times too small."""
    penalty, c = PlainPenalty(unbound(), 0.3), intensity_scale(activity(), GRID)
    for first, said in ((torch.ones(GRID.shape), False), (activity() / 4, False), (activity() / 4, True)):
        penalty.set_up(GRID)
        if not said:
            assert penalty.find_scale(activity())
        penalty.set_up(GRID)  # by an engine, when a run begins
        for x in (first, activity() / 4, activity()):
            penalty.gradient(x)
        assert penalty.intensity_scale == pytest.approx(c)
        assert ("kept, as early images have smaller ones" in caplog.text) == said


def test_after_a_uniform_image_the_scale_waits_until_it_is_steady(caplog):
    penalty, c = PlainPenalty(unbound(), 0.3), intensity_scale(activity(), GRID)
    penalty.set_up(GRID)
    for size in (0.0, 0.3, 0.3, 0.6, 0.9):
        image = size * activity() if size else torch.ones(GRID.shape)
        assert not penalty.gradient(image).any()
    assert len(caplog.records) == 1
    assert penalty.gradient(0.92 * activity()).any()
    assert penalty.intensity_scale == pytest.approx(0.92 * c)
    penalty.gradient(1.3 * activity())
    assert penalty.intensity_scale == pytest.approx(0.92 * c)
    penalty.gradient(1.5 * activity())  # as in an algorithm of small steps
    assert penalty.intensity_scale == pytest.approx(1.5 * c)
    assert "the image has" in caplog.text
    penalty.set_up(GRID)
    assert penalty.gradient(activity()).any()


def test_the_scale_comes_from_the_data_where_an_objective_is_given():
    penalty = PlainPenalty(unbound())
    for counts in (1e4, 1e6):
        objective, _ = make_toy((1, 16, 16), num_bins=400, counts=counts)
        penalty.set_up(objective.geometry, objective)
        assert penalty.intensity_scale == unbound().for_data(objective).intensity_scale


def test_images_of_a_penalty_that_lie_elsewhere_are_refused():
    elsewhere = ImageGeometry(GRID.shape, GRID.voxel_size, (0.0, 0.0, 10.0))
    penalty = priors.QuadraticPenalty(GRID)
    with pytest.raises(ValueError, match="kappa lies on another grid"):
        penalty.set_kappa(activity(), elsewhere)
    penalty.set_kappa(activity(), GRID)
    anchor = AnchorPenalty()
    anchor.set_anchor(activity(), elsewhere)
    with pytest.raises(ValueError, match="the anchor image lies on another grid"):
        anchor.set_up(GRID)
    anchor.set_anchor(activity())
    anchor.set_up(GRID)


def test_settings_of_the_score_penalty_may_change_after_set_up():
    penalty = PlainPenalty(unbound(), 0.3, intensity_scale=10.0)
    penalty.set_up(GRID)
    penalty.gradient(activity())
    penalty.noise_level, penalty.penalisation_factor = 0.6, 5.0
    expected = PlainPenalty(unbound().on(GRID, 10.0), 0.6, 5.0)
    torch.testing.assert_close(penalty.gradient(activity()), expected.gradient(activity()))
    assert expected.intensity_scale == 10.0


def test_the_anatomical_image_reaches_the_network():
    conditional = ScoreModel(MeanFromAnatomy(), VPSchedule(), multiple=4, in_channels=2)
    penalty = PlainPenalty(conditional, 0.3, intensity_scale=10.0)
    penalty.set_up(GRID)
    plain = penalty.gradient(activity())
    penalty.set_anatomical(activity(5), guidance=0.5)
    bound = conditional.on(GRID, 10.0, anatomical=activity(5), guidance=0.5)
    torch.testing.assert_close(penalty.gradient(activity()), PlainPenalty(bound, 0.3).gradient(activity()))
    assert not torch.allclose(plain, penalty.gradient(activity()))


def test_with_memory_the_maximum_has_the_precision_of_the_images_and_not_of_noisy_ones():
    """A Gaussian's denoiser is the proximal map of (x - mean)^2 / (2 variance), whatever the noise level."""
    objective, _ = make_toy()
    found = []
    for penalty in (
        ScorePenalty(ResidualOf(gaussian_denoiser(0.5, 1.0), 1.5), SIGMA, 3.0, memory=True),
        AnchorPenalty(torch.full(objective.geometry.shape, 1.5, dtype=torch.float64), 3.0 / (1.5**2 * 0.5)),
    ):
        run = MAPEM(objective, penalty, 400)
        run.set_up()
        found.append(run.process().get_output())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bound", [True, False], ids=["network", "any denoiser"])
def test_memory_is_moved_by_the_gradient_of_one_image_alone(bound):
    model = unbound().on(GRID, 10.0) if bound else ResidualOf(mixture_denoiser(), 10.0)
    penalty, x, v = ScorePenalty(model, SIGMA, BETA, memory=True), activity(), activity(1) - 20
    penalty.set_up(GRID)
    first = penalty.gradient(x)
    noise = penalty.noise
    slope = float(penalty.value(x + 1e-2 * v) - penalty.value(x - 1e-2 * v)) / 2e-2
    along = penalty.hessian_times(x, v)
    penalty.gradient(torch.stack([x, v]))
    assert penalty.noise is noise
    second = penalty.gradient(x)
    assert slope == pytest.approx(float((second * v).sum()), rel=3e-2)
    assert not torch.allclose(first, second)
    assert float((v * along).sum()) <= float((v * penalty.curvature(x) * v).sum())
    penalty.set_up(GRID)
    torch.testing.assert_close(penalty.gradient(x), first)
    penalty.gradient(x)
    slow = penalty.noise
    penalty.noise_level *= 2  # the pull of what was found stays
    torch.testing.assert_close(penalty.noise, 4 * slow)
    plain = PlainPenalty(model, SIGMA, BETA)
    torch.testing.assert_close(first, plain.gradient(x) * (MEMORY_RATE + MEMORY_PULL))
    assert plain.noise is None
    assert penalty.settings["memory"]
