"""STIR-Python's objective functions as objectives of this package, against the embedded engine."""

import logging

import numpy as np
import pytest
import torch
from stir_scan import FOLDER, stir_objective

from sirf_diffusion.data import load_example
from sirf_diffusion.engines import as_objective
from sirf_diffusion.engines.stir.objective import stir_version
from sirf_diffusion.study.reconstruction import reconstruct

pytestmark = pytest.mark.requires_stir


@pytest.fixture(scope="module")
def slice_():
    """Objective of STIR, the same of the embedded engine, the true image as a tensor."""
    obj, _ = stir_objective()
    example = load_example("brain2d")
    return as_objective(obj), example.acquisition.objective(2), example.truth


@pytest.fixture
def fresh():
    return as_objective(stir_objective()[0])


def test_an_evaluation_is_of_the_image_as_it_was_and_of_the_active_ones(fresh, slice_):
    truth = slice_[2]
    x = torch.stack((truth, 2 * truth, 3 * truth))
    expected = fresh.gradient(x)
    value = fresh.value(x)
    evaluation = fresh.at(x)
    x.zero_()
    assert torch.equal(evaluation.value, value)
    assert torch.equal(evaluation.gradient(torch.tensor([True, False, True])), expected[[0, 2]])
    assert evaluation.gradient(torch.zeros(3, dtype=torch.bool)).shape == (0, *truth.shape)


def test_images_cross_without_flips_and_keep_what_the_data_know(slice_, generator):
    stir, _, _ = slice_
    x = torch.rand(stir.geometry.shape, generator=generator)
    image = stir.to_image(x)
    assert torch.equal(torch.from_numpy(image.as_array()), x)
    assert torch.equal(stir.to_tensor(image), x)
    data = stir.stir_objective.get_proj_data().get_exam_info()
    assert image.get_exam_info().parameter_info() == data.parameter_info()
    before = x.clone()
    stir.to_tensor(image).zero_()
    image.fill(0)
    assert torch.equal(x, before)


