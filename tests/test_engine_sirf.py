"""SIRF's objective functions as objectives: properties that hold whatever the data, against the real SIRF."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from par_files import par_text
from sirf_scan import LIST_MODE, bundled, list_mode, quiet_sirf, time_of_flight

from sirf_diffusion import as_objective, get_engine

pytestmark = pytest.mark.requires_sirf

NUM_SUBSETS = 6


@pytest.fixture(scope="module")
def pet():
    with quiet_sirf() as module:
        yield module


@pytest.fixture(scope="module")
def scan(pet):
    return bundled(pet)


@pytest.fixture(scope="module")
def obj(pet, scan):
    return scan.objective(pet, NUM_SUBSETS)


@pytest.fixture(scope="module", params=["data known", "data unknown"])
def objective(request, obj, scan):
    return as_objective(obj, acquisition_data=scan.prompts) if request.param == "data known" else as_objective(obj)


@pytest.fixture
def x(scan):
    return torch.from_numpy(scan.truth.as_array()) + 1


def test_knowing_the_data_changes_no_number(obj, scan, x):
    known, unknown = as_objective(obj, acquisition_data=scan.prompts), as_objective(obj)
    assert float(known.value(x)) == pytest.approx(float(unknown.value(x)), rel=1e-7)
    assert float(known.value(x)) == pytest.approx(obj.value(known.to_image(x)), rel=1e-7)
    for subset in (None, 2):
        point = known.at(x, subset)
        assert torch.isfinite(point.value)
        scale = float(unknown.sensitivity().max())
        assert torch.allclose(point.gradient(), unknown.gradient(x, subset), atol=1e-5 * scale)


def test_gradient_is_sirfs(objective, obj, x):
    theirs = torch.from_numpy(obj.gradient(objective.to_image(x)).as_array())
    assert torch.allclose(objective.gradient(x), theirs, atol=1e-5 * float(objective.sensitivity().max()))


def test_the_uniform_image_explains_the_counts(obj, scan):
    known = as_objective(obj, acquisition_data=scan.prompts)
    expected = scan.model.forward(known.to_image(known.uniform_image())).sum()
    assert expected == pytest.approx(scan.prompts.sum(), rel=1e-3)
    best = as_objective(obj).uniform_image()
    slope = (known.gradient(best) * best).sum() / (known.sensitivity() * best).sum()
    assert abs(float(slope)) < 2e-3
    assert float(known.value(best)) >= float(known.value(known.uniform_image()))


def test_what_cannot_be_known_is_said(obj, x):
    objective = as_objective(obj)
    with pytest.raises(NotImplementedError, match="acquisition_data"):
        objective.value(x, 0)
    with pytest.raises(NotImplementedError, match="acquisition_data"):
        objective.expected_log_likelihood(x)


def test_leaves_the_users_things_alone(pet, scan):
    obj = scan.objective(pet, NUM_SUBSETS)
    before = [a.as_array().copy() for a in (scan.truth, scan.prompts, scan.template)]
    state = pet.AcquisitionData.get_storage_scheme(), pet.get_verbosity()
    objective = as_objective(obj, acquisition_data=scan.prompts)
    x = objective.to_tensor(scan.truth)
    assert torch.isfinite(objective.at(x).value)
    objective.gradient(x, 3)
    objective.sensitivity(0).fill_(-1)
    x.zero_()
    assert (pet.AcquisitionData.get_storage_scheme(), pet.get_verbosity()) == state
    for array, container in zip(before, (scan.truth, scan.prompts, scan.template), strict=True):
        assert np.array_equal(array, container.as_array())
    assert obj.get_subset_sensitivity(0).min() >= 0


def test_an_attached_penalty_is_left_out_and_stays_attached(pet, scan, obj, x, caplog):
    prior = pet.QuadraticPrior()
    prior.set_penalisation_factor(0.37)
    prior.set_up(scan.template)
    with_prior = scan.objective(pet, NUM_SUBSETS, prior)
    with caplog.at_level(logging.WARNING):
        penalised = as_objective(with_prior)
    assert "penalty" in caplog.text
    plain = as_objective(obj)
    assert float(penalised.value(x)) == pytest.approx(float(plain.value(x)), rel=1e-9)
    assert torch.allclose(penalised.gradient(x), plain.gradient(x), atol=1e-6 * float(plain.sensitivity().max()))
    assert with_prior.get_prior().get_penalisation_factor() == pytest.approx(0.37)
    assert with_prior.value(plain.to_image(x)) < float(plain.value(x)) - 1


def test_needs_an_objective_that_is_set_up(pet, scan, capfd):
    obj = pet.make_Poisson_loglikelihood(scan.prompts, acq_model=scan.model)
    obj.set_num_subsets(NUM_SUBSETS)
    with pytest.raises(RuntimeError, match="set_up"):
        as_objective(obj)
    obj.set_up(scan.template)
    objective = as_objective(obj)
    obj.set_num_subsets(3)
    with pytest.raises(RuntimeError, match="had 6 subsets and has 3"):
        objective.gradient(objective.sensitivity())
    with pytest.raises(RuntimeError, match="set_up"):
        as_objective(obj)
    assert "out-of-range" not in capfd.readouterr().err


def test_a_subset_without_views_is_refused(pet, scan):
    obj = pet.make_Poisson_loglikelihood(scan.prompts, acq_model=scan.model)
    obj.set_num_subsets(scan.prompts.shape[-2] + 1)
    obj.set_up(scan.template)
    with pytest.raises(ValueError, match="sees no voxel"):
        as_objective(obj).sensitivity()


def test_a_model_that_was_left_to_the_objective_function_will_do(pet, scan, x):
    model = pet.AcquisitionModelUsingRayTracingMatrix()
    obj = pet.make_Poisson_loglikelihood(scan.prompts, acq_model=model)
    obj.set_num_subsets(NUM_SUBSETS)
    obj.set_up(scan.template)
    known, unknown = as_objective(obj, acquisition_data=scan.prompts), as_objective(obj)
    assert float(known.value(x)) == pytest.approx(float(unknown.value(x)), rel=1e-7)


def test_other_data_than_the_objectives_are_refused(obj, scan):
    other = scan.prompts.clone()
    other.fill(np.roll(scan.prompts.as_array(), 20, axis=-1))
    with pytest.raises(ValueError, match="not those of the objective function"):
        as_objective(obj, acquisition_data=other)


def test_errors_name_what_is_wrong(objective, x, pet):
    shifted = pet.ImageData()
    shifted.initialise((1, 128, 128), (4.0625, 2.0, 2.0), (0.0, 8.0, 0.0))
    with pytest.raises(ValueError, match="lies on"):
        objective.to_tensor(shifted)
    point = objective.at(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        point.gradient()


def test_the_engines_objective_functions_remember_their_data(scan, x):
    engine = get_engine("sirf")
    obj = scan.objective(engine, NUM_SUBSETS)
    assert as_objective(obj).value(x, 0).shape == ()
    reconstructor = engine.OSMAPOSLReconstructor()
    reconstructor.set_objective_function(obj)
    reconstructor.set_num_subsets(NUM_SUBSETS)
    reconstructor.set_num_subiterations(1)
    reconstructor.set_up(scan.template.get_uniform_copy(1))
    assert engine.ImageData.__module__.startswith("sirf")
    with pytest.raises(AttributeError, match="NoSuchPrior"):
        _ = engine.NoSuchPrior


def test_a_model_that_serves_another_frame_by_then_is_refused(pet, x):
    """SIRF's objective function keeps the terms of its set-up."""
    scan = bundled(pet)
    objective = as_objective(scan.objective(get_engine("sirf"), NUM_SUBSETS))
    before = float(objective.value(x))
    scan.model.set_additive_term(scan.model.get_additive_term().clone())
    assert float(objective.value(x)) == before
    scan.model.set_additive_term(2 * scan.model.get_additive_term())
    with pytest.raises(RuntimeError, match="a model for each frame"):
        objective.value(x)


