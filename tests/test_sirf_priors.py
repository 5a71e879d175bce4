"""The priors and processors that this package adds to SIRF's names: the right numbers in both engines, and refusals."""

import gc
import inspect
import logging
import os
import subprocess
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from sirf_scan import quiet_sirf
from small_scan import script_objects, write_small_model, write_small_scan
from toy_denoisers import gaussian_score_model

from sirf_diffusion import get_engine, priors
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.interop.stir.views import TensorPrior
from sirf_diffusion.models import ScoreModel, VPSchedule, intensity_scale
from sirf_diffusion.models.denoiser import estimate_noise_level
from sirf_diffusion.priors import one_step_late

GRID = ImageGeometry((3, 15, 17), (4.0, 2.0, 2.5), (1.0, 0.0, -3.0))
SIGMA, SCALE = 0.3, 0.8
REAL = [pytest.mark.requires_sirf, pytest.mark.requires_shim]


def real(test):
    """Mark a test of the real SIRF."""
    return pytest.mark.requires_sirf(pytest.mark.requires_shim(test))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """OSSPS leaves files in the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def sirf():
    with quiet_sirf():
        yield get_engine("sirf")


@pytest.fixture(scope="module", params=["embedded", pytest.param("sirf", marks=REAL)])
def pet(request):
    return get_engine("embedded") if request.param == "embedded" else request.getfixturevalue("sirf")


def random_image(pet, seed=0, geometry=GRID):
    image = pet.ImageData()
    image.initialise(geometry.shape, geometry.voxel_size, geometry.origin)
    return image.fill((0.1 + np.random.default_rng(seed).random(geometry.shape)).astype(np.float32))


def tensor(image):
    return torch.from_numpy(np.array(image.as_array()))


def assert_close(found, expected, tolerance=1e-5):
    """Largest difference relative to the largest value, as for the acceptance of this project."""
    found, expected = (np.asarray(x.as_array() if hasattr(x, "as_array") else x) for x in (found, expected))
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
    assert np.abs(expected).max() > 0


class Scan:
    """A small acquisition with normalisation, attenuation and background, as SIRF reads it from files."""

    def __init__(self, pet, folder, num_subsets=4):
        files = write_small_scan(folder, planes=3, counts=2e5)
        self.pet, self.num_subsets = pet, num_subsets
        self.prompts, self.truth, self.model, _ = script_objects(pet, files)
        self.start = self.truth.get_uniform_copy(1.0)
        self.geometry = files.geometry

    def objective(self, prior=None):
        objective = self.pet.make_Poisson_loglikelihood(self.prompts, acq_model=self.model)
        objective.set_num_subsets(self.num_subsets)
        if prior is not None:
            objective.set_prior(prior)
        return objective

    def reconstruct(self, algorithm, objective, num_subiterations=8):
        recon = getattr(self.pet, algorithm)()
        recon.set_objective_function(objective)
        recon.set_num_subsets(self.num_subsets)
        recon.set_num_subiterations(num_subiterations)
        image = self.start.clone()
        recon.set_up(image)
        recon.set_current_estimate(image)
        recon.process()
        return recon.get_output()


@pytest.fixture(scope="module")
def scan(pet, tmp_path_factory):
    return Scan(pet, tmp_path_factory.mktemp("scan"))


@pytest.fixture(scope="module")
def sirf_scan(sirf, tmp_path_factory):
    return Scan(sirf, tmp_path_factory.mktemp("scan"))


def copies(pet, name, geometry, kappa=None, factor=0.7):
    """SIRF's own prior and its copy in Python."""
    if name == "quadratic":
        theirs, ours = pet.QuadraticPrior(), priors.QuadraticPenalty(geometry, 1.0)
    else:
        theirs, ours = pet.RelativeDifferencePrior(), priors.RelativeDifferencePenalty(geometry, 1.0, 1.5, 0.02)
        theirs.set_gamma(1.5)
        theirs.set_epsilon(0.02)
    ours = pet.PythonPrior(ours)
    for prior in (theirs, ours):
        prior.set_penalisation_factor(factor)
        if kappa is not None:
            prior.set_kappa(kappa)
    return theirs, ours


