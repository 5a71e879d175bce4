"""Priors written in Python inside SIRF: the same numbers as SIRF's own, wherever STIR's C++ asks for them."""

from __future__ import annotations

import gc
import inspect
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from sirf_scan import quiet_sirf
from small_scan import script_objects, write_small_model, write_small_scan

from sirf_diffusion import get_engine, priors
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models import ScoreModel, VPSchedule

pytestmark = [pytest.mark.requires_sirf, pytest.mark.requires_shim]

GRID = ImageGeometry((3, 15, 17), (4.0, 2.0, 2.5))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """OSSPS leaves files in the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def pet():
    with quiet_sirf():
        yield get_engine("sirf")


def sirf_image(pet, values, geometry=GRID):
    image = pet.ImageData()
    image.initialise(geometry.shape, geometry.voxel_size, geometry.origin)
    return image.fill(np.asarray(values, dtype=np.float32))


def random_image(pet, seed=0, geometry=GRID):
    return sirf_image(pet, 0.1 + np.random.default_rng(seed).random(geometry.shape), geometry)


def assert_close(found, expected, tolerance=1e-5):
    """Largest difference relative to the largest value, as for the acceptance of this project."""
    found, expected = found.as_array(), expected.as_array()
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


# SIRF's numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize("with_kappa", [False, True], ids=["plain", "kappa"])
@pytest.mark.parametrize("name", ["quadratic", "rdp"])
def test_copies_have_sirfs_value_gradient_and_hessian(pet, name, with_kappa, planes):
    geometry = ImageGeometry((planes, 15, 17), GRID.voxel_size)
    image, direction = random_image(pet, 0, geometry), random_image(pet, 1, geometry)
    theirs, ours = copies(pet, name, geometry, random_image(pet, 2, geometry) if with_kappa else None)
    for prior in (theirs, ours):
        prior.set_up(image)
    assert ours.value(image) == pytest.approx(theirs.value(image), rel=1e-5)
    assert ours(image) == ours.value(image)
    assert_close(ours.gradient(image), theirs.gradient(image))
    assert_close(ours.multiply_with_Hessian(image, direction), theirs.multiply_with_Hessian(image, direction))
    start = random_image(pet, 3, geometry)
    sums = [p.accumulate_Hessian_times_input(image, direction, start.clone()) for p in (ours, theirs)]
    assert_close(*sums)


@pytest.mark.parametrize("with_kappa", [False, True], ids=["plain", "kappa"])
@pytest.mark.parametrize(
    ("algorithm", "name"),
    [("OSMAPOSLReconstructor", "quadratic"), ("OSMAPOSLReconstructor", "rdp"), ("OSSPSReconstructor", "quadratic")],
)
def test_copies_give_sirfs_images(pet, scan, algorithm, name, with_kappa):
    kappa = random_image(pet, 2, scan.geometry) if with_kappa else None
    theirs, ours = (
        scan.reconstruct(algorithm, scan.objective(prior))
        for prior in copies(pet, name, scan.geometry, kappa, factor=0.3)
    )
    assert_close(ours, theirs)
    unpenalised = scan.reconstruct(algorithm, scan.objective())
    assert (unpenalised - theirs).norm() > 1e-2 * theirs.norm()


def test_relative_differences_may_be_used_in_ossps_which_sirfs_own_may_not(pet, scan):
    theirs, ours = copies(pet, "rdp", scan.geometry, factor=0.3)
    with pytest.raises(pet.error):
        scan.reconstruct("OSSPSReconstructor", scan.objective(theirs), 1)
    objective = scan.objective(ours)
    image = scan.reconstruct("OSSPSReconstructor", objective, 8)
    assert objective.value(image) > objective.value(scan.start)


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
    np.testing.assert_allclose(difference.as_array(), 2 * image.as_array(), rtol=1e-3, atol=1e-2)
    share = plain.gradient(image, 1) - penalised.gradient(image, 1)
    np.testing.assert_allclose(share.as_array(), 2 * image.as_array() / scan.num_subsets, rtol=1e-3, atol=1e-2)
    total = sum((penalised.gradient(image, k) for k in range(1, 4)), penalised.gradient(image, 0))
    assert_close(total, penalised.gradient(image), 1e-4)


def test_gradient_is_the_derivative_of_the_value_and_points_uphill(pet):
    _, prior = copies(pet, "rdp", GRID, random_image(pet, 2))
    image, direction = random_image(pet, 0), random_image(pet, 1) - 0.6
    prior.set_up(image)
    h = 1e-2
    difference = (prior.value(image + direction * h) - prior.value(image - direction * h)) / (2 * h)
    assert prior.gradient(image).dot(direction) == pytest.approx(difference, rel=1e-3)
    assert prior.value(image + prior.gradient(image) * 1e-3) > prior.value(image)


def test_gradients_go_where_out_says_also_onto_the_image_itself(pet):
    prior = pet.PythonPrior(Ridge())
    image, direction = random_image(pet, 0), random_image(pet, 1)
    prior.set_up(image)
    expected = prior.gradient(image).as_array()
    out = image.get_uniform_copy(7.0)
    assert prior.gradient(image, out) is out
    np.testing.assert_array_equal(out.as_array(), expected)
    np.testing.assert_array_equal(image.as_array(), random_image(pet, 0).as_array())
    product = prior.multiply_with_Hessian(image, direction).as_array()
    for alias in (image.clone(), direction.clone()):
        at, along = (alias, direction) if (alias - image).norm() == 0 else (image, alias)
        assert prior.multiply_with_Hessian(at, along, out=alias) is alias
        np.testing.assert_array_equal(alias.as_array(), product)
    assert prior.gradient(image, out=image) is image
    np.testing.assert_array_equal(image.as_array(), expected)


# Life times -----------------------------------------------------------------------------------------------------------


def test_a_prior_works_after_python_has_forgotten_it(pet, scan):
    ridge = Ridge()
    objective = scan.objective(pet.PythonPrior(ridge))
    objective.prior = None  # the reference that SIRF itself keeps
    gc.collect()
    expected = scan.reconstruct("OSMAPOSLReconstructor", scan.objective(pet.PythonPrior(Ridge())))
    gc.collect()
    assert_close(scan.reconstruct("OSMAPOSLReconstructor", objective), expected, 0)
    assert ridge.calls == 8
    found = objective.get_prior()
    assert type(found) is pet.Prior
    found.set_penalisation_factor(3.0)
    assert found.value(scan.truth) == pytest.approx(1.5 * scan.truth.norm() ** 2, rel=1e-5)


@pytest.mark.parametrize("order", ["prior first", "objective first", "object first"])
def test_nothing_is_left_whatever_goes_first(pet, scan, order):
    ridge = Ridge()
    alive = weakref.ref(ridge)
    prior = pet.PythonPrior(ridge)
    objective = scan.objective(prior)
    objective.set_up(scan.start)
    objective.gradient(scan.start)
    if order == "prior first":
        del prior
        gc.collect()
        objective.gradient(scan.start)
    elif order == "objective first":
        del objective
        gc.collect()
        prior.gradient(scan.start)
    del ridge
    gc.collect()
    assert alive() is not None
    prior = objective = None
    gc.collect()
    assert alive() is None


def test_two_priors_live_side_by_side(pet):
    image = random_image(pet, 0)
    first, second = pet.PythonPrior(Ridge()), pet.AnchorPrior(random_image(pet, 1))
    for prior in (first, second):
        prior.set_up(image)
    first.set_penalisation_factor(3.0)
    second.set_penalisation_factor(5.0)
    assert_close(first.gradient(image), image * 3)
    assert_close(second.gradient(image), (image - random_image(pet, 1)) * 5)
    assert_close(first.gradient(image), image * 3)


def test_no_file_is_left_behind(pet, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pet.PythonPrior(Ridge())
    assert not list(tmp_path.iterdir())


# Settings -------------------------------------------------------------------------------------------------------------


def test_parameters_may_change_after_set_up(pet):
    image, kappa = random_image(pet, 0), random_image(pet, 1)
    theirs, ours = copies(pet, "rdp", GRID)
    for prior in (theirs, ours):
        prior.set_up(image)
        prior.gradient(image)
        prior.set_kappa(kappa)
        prior.set_penalisation_factor(4.0)
    theirs.set_up(image)
    assert ours.get_penalisation_factor() == 4.0
    assert ours.get_kappa() is kappa
    assert_close(ours.gradient(image), theirs.gradient(image))


def test_the_factor_of_a_tensor_prior_becomes_sirfs(pet):
    image = random_image(pet, 0)
    prior = pet.PythonPrior(priors.QuadraticPenalty(GRID, 2.5))
    prior.set_up(image)
    assert prior.get_penalisation_factor() == 2.5
    expected = priors.QuadraticPenalty(GRID, 2.5)
    assert prior.value(image) == pytest.approx(float(expected.value(torch.from_numpy(image.as_array()))), rel=1e-5)
    prior.set_penalisation_factor(5.0)
    assert float(prior.penalty.value(torch.from_numpy(image.as_array()))) == pytest.approx(prior.value(image), rel=1e-5)


def test_factor_zero_asks_the_object_for_nothing(pet):
    ridge = Ridge()
    prior = pet.PythonPrior(ridge)
    image = random_image(pet, 0)
    prior.set_up(image)
    prior.set_penalisation_factor(0.0)
    assert prior.value(image) == 0
    assert prior.gradient(image, image.get_uniform_copy(7.0)).norm() == 0
    assert ridge.calls == 0


def test_the_object_is_told_the_grid(pet):
    ridge = Ridge()
    geometry = ImageGeometry((3, 15, 17), (4.0, 2.0, 2.5), (1.0, 0.0, -3.0))
    pet.PythonPrior(ridge).set_up(random_image(pet, 0, geometry))
    assert ridge.geometry == geometry


@pytest.fixture
def small_model(tmp_path):
    return write_small_model(tmp_path / "small.safetensors", voxel_size=2.0)


def test_score_prior_is_the_tensor_prior(pet, small_model):
    geometry = ImageGeometry((1, 16, 16), (4.0, 2.0, 2.0))
    image = random_image(pet, 0, geometry)
    prior = pet.ScorePrior(str(small_model), noise_level=0.3, device="cpu")
    assert prior.get_intensity_scale() is None
    prior.set_up(image)
    scale = prior.get_intensity_scale()
    values = torch.from_numpy(image.as_array())
    model = ScoreModel.load(small_model).on(geometry, scale)
    for noise_level, factor in ((0.3, 1.0), (0.1, 2.0)):
        prior.set_noise_level(noise_level)
        prior.set_penalisation_factor(factor)
        assert prior.get_noise_level() == noise_level
        expected = priors.ScorePenalty(model, noise_level, factor)
        np.testing.assert_allclose(prior.gradient(image).as_array(), expected.gradient(values), rtol=1e-4, atol=1e-4)
        assert prior.value(image) == pytest.approx(float(expected.value(values)), rel=1e-4)
    kappa = random_image(pet, 3, geometry)
    plain = prior.gradient(image).as_array()
    prior.set_kappa(kappa)
    np.testing.assert_allclose(prior.gradient(image).as_array(), plain * kappa.as_array() ** 2, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("algorithm", ["OSMAPOSLReconstructor", "OSSPSReconstructor"])
def test_score_prior_works_in_stirs_algorithms(pet, scan, small_model, algorithm, caplog):
    prior = pet.ScorePrior(str(small_model), noise_level=0.5, intensity_scale=float(scan.truth.max()), device="cpu")
    prior.set_penalisation_factor(0.5)
    image = scan.reconstruct(algorithm, scan.objective(prior))
    plain = scan.reconstruct(algorithm, scan.objective())
    assert np.isfinite(image.as_array()).all()
    assert (image - plain).norm() > 1e-3 * plain.norm()
    assert "One Step Late" not in caplog.text
    prior.set_noise_level(0.2)
    scan.reconstruct(algorithm, scan.objective(prior), 1)
    assert ("One Step Late" in caplog.text) == (algorithm == "OSMAPOSLReconstructor")


def test_anchor_prior_is_the_tensor_prior_and_follows_its_setters(pet):
    image, anchor, weight = (random_image(pet, k) for k in range(3))
    prior = pet.AnchorPrior()
    with pytest.raises(pet.error, match="anchor image"):
        prior.set_up(image)
    prior.set_anchor_image(anchor)
    prior.set_penalisation_factor(2.0)
    prior.set_up(image)
    assert_close(prior.gradient(image), (image - anchor) * 2)
    assert prior.value(image) == pytest.approx((image - anchor).norm() ** 2, rel=1e-4)
    prior.set_weight(weight)
    prior.set_anchor_image(weight)
    assert prior.get_anchor_image() is weight
    assert prior.get_weight() is weight
    assert_close(prior.gradient(image), (image - weight) * weight * 2)
    kept = prior.gradient(image).as_array()
    weight.fill(0.0)  # the prior has a copy
    np.testing.assert_array_equal(prior.gradient(image).as_array(), kept)
    with pytest.raises(pet.error, match="set_weight"):
        prior.set_kappa(image)


def test_bowsher_prior_is_the_tensor_prior_and_follows_its_setters(pet):
    image, anatomical, kappa = (random_image(pet, k) for k in range(3))
    prior = pet.BowsherPrior(num_neighbours=5)
    with pytest.raises(pet.error, match="anatomical image"):
        prior.set_up(image)
    prior.set_anatomical_image(anatomical)
    prior.set_up(image)
    tensors = [torch.from_numpy(each.as_array()) for each in (image, anatomical, kappa)]
    expected = priors.BowsherPenalty(GRID, 1.0, tensors[1], 5)
    np.testing.assert_allclose(prior.gradient(image).as_array(), expected.gradient(tensors[0]), rtol=1e-4, atol=1e-5)
    prior.set_num_neighbours(9)
    prior.set_kappa(kappa)
    assert prior.get_num_neighbours() == 9
    assert prior.get_anatomical_image() is anatomical
    expected = priors.BowsherPenalty(GRID, 1.0, tensors[1], 9, tensors[2])
    np.testing.assert_allclose(prior.gradient(image).as_array(), expected.gradient(tensors[0]), rtol=1e-4, atol=1e-5)


# Refusals -------------------------------------------------------------------------------------------------------------


def test_errors_of_the_object_reach_the_script(pet, scan):
    class Broken(Ridge):
        def gradient(self, x, out):
            raise ValueError("words of the user")

    with pytest.raises(pet.error, match="words of the user"):
        scan.reconstruct("OSMAPOSLReconstructor", scan.objective(pet.PythonPrior(Broken())), 1)

    class NotFinite(Ridge):
        def gradient(self, x, out):
            out[...] = x
            out[0, 3, 4] = np.nan

    with pytest.raises(pet.error, match="1 NaN"):
        scan.reconstruct("OSMAPOSLReconstructor", scan.objective(pet.PythonPrior(NotFinite())), 1)
    # SIRF is still usable afterwards.
    scan.reconstruct("OSMAPOSLReconstructor", scan.objective(pet.PythonPrior(Ridge())), 1)


def test_what_is_no_prior_is_refused(pet):
    with pytest.raises(TypeError, match="gradient"):
        pet.PythonPrior(object())
    with pytest.raises(pet.error, match="set_kappa"):
        pet.PythonPrior(Ridge()).set_kappa(random_image(pet))
    with pytest.raises(pet.error, match="ImageData"):
        pet.AnchorPrior(np.zeros(GRID.shape))
    x = torch.from_numpy(random_image(pet).as_array())
    torch.testing.assert_close(pet.PythonPrior(Ridge()).penalty.gradient(x), x)


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


def test_processor_denoises_and_leaves_its_input(pet, small_model):
    geometry = ImageGeometry((1, 16, 16), (4.0, 2.0, 2.0))
    image = random_image(pet, 0, geometry)
    before = image.as_array()
    processor = pet.ScoreImageProcessor(str(small_model), noise_level=0.3, intensity_scale=0.6, device="cpu")
    processor.set_input(image)
    processor.process()
    output = processor.get_output()
    np.testing.assert_array_equal(image.as_array(), before)
    model = ScoreModel.load(small_model).on(geometry, 0.6)
    expected = model.denoise_at(torch.from_numpy(before), 0.3).clamp(min=0)
    np.testing.assert_allclose(output.as_array(), expected, rtol=1e-5, atol=1e-6)
    processor.apply(image)
    np.testing.assert_array_equal(image.as_array(), output.as_array())
    assert processor.get_noise_level() == 0.3


def test_processor_estimates_noise_level_and_scale_for_each_image(pet):
    model = ScoreModel(lambda x, t, class_labels: torch.zeros_like(x), VPSchedule(), "x0", voxel_size=(4.0, 2.0, 2.0))
    geometry = ImageGeometry((1, 16, 16), (4.0, 2.0, 2.0))
    processor = pet.ScoreImageProcessor(model)
    assert processor.get_noise_level() is None
    processor.process(random_image(pet, 0, geometry))
    assert processor.get_noise_level() > 0
    processor.set_noise_level(0.25)
    assert processor.get_noise_level() == 0.25
    with pytest.raises(ValueError, match="noise level"):
        processor.set_noise_level(-1.0)


def test_processor_works_inside_sirfs_acquisition_model(pet, scan, small_model):
    processor = pet.ScoreImageProcessor(
        str(small_model), noise_level=0.3, intensity_scale=float(scan.truth.max()), device="cpu"
    )
    denoised = processor.process(scan.truth)
    assert (denoised - scan.truth).norm() > 1e-2 * scan.truth.norm()
    plain, with_processor = (pet.AcquisitionModelUsingRayTracingMatrix() for _ in range(2))
    with_processor.set_image_data_processor(processor)
    del processor
    gc.collect()
    for model in (plain, with_processor):
        model.set_up(scan.prompts, scan.start)
    assert_close(with_processor.forward(scan.truth), plain.forward(denoised), 1e-4)


# One script, two engines ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["AnchorPrior", "BowsherPrior", "PythonPrior", "ScoreImageProcessor", "ScorePrior"])
def test_the_embedded_engine_offers_the_same_methods(pet, name):
    import sirf_diffusion

    ours, embedded = getattr(pet, name), getattr(sirf_diffusion.get_engine("embedded"), name)
    added = [cls for cls in ours.__mro__ if cls.__module__.startswith("sirf_diffusion")]
    methods = {key for cls in added for key in vars(cls) if key.startswith(("set_", "get_"))} - {"get_gradient"}
    for method in methods | {"__init__"}:
        found, expected = (list(inspect.signature(getattr(cls, method)).parameters) for cls in (ours, embedded))
        assert found == expected, method