def test_a_model_that_is_set_up_for_other_images_by_then_is_refused(pet, x):
    """SIRF's value is another one then, without a word."""
    scan = bundled(pet)
    objective = as_objective(scan.objective(get_engine("sirf"), NUM_SUBSETS))
    before = float(objective.value(x))
    scan.model.set_up(scan.prompts, scan.template.clone())
    assert float(objective.value(x)) == before
    coarse = pet.ImageData()
    coarse.initialise((1, 64, 64), (4.0625, 4.0, 4.0))
    scan.model.set_up(scan.prompts, coarse)
    with pytest.raises(RuntimeError, match="a model for each frame and grid"):
        objective.value(x)


def test_a_background_that_is_filled_anew_wants_another_objective_function(pet, x):
    """As between iterations of a scatter estimate."""
    scan = bundled(pet)
    background = 0.1 * scan.model.forward(scan.truth)
    scan.model.set_background_term(background)
    objective = as_objective(scan.objective(get_engine("sirf"), NUM_SUBSETS))
    before = float(objective.value(x))
    background.fill(2 * background.as_array())
    with pytest.raises(RuntimeError, match="make an objective function anew"):
        objective.gradient(x)
    anew = as_objective(scan.objective(get_engine("sirf"), NUM_SUBSETS))
    assert float(anew.value(x)) != pytest.approx(before, rel=1e-6)