class Ridge:
    """A user's prior: half the sum of squares, on arrays."""

    def __init__(self):
        self.calls = 0

    def set_up(self, geometry):
        self.geometry = geometry

    def value(self, x):
        return 0.5 * float(np.sum(x.astype(np.float64) ** 2))

    def gradient(self, x, out):
        self.calls += 1
        out[...] = 0  # written before x is read, as many a loop over neighbours does
        out += x

    def curvature(self, x, out):
        out[...] = 1

    def hessian_times(self, x, v, out):
        out[...] = 0
        out += v + 0 * x


def model():
    """Predicts part of what it sees: a denoiser whose effect on an image is easily had."""
    return ScoreModel(lambda images, times, class_labels: 0.9 * images, VPSchedule(), "x0", (4.0, 2.0, 2.0), multiple=4)


def made(name, pet):
    return {
        "score": lambda: pet.ScorePrior(model(), SIGMA, intensity_scale=SCALE, memory=False),
        "anchor": lambda: pet.AnchorPrior(random_image(pet, 3), random_image(pet, 4)),
        "python": lambda: pet.PythonPrior(Ridge()),
        "bowsher": lambda: pet.BowsherPrior(random_image(pet, 5), num_neighbours=5),
    }[name]()


def core(name, pet, factor=1.0, sigma=SIGMA):
    """The tensor prior that it is."""
    three, four, five = (tensor(random_image(pet, seed)) for seed in (3, 4, 5))
    penalty = {
        "score": lambda: priors.ScorePenalty(model(), sigma, factor, intensity_scale=SCALE, memory=False),
        "anchor": lambda: priors.AnchorPenalty(three, factor, four),
        "python": lambda: priors.AnchorPenalty(torch.zeros_like(three), factor),
        "bowsher": lambda: priors.BowsherPenalty(GRID, factor, five, 5),
    }[name]()
    penalty.set_up(GRID)
    return penalty


# The tensors' numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["score", "anchor", "python", "bowsher"])
def test_they_are_sirf_priors_around_the_tensor_priors(pet, name):
    prior, x, direction = made(name, pet), random_image(pet), random_image(pet, 1)
    assert isinstance(prior, pet.Prior)
    assert prior.get_penalisation_factor() == pytest.approx(0.4 if name == "score" else 1)
    prior.set_up(x)
    for factor in (1.0, 4.0):  # may change after set_up
        prior.set_penalisation_factor(factor)
        expected = core(name, pet, factor)
        assert prior.value(x) == prior(x) == pytest.approx(float(expected.value(tensor(x))), rel=1e-4)
        assert_close(prior.gradient(x), expected.gradient(tensor(x)))
        product = prior.multiply_with_Hessian(x, direction)
        assert_close(product, expected.hessian_times(tensor(x), tensor(direction)), 1e-4)
    np.testing.assert_array_equal(x.as_array(), random_image(pet).as_array())
    out = x.get_uniform_copy(7.0)
    gradient = prior.gradient(x).as_array()
    assert prior.gradient(x, out) is out
    np.testing.assert_array_equal(out.as_array(), gradient)
    for at, along in ((x.clone(), direction), (x, direction.clone())):  # in place, on either argument
        alias = along if at is x else at
        assert prior.multiply_with_Hessian(at, along, out=alias) is alias
        np.testing.assert_array_equal(alias.as_array(), product.as_array())
    assert prior.gradient(x, out=x) is x
    np.testing.assert_array_equal(x.as_array(), gradient)