def test_voxels_lie_where_stir_has_them(slice_):
    import stir as toolkit

    from sirf_diffusion.engines.stir.images import geometry_of

    _, image = stir_objective("brain3d", set_up=False)
    geometry = geometry_of(image)
    assert geometry == load_example("brain3d").acquisition.geometry
    index = toolkit.Int3BasicCoordinate()
    first = image.get_min_indices()
    for axis, offset in ((1, 3), (2, 5), (3, 7)):
        index[axis] = first[axis] + offset
    position = image.get_physical_coordinates_for_indices(index)
    _, ny, nx = geometry.shape
    for axis, offset, centre in ((1, 3, 0), (2, 5, ny // 2), (3, 7, nx // 2)):
        expected = geometry.origin[axis - 1] + (offset - centre) * geometry.voxel_size[axis - 1]
        assert position[axis] == pytest.approx(expected)


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda o, x: o.to_tensor(stir_objective("brain3d", set_up=False)[1]), ValueError, "grid"),
    (lambda o, x: o.to_tensor("an image"), TypeError, "FloatVoxelsOnCartesianGrid"),
    (lambda o, x: o.gradient(torch.full_like(x, torch.inf)), ValueError, "values that are not finite"),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_stir_sees_it(slice_, call, error, message):
    with pytest.raises(error, match=message):
        call(slice_[0], slice_[2])


def test_an_objective_function_that_was_not_set_up_is_refused(capfd):
    import stir

    with pytest.raises(TypeError, match="get_objective_function"):
        as_objective(stir.OSMAPOSLReconstruction3DFloat())
    with pytest.raises(ValueError, match="set_up"):
        as_objective(stir_objective(set_up=False)[0])
    obj, _ = stir_objective()
    capfd.readouterr()
    as_objective(obj)
    assert "ERROR" not in capfd.readouterr().err
    obj.set_recompute_sensitivity(True)
    obj.set_num_subsets(3)
    with pytest.raises(ValueError, match="set_up"):
        as_objective(obj)


def test_a_prior_is_left_out_with_one_warning(caplog, slice_):
    import stir

    prior = stir.QuadraticPrior3DFloat(False, 3.0)
    with caplog.at_level(logging.WARNING):
        with_prior = as_objective(stir_objective(prior=prior)[0])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "QuadraticPrior" in caplog.text
    truth = slice_[2]
    assert float(with_prior.value(truth)) == pytest.approx(float(slice_[0].value(truth)), rel=1e-9)
    assert torch.allclose(with_prior.gradient(truth), slice_[0].gradient(truth), atol=1e-6)


@pytest.mark.parametrize("options", [
    {"additive": False}, {"additive": False, "normalisation": False}, {"example": "brain3d"},
    {"example": "brain3d", "max_segment": 0},
], ids=["no background", "no normalisation", "oblique", "direct only"])  # fmt: skip
def test_counts_are_those_behind_stirs_own_value(options):
    obj, truth = stir_objective(**options)
    objective = as_objective(obj)
    x = objective.to_tensor(truth)
    counts = objective._known_counts()
    q, y = (torch.from_numpy(a).double() for a in (counts.expected(objective.to_image(x)), counts.prompts))
    expected = (torch.xlogy(y, q.clamp_min(1e-4 * y)) - q.clamp_min(1e-4 * y)).sum()
    assert float(objective.value(x)) == pytest.approx(float(expected), rel=1e-6)
    uniform = objective.uniform_image()
    predicted = float(counts.expected(objective.to_image(uniform)).sum(dtype="float64"))
    assert predicted == pytest.approx(counts.num_prompts, rel=1e-3)


@pytest.mark.parametrize(("what", "value", "message"), [
    ("prompts", -1.0, "1 prompts are negative or not finite"), ("additive", np.nan, "not finite .*: look"),
])  # fmt: skip
def test_data_that_cannot_be_are_named(what, value, message):
    """STIR takes them, and its log-likelihood is no number, or none of counts."""
    import stir

    obj, truth = stir_objective()
    changed = stir.ProjDataInMemory(obj.get_proj_data() if what == "prompts" else obj.get_additive_proj_data())
    values = changed.as_array()
    values.reshape(-1)[values.size // 2] = value
    changed.fill(values.flat)
    (obj.set_proj_data_sptr if what == "prompts" else obj.set_additive_proj_data_sptr)(changed)
    assert obj.set_up(truth).succeeded()
    with pytest.raises(ValueError, match=message):
        as_objective(obj).uniform_image()


@pytest.mark.parametrize("asked", [
    lambda o, x: o.value(x), lambda o, _: o.uniform_image(), lambda o, x: o.expected_log_likelihood(x),
])  # fmt: skip
@pytest.mark.parametrize("part", ["prompts", "normalisation"])
def test_data_exchanged_in_the_objective_function_want_another_objective(part, asked, slice_):
    import stir

    obj, image = stir_objective()
    objective, given = as_objective(obj), stir.ProjData.read_from_file(str(FOLDER / "brain2d" / "prompts.hs"))
    objective.uniform_image()
    other = stir.ProjDataInMemory(given.get_exam_info(), given.get_proj_data_info())
    other.fill((2 * given.as_array() if part == "prompts" else np.full_like(given.as_array(), 2)).flat)
    if part == "prompts":
        obj.set_proj_data_sptr(other)
    else:
        obj.set_normalisation_sptr(stir.BinNormalisationFromProjData(other))
    assert obj.set_up(image).succeeded()
    with pytest.raises(RuntimeError, match="given other data or another model"):
        asked(objective, slice_[2])


def test_a_subsets_gradient_is_the_one_of_osmaposls_update(slice_):
    obj, image = stir_objective(set_up=False)
    obj.set_use_subset_sensitivities(False)
    assert obj.set_up(image).succeeded()
    objective, result = as_objective(obj), image.get_empty_copy()
    obj.compute_sub_gradient_without_penalty_plus_sensitivity(result, image, 1)
    ratio = objective.gradient(slice_[2], 1) + objective.sensitivity(1)
    assert torch.allclose(ratio, objective.to_tensor(result), atol=1e-5 * float(ratio.max()))


def test_reconstruct_tells_the_engine_and_counts_everything(fresh):
    result = reconstruct(fresh, "map-rdp", settings={"num_iterations": 2})
    record = result.record
    assert record["engine"] == {"name": "stir", "version": stir_version()}
    assert record["engine"]["version"].split(".")[0].isdigit()
    # All but the log-likelihood of the image that is handed out.
    assert record["projections"]["forward"] == pytest.approx(fresh.counter.forward - 1, abs=1.01)
    assert record["projections"]["back"] == pytest.approx(fresh.counter.back)
    assert isinstance(result.image, torch.Tensor)
    assert result.geometry == fresh.geometry