def test_a_blur_after_the_set_up_wants_another_one(pet):
    """SIRF keeps the sensitivity of the set-up, and projects with the new model."""
    scan, engine = bundled(pet), get_engine("sirf")
    obj = scan.objective(engine, NUM_SUBSETS)
    blur = pet.SeparableGaussianImageFilter()
    blur.set_fwhms((0, 8, 8))
    scan.model.set_image_data_processor(blur)
    with pytest.raises(ValueError, match="set the objective function up again"):
        as_objective(obj)
    obj.set_up(scan.template)
    as_objective(obj)


@pytest.mark.parametrize("part", ["data", "model"])
def test_parts_exchanged_in_the_objective_function_want_another_objective(pet, x, part):
    scan = bundled(pet)
    obj = scan.objective(get_engine("sirf") if part == "data" else pet, NUM_SUBSETS)
    objective = as_objective(obj)
    if part == "data":
        obj.set_acquisition_data(scan.prompts * 2)
    else:
        model = bundled(pet).model
        model.set_acquisition_sensitivity(pet.AcquisitionSensitivityModel(scan.prompts.get_uniform_copy(2)))
        obj.set_acquisition_model(model)
    obj.set_up(scan.truth)
    for asked in (objective.value, objective.gradient, lambda _: objective.uniform_image()):
        with pytest.raises(RuntimeError, match="given other data or another model"):
            asked(x)


def test_prompts_that_are_filled_anew_want_another_objective(pet, x):
    scan = bundled(pet)
    scan.prompts = scan.prompts.clone()
    obj = scan.objective(get_engine("sirf"), NUM_SUBSETS)
    objective = as_objective(obj)
    before = objective.uniform_image()
    scan.prompts.fill(3 * scan.prompts.as_array())
    with pytest.raises(RuntimeError, match="prompts were filled anew"):
        objective.value(x)
    assert as_objective(obj).uniform_image().max() > 3 * before.max()


@pytest.mark.parametrize(("what", "value", "message"), [
    ("prompts", -1.0, "1 prompts are negative or not finite"), ("additive", np.nan, "counts that are not finite"),
])  # fmt: skip
def test_data_that_cannot_be_are_named(pet, what, value, message):
    scan = bundled(pet)
    changed = (scan.prompts if what == "prompts" else scan.model.get_additive_term()).clone()
    values = changed.as_array()
    values[0, 0, 40, 170] = value
    changed.fill(values)
    if what == "prompts":
        scan.prompts = changed
    else:
        scan.model.set_additive_term(changed)
    with pytest.raises(ValueError, match=message):
        as_objective(scan.objective(get_engine("sirf"), NUM_SUBSETS))