def test_setters_may_be_called_after_set_up(pet):
    x, other, kappa = random_image(pet), random_image(pet, 1), random_image(pet, 2)
    score = made("score", pet)
    score.set_up(x)
    score.set_noise_level(0.6)
    assert score.get_noise_level() == 0.6
    plain = core("score", pet, 0.4, sigma=0.6).gradient(tensor(x))
    assert_close(score.gradient(x), plain, 1e-4)
    score.set_kappa(kappa)
    assert score.get_kappa() is kappa
    assert_close(score.gradient(x), plain * tensor(kappa) ** 2, 1e-4)
    score.set_kappa(None)
    assert_close(score.gradient(x), plain, 1e-4)
    anchor = pet.AnchorPrior()
    anchor.set_anchor_image(random_image(pet, 3))
    anchor.set_up(x)
    anchor.set_weight(kappa)
    anchor.set_anchor_image(other)
    assert (anchor.get_anchor_image(), anchor.get_weight()) == (other, kappa)
    kept = anchor.gradient(x)
    assert_close(kept, (x - other) * kappa)
    other.fill(0.0)  # the prior has a copy
    np.testing.assert_array_equal(anchor.gradient(x).as_array(), kept.as_array())
    bowsher = pet.BowsherPrior(num_neighbours=5)
    bowsher.set_anatomical_image(random_image(pet, 5))
    bowsher.set_up(x)
    bowsher.set_num_neighbours(9)
    bowsher.set_kappa(kappa)
    assert bowsher.get_num_neighbours() == 9
    expected = priors.BowsherPenalty(GRID, 1.0, tensor(bowsher.get_anatomical_image()), 9, tensor(kappa))
    assert_close(bowsher.gradient(x), expected.gradient(tensor(x)))


def test_score_prior_takes_its_scale_from_set_up_or_from_the_first_image(pet, caplog):
    image = random_image(pet)
    prior, late = (pet.ScorePrior(model(), SIGMA) for _ in range(2))
    assert prior.get_intensity_scale() is None
    prior.set_up(image)
    assert prior.get_intensity_scale() == pytest.approx(intensity_scale(tensor(image), GRID))
    late.set_up(image.get_uniform_copy(1))
    with caplog.at_level(logging.WARNING, "sirf_diffusion"):
        assert late.gradient(image.get_uniform_copy(1)).norm() == 0
    assert "uniform" in caplog.text
    assert late.gradient(1.01 * image).norm() == 0  # of the first images that change, the scale is too small
    assert_close(late.gradient(image), prior.gradient(image))
    prior.set_up(1000 * image)
    scale = pytest.approx(1000 * intensity_scale(tensor(image), GRID))
    assert prior.get_intensity_scale() == scale
    if hasattr(prior, "set_up_for_run"):  # of the embedded engine: by an objective function, with any start
        prior.set_up_for_run(200 * image)
        prior.gradient(200 * image)
        assert prior.get_intensity_scale() == scale


@real
def test_factor_zero_asks_the_object_for_nothing_and_the_object_is_told_the_grid(sirf):
    ridge, image = Ridge(), random_image(sirf)
    prior = sirf.PythonPrior(ridge)
    prior.set_up(image)
    assert ridge.geometry == GRID
    prior.set_penalisation_factor(0.0)
    assert prior.value(image) == 0
    assert prior.gradient(image, image.get_uniform_copy(7.0)).norm() == 0
    assert ridge.calls == 0


def test_the_factor_of_a_tensor_prior_becomes_sirfs(pet):
    image = random_image(pet, 0)
    prior = pet.PythonPrior(priors.QuadraticPenalty(GRID, 2.5))
    prior.set_up(image)
    assert prior.get_penalisation_factor() == 2.5
    expected = priors.QuadraticPenalty(GRID, 2.5)
    assert prior.value(image) == pytest.approx(float(expected.value(tensor(image))), rel=1e-5)
    prior.set_penalisation_factor(5.0)
    assert float(prior.penalty.value(tensor(image))) == pytest.approx(prior.value(image), rel=1e-5)


@real
def test_a_penalty_keeps_its_factor_when_sirf_takes_it(sirf):
    penalty = priors.QuadraticPenalty(GRID, 2.5)
    assert [sirf.PythonPrior(penalty).get_penalisation_factor() for _ in range(2)] == [2.5, 2.5]
    assert penalty.penalisation_factor == 2.5


