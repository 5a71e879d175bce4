"""One script, SIRF's names: the embedded engine's containers, models and OSMAPOSL do what SIRF documents."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from small_scan import SCANNER

import sirf_diffusion
from sirf_diffusion.engines.embedded.poisson import PoissonObjective
from sirf_diffusion.geometry.projdata import ProjDataGeometry
from sirf_diffusion.priors import RelativeDifferencePenalty
from sirf_diffusion.reconstructors import OSEM

pet = sirf_diffusion.get_engine("embedded")
PROJDATA = ProjDataGeometry.from_scanner(SCANNER, span=1, max_ring_difference=1, num_tangential_positions=25)


@pytest.fixture
def template():
    return pet.AcquisitionData.of(torch.zeros(PROJDATA.shape), PROJDATA)


@pytest.fixture
def image(template):
    image = template.create_uniform_image(1.0, xy=15)
    values = image.as_array()
    values[0, 4:7, 5:11] = 4.0
    return image.fill(values)


@pytest.fixture
def model(template, image):
    """Efficiencies, attenuation and a background, set up as a SIRF script does."""
    efficiency = template.get_uniform_copy(0.5)
    mu = image.get_uniform_copy(0.02)
    attenuation = pet.AcquisitionSensitivityModel(mu, pet.AcquisitionModelUsingRayTracingMatrix())
    sensitivity = pet.AcquisitionSensitivityModel(pet.AcquisitionSensitivityModel(efficiency), attenuation)
    model = pet.AcquisitionModelUsingRayTracingMatrix()
    model.set_num_tangential_LORs(5)
    model.set_acquisition_sensitivity(sensitivity)
    model.set_additive_term(template.get_uniform_copy(3.0))
    model.set_background_term(template.get_uniform_copy(0.25))
    model.set_up(template, image)
    return model


@pytest.fixture
def objective(template, image, model):
    expected = model.forward(image * 5)
    counts = torch.poisson(expected.tensor, generator=torch.Generator().manual_seed(0))
    return pet.make_Poisson_loglikelihood(template.clone().fill(expected).fill(counts.numpy()[None]), acq_model=model)


def osmaposl(objective, start, num_subsets=4, num_subiterations=8):
    reconstructor = pet.OSMAPOSLReconstructor()
    reconstructor.set_objective_function(objective)
    reconstructor.set_num_subsets(num_subsets)
    reconstructor.set_num_subiterations(num_subiterations)
    reconstructor.set_up(start)
    reconstructor.set_current_estimate(start)
    reconstructor.process()
    return reconstructor.get_output()


def test_arithmetic_follows_numpy(image):
    a, b = image.as_array(), (image + 1).as_array()
    for result, expected in (
        (image + image * 2, 3 * a),
        (image / (image + 1), a / b),
        (2 / image, 2 / a),
        (-image, -a),
        (image.power(2), a**2),
        (image.maximum(2), np.maximum(a, 2)),
        (image.sapyb(2.0, image, image), 2 * a + a * a),
    ):
        np.testing.assert_allclose(result.as_array(), expected, rtol=1e-6)
    with pytest.warns(UserWarning, match="image - a"):
        np.testing.assert_allclose((1 - image).as_array(), 1 - a)
    assert image.max() == a.max()
    assert image.norm() == pytest.approx(float(np.linalg.norm(a)), rel=1e-6)
    assert image.dot(image) == pytest.approx(float((a * a).sum()), rel=1e-6)


def test_arrays_are_copies_or_views_as_in_sirf(image):
    copy, view = image.as_array(), image.asarray()
    image *= 2
    assert copy.max() == 4
    assert view.max() == 8


def test_clone_and_uniform_copies_are_independent(image, template):
    clone = image.clone()
    clone.fill(7)
    assert image.max() == 4
    assert image.get_uniform_copy(3).min() == 3
    assert template.get_uniform_copy().max() == 0


def test_shapes_are_those_of_sirf(image, template):
    assert image.dimensions() == (3, 15, 15)
    assert image.voxel_sizes() == (4.0, 4.0, 4.0)
    assert template.dimensions() == (1, 4, 32, 25)
    assert template.as_array().shape == template.shape
    assert pet.ImageData(template).dimensions() == (3, 29, 29)  # 2 ceil(52.8 mm / 4 mm) + 1


def test_default_image_of_a_named_scanner_is_stirs():
    data = pet.AcquisitionData("Siemens_mMR", span=11, max_ring_diff=15, view_mash_factor=2)
    assert data.dimensions()[2] == 126
    image = pet.ImageData(data)
    assert image.dimensions()[0] == 127
    assert image.voxel_sizes() == pytest.approx((2.03125, 2.08626, 2.08626), rel=1e-4)


def test_files_round_trip(tmp_path, image, template):
    image.write(str(tmp_path / "image.hv"))
    (template + 2).write(str(tmp_path / "data.hs"))
    np.testing.assert_array_equal(pet.ImageData(str(tmp_path / "image.hv")).as_array(), image.as_array())
    read = pet.AcquisitionData(str(tmp_path / "data.hs"))
    assert read.min() == read.max() == 2
    assert read.geometry.differences(PROJDATA) == []


def test_model_is_sirfs_formula(model, template, image):
    """y = S (G x + a) + b, and the back-projection is that of S G."""
    bare = pet.AcquisitionModelUsingRayTracingMatrix()
    bare.set_up(template, image)
    lengths = bare.forward(image.get_uniform_copy(1)) * image.voxel_sizes()[2]
    factors = 0.5 * np.exp(-0.002 * lengths.as_array())
    expected = factors * (bare.forward(image).as_array() + 3.0) + 0.25
    np.testing.assert_allclose(model.forward(image).as_array(), expected, rtol=1e-5)
    data = template.clone().fill(np.random.default_rng(0).random(template.shape))
    linear = model.get_linear_acquisition_model()
    assert linear.direct(image).dot(data) == pytest.approx(image.dot(linear.adjoint(data)), rel=1e-5)
    np.testing.assert_allclose(model.get_constant_term().as_array(), factors * 3 + 0.25, rtol=1e-5)


def test_subsets_of_a_projection_add_up_and_keep_the_constant_term(model, image):
    constant = model.get_constant_term().as_array()
    parts = [model.forward(image, subset_num=k, num_subsets=4).as_array() - constant for k in range(4)]
    np.testing.assert_allclose(sum(parts) + constant, model.forward(image).as_array(), rtol=1e-5)
    linear = model.get_linear_acquisition_model()
    backs = [linear.backward(linear.forward(image, 0, 4), k, 4).norm() for k in range(4)]
    assert backs[0] > 0
    assert backs[1:] == [0, 0, 0]


def test_normalise_inverts_unnormalise(model, template):
    sensitivity = model._sensitivity
    data = template.get_uniform_copy(2.0)
    sensitivity.unnormalise(data)
    assert data.max() <= 1.0
    np.testing.assert_allclose(sensitivity.forward(template.get_uniform_copy(2.0)).as_array(), data.as_array())
    sensitivity.normalise(data)
    np.testing.assert_allclose(data.as_array(), 2.0, rtol=1e-5)
    dead = pet.AcquisitionSensitivityModel(template)
    dead.set_up(template)
    assert dead.forward(template + 1).max() == 0
    assert np.isfinite(dead.invert(template + 1).as_array()).all()


def test_background_makes_a_model_affine(model, image):
    assert not model.is_linear()
    with pytest.raises(pet.error, match="background"):
        model.direct(image)


def test_resolution_model_blurs(template, image):
    blurred = pet.AcquisitionModelUsingRayTracingMatrix()
    gaussian = pet.SeparableGaussianImageFilter()
    gaussian.set_fwhms((0.0, 8.0, 8.0))
    blurred.set_image_data_processor(gaussian)
    blurred.set_up(template, image)
    plain = pet.AcquisitionModelUsingRayTracingMatrix()
    plain.set_up(template, image)
    by_hand = plain.forward(gaussian.process(image))
    np.testing.assert_allclose(blurred.forward(image).as_array(), by_hand.as_array(), rtol=1e-5, atol=1e-5)


def test_osmaposl_without_prior_is_osem_with_subsets_in_order(objective, image):
    start = image.get_uniform_copy(2.0)
    result = osmaposl(objective, start)
    osem = OSEM(objective, 2, subset_order=range(4))
    osem.set_up(start.tensor)
    torch.testing.assert_close(result.tensor, osem.process().get_output().tensor, rtol=1e-4, atol=1e-5)


def test_osmaposl_continues_update_by_update(objective, image):
    start = image.get_uniform_copy(2.0)
    whole = osmaposl(objective, start)
    reconstructor = pet.OSMAPOSLReconstructor()
    reconstructor.set_objective_function(objective)
    reconstructor.set_num_subsets(4)
    reconstructor.set_up(start)
    reconstructor.set_current_estimate(start)
    for _ in range(8):
        reconstructor.update_current_estimate()
    assert reconstructor.get_subiteration_num() == 9
    np.testing.assert_allclose(reconstructor.get_current_estimate().as_array(), whole.as_array(), rtol=1e-5)


def test_osmaposl_one_step_late_is_stirs_formula(objective, image):
    prior = pet.RelativeDifferencePrior()
    prior.set_penalisation_factor(0.2)
    prior.set_epsilon(0.01)
    objective.set_prior(prior)
    start = image.clone()
    result = osmaposl(objective, start, num_subsets=4, num_subiterations=1).as_array()
    sensitivity = objective.get_subset_sensitivity(0).as_array()
    ratio = objective.get_backprojection_of_acquisition_ratio(start, 0).as_array()
    late = np.clip(sensitivity + prior.gradient(start).as_array() / 4, sensitivity / 10, 10 * sensitivity)
    expected = start.as_array() * np.divide(ratio, late, out=np.zeros_like(late), where=late > 1e-6 * late.max())
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)


def test_saturating_penalty_is_reported_once(objective, image, caplog):
    prior = pet.QuadraticPrior()
    prior.set_penalisation_factor(1e6)
    objective.set_prior(prior)
    with caplog.at_level(logging.WARNING, "sirf_diffusion"):
        osmaposl(objective, image)
    assert [record.getMessage() for record in caplog.records if "clipped" in record.getMessage()].__len__() == 1


def test_objective_is_likelihood_minus_penalty_and_subset_gradients_share_it(objective, image):
    prior = pet.RelativeDifferencePrior()
    prior.set_penalisation_factor(2.0)
    prior.set_epsilon(0.1)
    prior.set_gamma(1.0)
    objective.set_prior(prior)
    objective.set_num_subsets(4)
    objective.set_up(image)
    likelihood = float(objective.log_likelihood.value(image.tensor))
    assert objective.value(image) == pytest.approx(likelihood - prior.value(image))
    core = RelativeDifferencePenalty(image.geometry, 2.0, gamma=1.0, epsilon=0.1)
    assert prior.value(image) == pytest.approx(float(core.value(image.tensor)))
    parts = [objective.get_subset_gradient(image, k) for k in range(4)]
    full = objective.gradient(image).as_array()
    np.testing.assert_allclose(sum(parts[1:], parts[0]).as_array(), full, rtol=1e-3, atol=1e-3 * np.abs(full).max())


def test_hessian_of_objective_is_the_change_of_its_gradient(objective, image):
    prior = pet.RelativeDifferencePrior()
    prior.set_penalisation_factor(2.0)
    prior.set_epsilon(0.1)
    objective.set_prior(prior)
    objective.set_num_subsets(4)
    objective.set_up(image)
    direction = image.clone().fill(np.random.default_rng(1).random(image.shape))
    for subset in (-1, 2):
        forward, back = (objective.gradient(image.sapyb(1, direction, h), subset).as_array() for h in (1e-2, -1e-2))
        product = objective.multiply_with_Hessian(image, direction, subset)
        scale = float(product.abs().max())
        np.testing.assert_allclose(product.as_array(), (forward - back) / 2e-2, rtol=1e-2, atol=1e-2 * scale)
        added = objective.accumulate_Hessian_times_input(image, direction, subset, out=product.clone())
        np.testing.assert_allclose(added.as_array(), 2 * product.as_array(), rtol=1e-5)
    alone = prior.multiply_with_Hessian(image, direction)
    added = prior.accumulate_Hessian_times_input(image, direction, out=alone.clone())
    np.testing.assert_allclose(added.as_array(), 2 * alone.as_array(), rtol=1e-6)


def test_reconstructors_take_and_give_images_of_the_engine(objective, image):
    objective.set_num_subsets(4)
    objective.set_up(image)
    reconstructor = OSEM(objective, 1)
    start = image.clone()
    reconstructor.set_up(start)
    result = reconstructor.process().get_output()
    assert isinstance(result, pet.ImageData)
    assert result.geometry == image.geometry
    np.testing.assert_array_equal(start.as_array(), image.as_array())
    result.fill(0)
    assert reconstructor.get_output().max() > 0
    with pytest.raises(TypeError, match="ndarray"):
        reconstructor.set_up(image.as_array())


def test_a_score_or_other_tensor_prior_fits_the_objective(objective, image):
    objective.set_prior(RelativeDifferencePenalty(image.geometry, 2.0, epsilon=0.1))
    with_core = osmaposl(objective, image)
    prior = pet.RelativeDifferencePrior()
    prior.set_penalisation_factor(2.0)
    prior.set_epsilon(0.1)
    objective.set_prior(prior)
    np.testing.assert_array_equal(osmaposl(objective, image).as_array(), with_core.as_array())


def test_kappa_and_factor_may_change_after_set_up(image):
    prior = pet.RelativeDifferencePrior()
    prior.set_penalisation_factor(1.0)
    prior.set_up(image)
    before = prior.value(image)
    prior.set_kappa(image.get_uniform_copy(2))
    prior.set_penalisation_factor(3.0)
    assert prior.value(image) == pytest.approx(12 * before, rel=1e-6)


def test_truncation_keeps_the_inscribed_cylinder(image):
    processor = pet.TruncateToCylinderProcessor()
    truncated = processor.process(image.get_uniform_copy(1)).as_array()
    y, x = np.mgrid[-7:8, -7:8]
    np.testing.assert_array_equal(truncated[0] > 0, y**2 + x**2 < 49)
    processor.set_strictly_less_than_radius(False)
    assert processor.process(image.get_uniform_copy(1)).sum() > truncated.sum()


def test_as_objective_takes_likelihoods_and_names_what_it_refuses(objective, image, caplog):
    with pytest.raises(pet.error, match="set_up"):
        sirf_diffusion.as_objective(objective)
    objective.set_up(image)
    likelihood = sirf_diffusion.as_objective(objective)
    assert isinstance(likelihood, PoissonObjective)
    assert sirf_diffusion.as_objective(likelihood) is likelihood
    objective.set_prior(RelativeDifferencePenalty(image.geometry, 2.0))
    with caplog.at_level(logging.WARNING, "sirf_diffusion"):
        assert sirf_diffusion.as_objective(objective) is likelihood
    assert "penalty" in caplog.text
    with pytest.raises(TypeError, match="ndarray"):
        sirf_diffusion.as_objective(np.zeros(3))


def test_get_engine_refuses_unknown_names_and_falls_back_to_the_embedded_one():
    assert sirf_diffusion.get_engine("auto").ImageData is not None
    with pytest.raises(ValueError, match="stir-x"):
        sirf_diffusion.get_engine("stir-x")
    assert "embedded" in pet.get_engine_version_string()


def test_message_redirector_writes_files_while_it_lives(tmp_path):
    log = logging.getLogger("sirf_diffusion.test")
    redirector = pet.MessageRedirector(info=str(tmp_path / "info.txt"), warn=None, errr=None)
    log.info("kept")
    log.warning("elsewhere")
    redirector.close()
    log.info("lost")
    assert (tmp_path / "info.txt").read_text(encoding="utf-8") == "kept\n"


def test_verbosity_is_the_loggers_level():
    log = logging.getLogger("sirf_diffusion")
    before = log.level
    try:
        for verbosity, level in ((0, logging.WARNING), (1, logging.INFO), (5, logging.DEBUG)):
            pet.set_verbosity(verbosity)
            assert log.getEffectiveLevel() == level
            assert pet.get_verbosity() == min(verbosity, 2)
    finally:
        log.setLevel(before)


def test_errors_have_sirfs_value():
    with pytest.raises(pet.error) as problem:
        pet.ImageData(3)
    assert problem.value.value == str(problem.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda image, data: image.fill(np.zeros((2, 2, 2))), "cannot fill"),
        (lambda image, data: image.fill("one"), "cannot fill"),
        (lambda image, data: image + data, "does not match"),
        (lambda image, data: pet.ImageData(3), "wrong argument"),
        (lambda image, data: pet.ImageData().max(), "empty"),
        (lambda image, data: pet.AcquisitionData("no such scanner"), "unknown scanner"),
        (lambda image, data: pet.AcquisitionSensitivityModel(image), "acquisition model"),
        (lambda image, data: pet.AcquisitionModelUsingRayTracingMatrix().forward(image), "set_up"),
        (lambda image, data: pet.OSMAPOSLReconstructor("recon.par"), "recon.par"),
        (lambda image, data: pet.OSMAPOSLReconstructor().set_up(image), "objective function"),
        (lambda image, data: pet.make_Poisson_loglikelihood(data, "ListMode"), "ListMode"),
        (lambda image, data: pet.make_Poisson_loglikelihood(data).set_up(image), "acquisition model"),
    ],
)
def test_wrong_use_is_explained(call, message, image, template):
    with pytest.raises((pet.error, ValueError, TypeError), match=message):
        call(image, template)