def test_objective_functions_of_parameter_files(pet, scan, tmp_path):
    """SIRF gives them a general class that must not be asked for its acquisition model."""
    from sirf_diffusion import data

    prompts = Path(data.__file__).parent / "brain2d" / "prompts.hs"
    (tmp_path / "osem.par").write_text(par_text(prompts, tmp_path / "out", "use subset sensitivities := 1", subsets=6))
    reconstructor = pet.OSMAPOSLReconstructor(str(tmp_path / "osem.par"))
    reconstructor.set_up(scan.template.get_uniform_copy(1))
    obj = reconstructor.get_objective_function()
    of_file = as_objective(obj)
    model = pet.AcquisitionModelUsingRayTracingMatrix()
    model.set_num_tangential_LORs(10)
    same = pet.make_Poisson_loglikelihood(scan.prompts, acq_model=model)
    same.set_num_subsets(NUM_SUBSETS)
    same.set_up(scan.template)
    by_hand = as_objective(same, acquisition_data=scan.prompts)
    x = of_file.uniform_image()
    assert float(of_file.value(x)) == pytest.approx(float(by_hand.value(x)), rel=1e-7)
    scale = float(by_hand.sensitivity().max())
    assert torch.allclose(of_file.gradient(x, 1), by_hand.gradient(x, 1), atol=1e-5 * scale)
    with pytest.raises(ValueError, match="acquisition_model must be given"):
        as_objective(obj, acquisition_data=scan.prompts)
    known = as_objective(obj, acquisition_data=scan.prompts, acquisition_model=model)
    assert float(known.value(x, 1)) == pytest.approx(float(by_hand.value(x, 1)), rel=1e-9)


def test_storage_on_disk_gives_the_same_numbers(obj, scan, x, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    in_memory = as_objective(obj, acquisition_data=scan.prompts)
    with quiet_sirf("file") as pet:
        on_disk = bundled(pet)
        objective = as_objective(on_disk.objective(pet, NUM_SUBSETS), acquisition_data=on_disk.prompts)
        for subset in (None, 1):
            mine, theirs = objective.at(x, subset), in_memory.at(x, subset)
            assert float(mine.value) == pytest.approx(float(theirs.value), rel=1e-9)
            assert torch.allclose(mine.gradient(), theirs.gradient(), atol=1e-5)
        assert pet.AcquisitionData.get_storage_scheme() == "file"


def test_time_of_flight_data(pet, generator):
    scan = time_of_flight(pet)
    obj = scan.objective(pet, 2)
    known, unknown = as_objective(obj, acquisition_data=scan.prompts), as_objective(obj)
    x = known.uniform_image()
    scale = float(known.sensitivity().max())
    assert scan.prompts.shape[0] == 5
    for subset in (None, 1):
        point = known.at(x, subset)
        assert torch.isfinite(point.value)
        assert torch.allclose(point.gradient(), unknown.gradient(x, subset), atol=1e-4 * scale)
    assert float(known.value(x)) == pytest.approx(float(unknown.value(x)), rel=1e-6)
    total = float(known.value(x, 0) + known.value(x, 1))
    assert total == pytest.approx(float(known.value(x)), rel=1e-9)
    direction = torch.rand(x.shape, generator=generator) * x
    change = known.value(x + 0.05 * direction) - known.value(x - 0.05 * direction)
    assert float(change / 0.1) == pytest.approx(float((known.gradient(x) * direction).sum()), rel=0.01)


def test_list_mode_data_agree_with_their_sinograms(pet, tmp_path):
    scan, events = list_mode(pet, tmp_path)
    sinograms = as_objective(scan.objective(pet, NUM_SUBSETS), acquisition_data=scan.prompts)
    obj = get_engine("sirf").make_Poisson_loglikelihood(events, LIST_MODE, scan.model)
    obj.set_max_segment_num_to_process(0)
    obj.set_cache_path(str(tmp_path))
    obj.set_cache_max_size(200_000)
    obj.set_num_subsets(NUM_SUBSETS)
    with pytest.raises(RuntimeError, match="set_up"):
        as_objective(obj)
    obj.set_up(scan.template)
    with pytest.raises(ValueError, match="list mode takes none"):
        as_objective(obj, acquisition_data=scan.prompts)
    objective = as_objective(obj)
    assert (objective.exam_info().orientation, objective.exam_info().rotation) == ("feet_in", "supine")
    x = sinograms.uniform_image()
    scale = float(sinograms.sensitivity().max())
    for subset in (None, 2):
        assert torch.allclose(objective.gradient(x, subset), sinograms.gradient(x, subset), atol=1e-4 * scale)
    # Values differ by what does not depend on the image.
    gain = float(objective.value(1.5 * x) - objective.value(x))
    assert gain == pytest.approx(float(sinograms.value(1.5 * x) - sinograms.value(x)), rel=1e-3)
    with pytest.raises(NotImplementedError, match="list mode"):
        objective.value(x, 0)