def test_what_is_refused_leaves_the_object_as_it_was(pet):
    image = random_image(pet)
    bowsher = pet.BowsherPrior(image)
    bowsher.set_up(image)
    with pytest.raises(ValueError, match="neighbours"):
        bowsher.set_num_neighbours(99)
    bowsher.set_anatomical_image(image)
    prior = pet.ScorePrior(model(), SIGMA)
    with pytest.raises(ValueError, match="guidance"):
        prior.set_guidance(-2)
    assert prior.get_guidance() == 0


# The objective function -----------------------------------------------------------------------------------------------


def test_objective_is_the_likelihood_less_the_penalty_and_subsets_share_it(pet, scan):
    prior = pet.PythonPrior(Ridge())
    prior.set_penalisation_factor(2.0)
    plain, penalised = scan.objective(), scan.objective(prior)
    image = scan.truth + 0.5
    for objective in (plain, penalised):
        objective.set_up(image)
    assert penalised.value(image) == pytest.approx(plain.value(image) - image.norm() ** 2, rel=1e-6)
    difference = plain.gradient(image) - penalised.gradient(image)
    np.testing.assert_allclose(difference.as_array(), 2 * image.as_array(), rtol=1e-3, atol=0.05)
    share = plain.get_subset_gradient(image, 1) - penalised.get_subset_gradient(image, 1)
    np.testing.assert_allclose(share.as_array(), 2 * image.as_array() / scan.num_subsets, rtol=1e-3, atol=1e-2)
    total = sum((penalised.get_subset_gradient(image, k) for k in range(1, 4)), penalised.get_subset_gradient(image, 0))
    assert_close(total, penalised.gradient(image), 1e-4)


@pytest.mark.parametrize("name", ["score", "memory", "anchor", "python", "bowsher"])
def test_they_work_in_sirfs_algorithms(scan, name):
    pet = scan.pet
    prior = {
        "score": lambda: pet.ScorePrior(model(), 0.5, intensity_scale=float(scan.truth.max())),
        "memory": lambda: pet.ScorePrior(model(), 0.5, intensity_scale=float(scan.truth.max()), memory=True),
        "anchor": lambda: pet.AnchorPrior(scan.start),
        "python": lambda: pet.PythonPrior(Ridge()),
        "bowsher": lambda: pet.BowsherPrior(scan.truth),
    }[name]()
    prior.set_penalisation_factor(0.5)
    for algorithm in ("OSMAPOSLReconstructor", "OSSPSReconstructor")[: 1 + hasattr(pet, "OSSPSReconstructor")]:
        image, plain = (scan.reconstruct(algorithm, scan.objective(p)) for p in (prior, None))
        assert np.isfinite(image.as_array()).all()
        assert (image - plain).norm() > 1e-3 * plain.norm()


@real
def test_kernel_coefficients_are_refused(sirf, sirf_scan):
    objective, reconstructor = sirf_scan.objective(), sirf.KOSMAPOSLReconstructor()
    reconstructor.set_objective_function(objective)
    objective.set_prior(sirf.AnchorPrior(sirf_scan.start))
    with pytest.raises(ValueError, match="kernel coefficients instead of activity"):
        reconstructor.set_up(sirf_scan.start)


@pytest.mark.parametrize(("level", "says"), [(priors.NOISE_LEVEL, 0), (0.2, 1)])
def test_a_prior_too_strong_for_one_step_late_is_said_once(scan, level, says, caplog):
    prior = scan.pet.ScorePrior(model(), noise_level=level, intensity_scale=float(scan.truth.max()), memory=False)
    prior.set_penalisation_factor(priors.PENALISATION_FACTOR)
    scan.reconstruct("OSMAPOSLReconstructor", scan.objective(prior), 2)
    assert sum("use OSSPS or MAPEM" in message for message in caplog.messages) == says


