"""One script, SIRF's names: the embedded engine's containers, models and OSMAPOSL do what SIRF documents."""

import logging
from functools import partial

import numpy as np
import pytest
import torch
from small_scan import SCANNER

import sirf_diffusion
from sirf_diffusion.engines.embedded.poisson import PoissonObjective
from sirf_diffusion.geometry.exam import ExamInfo
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
    mu = image.get_uniform_copy(0.09)
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


def test_a_number_less_an_image_is_what_it_says_and_warns_that_sirf_differs(image):
    with pytest.warns(UserWarning, match="image - a"):
        np.testing.assert_allclose((1 - image).as_array(), 1 - image.as_array())


def test_data_from_a_file_are_read_only_and_offer_no_view_unless_kept_in_memory(tmp_path, template):
    (template + 2).write(str(tmp_path / "data.hs"))
    assert pet.AcquisitionData(str(tmp_path / "data.hs")).read_only
    pet.AcquisitionData.set_storage_scheme("memory")
    try:
        data = pet.AcquisitionData(str(tmp_path / "data.hs"))
        data.asarray(copy=False)[...] = 5
        assert data.fill(data * 2).max() == 10
    finally:
        pet.AcquisitionData.set_storage_scheme("file")


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


def test_the_patients_position_goes_with_the_data(tmp_path, template, image, model, objective):
    """As SIRF: what is made of an image or of data has their exam information."""
    prone, supine = (ExamInfo(orientation="head_in", rotation=rotation) for rotation in ("prone", "supine"))
    image.exam, template.exam = prone, supine
    for name, made, expected in (
        ("algebra", image * 2, prone),
        ("zoomed", image.zoom_image((1.0, 2.0, 2.0)), prone),
        ("back-projected", model.backward(template), prone),
        ("uniform", template.create_uniform_image(1.0), supine),
        ("reconstructed", osmaposl(objective, image, num_subiterations=1), prone),
    ):
        made.write(str(tmp_path / f"{name}.hv"))
        found = pet.ImageData(str(tmp_path / f"{name}.hv")).exam
        assert (found.orientation, found.rotation) == (expected.orientation, expected.rotation), name
    template.write(str(tmp_path / "data.hs"))
    assert pet.AcquisitionData(str(tmp_path / "data.hs")).exam.rotation == "supine"


def test_a_header_without_its_data_file_is_a_template(tmp_path, template):
    template.write(str(tmp_path / "template.hs"))
    (tmp_path / "template.s").unlink()
    data = pet.AcquisitionData(str(tmp_path / "template.hs"))
    assert data.shape == template.shape
    assert data.size == template.size
    assert data.get_uniform_copy(2.0).max() == 2
    assert pet.AcquisitionData(data).max() == 0
    assert pet.ImageData(data).geometry == pet.ImageData(template).geometry
    with pytest.raises(pet.error, match=r"template\.s"):
        data.as_array()


def test_osmaposl_without_prior_is_osem_with_subsets_in_order(objective, image):
    start = image.get_uniform_copy(2.0)
    result = osmaposl(objective, start)
    osem = OSEM(objective, 2, subset_order=range(4))
    osem.set_up(start.tensor)
    torch.testing.assert_close(result.tensor, osem.process().get_output().tensor, rtol=1e-4, atol=1e-5)


def test_what_a_template_cannot_be_is_an_error_of_this_engine():
    for words, message in ((("Siemens mCT", 5, 7, 4), "time of flight"), (("Siemens mMR", 3, 2), "max_ring_diff")):
        with pytest.raises(pet.error, match=message):
            pet.AcquisitionData(*words)


def test_an_anatomical_image_of_another_grid_is_refused(image):
    prior = pet.PLSPrior()
    coarser = image.zoom_image(zooms=(1.0, 0.5, 0.5), offsets_in_mm=(0.0, 0.0, 0.0), size=(-1, 15, 15))
    prior.set_anatomical_image(coarser)
    with pytest.raises(pet.error, match="another grid"):
        prior.set_up(image)


def test_subsets_that_there_are_not_are_refused(objective, image):
    for number in (1, 4):
        objective.set_num_subsets(number)
        objective.set_up(image)
        for call in (
            objective.get_subset_sensitivity,
            partial(objective.get_backprojection_of_acquisition_ratio, image),
        ):
            with pytest.raises(pet.error, match=f"subset 7 is none of 0 to {number - 1}"):
                call(7)


def test_an_attenuation_image_may_change_once_it_was_given(template, image):
    mu = image.get_uniform_copy(0.09)
    attenuation = pet.AcquisitionSensitivityModel(mu, pet.AcquisitionModelUsingRayTracingMatrix())
    mu.fill(0)
    attenuation.set_up(template)
    assert float(attenuation.factors.min()) < 0.9


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


def test_saturating_penalty_is_reported_once(objective, image, caplog):
    prior = pet.QuadraticPrior()
    prior.set_penalisation_factor(1e6)
    objective.set_prior(prior)
    with caplog.at_level(logging.WARNING, "sirf_diffusion"):
        osmaposl(objective, image)
    assert [record.getMessage() for record in caplog.records if "clipped" in record.getMessage()].__len__() == 1


def test_a_score_or_other_tensor_prior_fits_the_objective(objective, image):
    objective.set_prior(RelativeDifferencePenalty(image.geometry, 2.0, epsilon=0.1))
    with_core = osmaposl(objective, image)
    prior = pet.RelativeDifferencePrior()
    prior.set_penalisation_factor(2.0)
    prior.set_epsilon(0.1)
    objective.set_prior(prior)
    np.testing.assert_array_equal(osmaposl(objective, image).as_array(), with_core.as_array())


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


@pytest.mark.parametrize(("call", "message"), [
    (lambda image, data: image.fill(np.zeros((2, 2, 2))), "cannot fill"),
    (lambda image, data: image.fill("one"), "cannot fill"), (lambda image, data: image + data, "does not match"),
    (lambda image, data: pet.ImageData(3), "wrong argument"), (lambda image, data: pet.ImageData().max(), "empty"),
    (lambda image, data: pet.AcquisitionData("no such scanner"), "unknown scanner"),
    (lambda image, data: pet.AcquisitionSensitivityModel(image), "acquisition model"),
    (lambda image, data: pet.AcquisitionModelUsingRayTracingMatrix().forward(image), "set_up"),
    (lambda image, data: pet.OSMAPOSLReconstructor("recon.par"), "recon.par"),
    (lambda image, data: pet.OSMAPOSLReconstructor().set_up(image), "objective function"),
    (lambda image, data: pet.make_Poisson_loglikelihood(data, "ListMode"), "ListMode"),
    (lambda image, data: pet.make_Poisson_loglikelihood(data).set_up(image), "acquisition model"),
])  # fmt: skip
def test_wrong_use_is_explained(call, message, image, template):
    with pytest.raises((pet.error, ValueError, TypeError), match=message):
        call(image, template)


@pytest.mark.parametrize("name", ["ImageData", "AcquisitionData", "QuadraticPrior", "OSMAPOSLReconstructor"])
def test_methods_that_only_sirf_has_say_so(name):
    kind = getattr(pet, name)
    thing = kind.__new__(kind)
    with pytest.raises(AttributeError, match="no attribute 'get_more' in the embedded engine: use SIRF"):
        thing.get_more()
    assert not hasattr(thing, "__cuda_array_interface__")