@pytest.mark.parametrize("stable", [True, False])
def test_one_step_late_converges_with_any_factor_of_a_prior_with_memory(scan, stable, monkeypatch):
    if not stable:
        monkeypatch.setattr(priors.ScorePenalty, "prepare_one_step_late", lambda *_: "")
    denoiser = gaussian_score_model(0.06, voxel_size=(4.0, 4.0, 4.0))
    prior = scan.pet.ScorePrior(denoiser, intensity_scale=float(scan.truth.as_array().mean()))
    prior.set_penalisation_factor(100 * priors.PENALISATION_FACTOR)
    few, more = (scan.reconstruct("OSMAPOSLReconstructor", scan.objective(prior), n) for n in (40, 60))
    assert ((more - few).norm() < 0.01 * more.norm()) == stable


@real
def test_a_prior_that_comes_late_needs_an_objective_function_that_is_set_up(sirf, sirf_scan):
    """SIRF ends the process if asked for the sensitivity of another."""
    objective, recon = sirf_scan.objective(), sirf.OSMAPOSLReconstructor()
    recon.set_objective_function(objective)
    recon.set_num_subsets(sirf_scan.num_subsets)
    recon.set_up(sirf_scan.start)
    prior = sirf.ScorePrior(model(), intensity_scale=1.0)
    prior.set_up(sirf_scan.start)
    objective.set_prior(prior)
    objective.set_num_subsets(2)
    with pytest.raises(RuntimeError, match="set_up"):
        recon.set_current_estimate(sirf_scan.start)


def test_a_run_that_diverges_is_said_once(caplog):
    updates = one_step_late.Updates()
    image = torch.rand(GRID.shape)
    for growth in (1.0, 4.0, 8.0, 9.0, 10.0, 40.0, 60.0, 80.0):
        updates.watch(growth * image)
    assert [message.count("diverge") for message in caplog.messages] == [1]


@pytest.mark.parametrize("factor", [-1.0, float("nan"), float("inf"), "auto", None])
def test_a_factor_that_is_none_is_refused_at_once(pet, factor):
    with pytest.raises(ValueError, match="penalisation_factor must be a number"):
        pet.PythonPrior(Ridge()).set_penalisation_factor(factor)


@pytest.mark.parametrize("algorithm", ["OSMAPOSLReconstructor", pytest.param("OSSPSReconstructor", marks=REAL)])
@pytest.mark.parametrize("given", ["estimate", "image"])
def test_a_run_that_is_repeated_gives_the_same_image(scan, algorithm, given):
    """Its prior has a memory, and begins anew."""
    algorithm = algorithm if hasattr(scan.pet, algorithm) else "OSMAPOSLReconstructor"
    prior = scan.pet.ScorePrior(model(), noise_level=0.5, intensity_scale=float(scan.truth.max()))
    prior.set_penalisation_factor(0.3)
    recon = getattr(scan.pet, algorithm)()
    recon.set_objective_function(scan.objective(prior))
    recon.set_num_subsets(scan.num_subsets)
    recon.set_num_subiterations(3)
    recon.set_up(scan.start.clone())
    found = []
    for _ in range(2):
        image = scan.start.clone()
        if given == "estimate":
            recon.set_current_estimate(image)
            recon.process()
            image = recon.get_output()
        else:
            recon.reconstruct(image)
        found.append(tensor(image))
    torch.testing.assert_close(*found, rtol=1e-6, atol=0)
    assert bool((prior.obj.noise != 0).any())


@real
def test_an_image_of_another_grid_is_refused(sirf):
    prior = sirf.AnchorPrior(random_image(sirf))
    prior.set_up(random_image(sirf))
    moved = ImageGeometry(GRID.shape, GRID.voxel_size, (8.0, 0.0, -3.0))
    with pytest.raises(sirf.error, match="another grid"):
        prior.get_gradient(random_image(sirf, geometry=moved))


def test_threads_get_the_gradient_of_factor_one_from_what_stir_calls():
    class Slow(priors.QuadraticPenalty):
        def gradient(self, x):
            factor = self.penalisation_factor
            time.sleep(0.01)
            assert factor == self.penalisation_factor == 1
            return super().gradient(x)

    handed = TensorPrior(Slow(GRID, 0.4))
    x, outs = np.random.default_rng(0).random(GRID.shape, np.float32), []

    def work(_):
        for _ in range(5):
            outs.append(np.zeros_like(x))
            handed.gradient(x, outs[-1])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    expected = priors.QuadraticPenalty(GRID, 1.0).gradient(torch.from_numpy(x)).numpy()
    assert len(outs) == 20
    for out in outs:
        np.testing.assert_array_equal(out, expected)
    assert handed.prior.penalisation_factor == 0.4


# SIRF's numbers -------------------------------------------------------------------------------------------------------


@real
@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize("with_kappa", [False, True], ids=["plain", "kappa"])
@pytest.mark.parametrize("name", ["quadratic", "rdp"])
def test_copies_have_sirfs_value_gradient_and_hessian(sirf, name, with_kappa, planes):
    geometry = ImageGeometry((planes, 15, 17), GRID.voxel_size)
    image, direction = random_image(sirf, 0, geometry), random_image(sirf, 1, geometry)
    theirs, ours = copies(sirf, name, geometry, random_image(sirf, 2, geometry) if with_kappa else None)
    for prior in (theirs, ours):
        prior.set_up(image)
    assert ours.value(image) == pytest.approx(theirs.value(image), rel=1e-5)
    assert ours(image) == ours.value(image)
    assert_close(ours.gradient(image), theirs.gradient(image))
    assert_close(ours.multiply_with_Hessian(image, direction), theirs.multiply_with_Hessian(image, direction))
    start = random_image(sirf, 3, geometry)
    sums = [p.accumulate_Hessian_times_input(image, direction, start.clone()) for p in (ours, theirs)]
    assert_close(*sums)


@real
@pytest.mark.parametrize("with_kappa", [False, True], ids=["plain", "kappa"])
@pytest.mark.parametrize(("algorithm", "name"), [
    ("OSMAPOSLReconstructor", "quadratic"), ("OSMAPOSLReconstructor", "rdp"), ("OSSPSReconstructor", "quadratic"),
])  # fmt: skip
def test_copies_give_sirfs_images(sirf, sirf_scan, algorithm, name, with_kappa):
    kappa = random_image(sirf, 2, sirf_scan.geometry) if with_kappa else None
    theirs, ours = (
        sirf_scan.reconstruct(algorithm, sirf_scan.objective(prior))
        for prior in copies(sirf, name, sirf_scan.geometry, kappa, factor=0.3)
    )
    assert_close(ours, theirs)
    unpenalised = sirf_scan.reconstruct(algorithm, sirf_scan.objective())
    assert (unpenalised - theirs).norm() > 1e-2 * theirs.norm()


@real
def test_relative_differences_may_be_used_in_ossps_which_sirfs_own_may_not(sirf, sirf_scan):
    theirs, ours = copies(sirf, "rdp", sirf_scan.geometry, factor=0.3)
    with pytest.raises(sirf.error):
        sirf_scan.reconstruct("OSSPSReconstructor", sirf_scan.objective(theirs), 1)
    objective = sirf_scan.objective(ours)
    image = sirf_scan.reconstruct("OSSPSReconstructor", objective, 8)
    assert objective.value(image) > objective.value(sirf_scan.start)


# Life times -----------------------------------------------------------------------------------------------------------


@real
def test_a_prior_works_after_python_has_forgotten_it(sirf, sirf_scan):
    ridge = Ridge()
    objective = sirf_scan.objective(sirf.PythonPrior(ridge))
    objective.prior = None  # the reference that SIRF itself keeps
    gc.collect()
    expected = sirf_scan.reconstruct("OSMAPOSLReconstructor", sirf_scan.objective(sirf.PythonPrior(Ridge())))
    gc.collect()
    assert_close(sirf_scan.reconstruct("OSMAPOSLReconstructor", objective), expected, 0)
    assert ridge.calls == 8
    found = objective.get_prior()
    assert type(found) is sirf.Prior
    found.set_penalisation_factor(3.0)
    assert found.value(sirf_scan.truth) == pytest.approx(1.5 * sirf_scan.truth.norm() ** 2, rel=1e-5)


@real
@pytest.mark.parametrize("order", ["prior first", "objective first", "object first"])
def test_nothing_is_left_whatever_goes_first(sirf, sirf_scan, order):
    ridge = Ridge()
    alive = weakref.ref(ridge)
    prior = sirf.PythonPrior(ridge)
    objective = sirf_scan.objective(prior)
    objective.set_up(sirf_scan.start)
    objective.gradient(sirf_scan.start)
    if order == "prior first":
        del prior
        gc.collect()
        objective.gradient(sirf_scan.start)
    elif order == "objective first":
        del objective
        gc.collect()
        prior.gradient(sirf_scan.start)
    del ridge
    gc.collect()
    assert alive() is not None
    prior = objective = None
    gc.collect()
    assert alive() is None


@real
def test_two_priors_live_side_by_side(sirf):
    image = random_image(sirf, 0)
    first, second = sirf.PythonPrior(Ridge()), sirf.AnchorPrior(random_image(sirf, 1))
    for prior in (first, second):
        prior.set_up(image)
    first.set_penalisation_factor(3.0)
    second.set_penalisation_factor(5.0)
    assert_close(first.gradient(image), image * 3)
    assert_close(second.gradient(image), (image - random_image(sirf, 1)) * 5)
    assert_close(first.gradient(image), image * 3)


@real
def test_no_file_is_left_behind(sirf, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sirf.PythonPrior(Ridge())
    assert not list(tmp_path.iterdir())


# Refusals -------------------------------------------------------------------------------------------------------------


@real
def test_errors_of_the_object_reach_the_script(sirf, sirf_scan):
    class Broken(Ridge):
        def gradient(self, x, out):
            raise ValueError("words of the user")

    with pytest.raises(sirf.error, match=r"failed in Python:\W+nValueError: words of the user"):
        sirf_scan.reconstruct("OSMAPOSLReconstructor", sirf_scan.objective(sirf.PythonPrior(Broken())), 1)

    class NotFinite(Ridge):
        def gradient(self, x, out):
            out[...] = x
            out[0, 3, 4] = np.nan

    with pytest.raises(sirf.error, match="1 NaN"):
        sirf_scan.reconstruct("OSMAPOSLReconstructor", sirf_scan.objective(sirf.PythonPrior(NotFinite())), 1)

    class Stopped(Ridge):
        def gradient(self, x, out):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sirf_scan.reconstruct("OSMAPOSLReconstructor", sirf_scan.objective(sirf.PythonPrior(Stopped())), 1)
    # SIRF is still usable afterwards.
    sirf_scan.reconstruct("OSMAPOSLReconstructor", sirf_scan.objective(sirf.PythonPrior(Ridge())), 1)


def test_python_priors_see_read_only_arrays_and_must_fill_their_output():
    class Wrong(Ridge):
        def gradient(self, x, out):
            out[..., 1:] = x[..., 1:]

    class Greedy(Ridge):
        def value(self, x):
            x[...] = 0
            return 0.0

    pet = get_engine("embedded")
    for obj, method, problem, message in (
        (Wrong(), "gradient", FloatingPointError, "overwrite"),
        (Greedy(), "value", ValueError, "read-only"),
    ):
        prior = pet.PythonPrior(obj)
        prior.set_up(random_image(pet))
        with pytest.raises(problem, match=message):
            getattr(prior, method)(random_image(pet))


@pytest.mark.parametrize(("call", "message"), [
    (lambda pet, image: pet.PythonPrior(object()), "gradient"),
    (lambda pet, image: pet.PythonPrior(Ridge()).set_kappa(image), "set_kappa"),
    (lambda pet, image: pet.AnchorPrior(np.zeros(GRID.shape)), "ImageData"),
    (lambda pet, image: pet.AnchorPrior().set_up(image), "set_anchor_image"),
    (lambda pet, image: pet.AnchorPrior(image).set_kappa(image), "set_weight"),
    (lambda pet, image: pet.BowsherPrior().set_up(image), "set_anatomical_image"),
    (lambda pet, image: pet.ScorePrior(model(), -1.0), "noise level"),
    (lambda pet, image: pet.ScorePrior(model()).gradient(image), "set.up"),
    (lambda pet, image: pet.ScoreImageProcessor(model(), -1.0), "noise level"),
    (lambda pet, image: pet.ScoreImageProcessor(model()).set_noise_level(-1.0), "noise level"),
])  # fmt: skip
def test_wrong_use_is_explained(pet, call, message):
    with pytest.raises((pet.error, ValueError, TypeError), match=message):
        call(pet, random_image(pet))


@real
def test_without_the_compiled_part_construction_says_how_to_get_it(tmp_path):
    script = (
        "import sirf_diffusion\n"
        "pet = sirf_diffusion.get_engine('sirf')\n"
        "try:\n    pet.AnchorPrior()\n"
        "except Exception as problem:\n    assert 'stir-diffusion build' in str(problem), problem\n"
        "else:\n    raise SystemExit('no error')\n"
    )
    environment = {**os.environ, "SIRF_DIFFUSION_CACHE": str(tmp_path)}
    child = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr


# Image processors -----------------------------------------------------------------------------------------------------


def test_processor_denoises_a_copy_or_in_place_at_the_level_given_or_estimated(pet):
    image = random_image(pet)
    bound = model().on(GRID, SCALE)
    processor = pet.ScoreImageProcessor(model(), intensity_scale=SCALE, planes="transverse")
    assert processor.get_noise_level() is None
    processor.process(image)
    assert processor.get_noise_level() == pytest.approx(estimate_noise_level(bound, tensor(image)), rel=1e-5)
    processor.set_noise_level(0.25)
    assert processor.get_noise_level() == 0.25
    processor.set_input(image)
    processor.process()
    np.testing.assert_array_equal(image.as_array(), random_image(pet).as_array())
    assert_close(processor.get_output(), bound.denoise_at(tensor(image), 0.25).clamp(min=0))
    processor.apply(image)
    np.testing.assert_array_equal(image.as_array(), processor.get_output().as_array())


def test_a_model_file_is_loaded(pet, tmp_path):
    path, image = write_small_model(tmp_path / "model.safetensors"), random_image(pet)
    prior = pet.ScorePrior(str(path), SIGMA, device="cpu")
    prior.set_up(image)
    assert np.isfinite(prior.value(image))
    assert pet.ScoreImageProcessor(path, 0.2).process(image).shape == image.shape


@real
def test_processor_works_inside_sirfs_acquisition_model(sirf, sirf_scan):
    processor = sirf.ScoreImageProcessor(model(), noise_level=0.3, intensity_scale=float(sirf_scan.truth.max()))
    denoised = processor.process(sirf_scan.truth)
    assert (denoised - sirf_scan.truth).norm() > 1e-2 * sirf_scan.truth.norm()
    plain, with_processor = (sirf.AcquisitionModelUsingRayTracingMatrix() for _ in range(2))
    with_processor.set_image_data_processor(processor)
    del processor
    gc.collect()
    for each in (plain, with_processor):
        each.set_up(sirf_scan.prompts, sirf_scan.start)
    assert_close(with_processor.forward(sirf_scan.truth), plain.forward(denoised), 1e-4)


@pytest.mark.parametrize("name", ["AnchorPrior", "BowsherPrior", "PythonPrior", "ScoreImageProcessor", "ScorePrior"])
@real
def test_the_embedded_engine_offers_the_same_methods(sirf, name):
    ours, embedded = getattr(sirf, name), getattr(get_engine("embedded"), name)
    added = [cls for cls in ours.__mro__ if cls.__module__.startswith("sirf_diffusion")]
    methods = {key for cls in added for key in vars(cls) if key.startswith(("set_", "get_"))} - {"get_gradient"}
    for method in methods | {"__init__"}:
        found, expected = (list(inspect.signature(getattr(cls, method)).parameters) for cls in (ours, embedded))
        assert found == expected, method
