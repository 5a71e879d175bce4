"""The anatomical image of SIRF scripts: an image of another grid or a file, on both engines."""

import logging
import shutil
from dataclasses import replace
from importlib.resources import files
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from patient_images import write_nifti_at
from test_conditioning import MeanFromAnatomy

import sirf_diffusion
from sirf_diffusion.files.interfile import write_image
from sirf_diffusion.geometry.exam import HEAD_FIRST_SUPINE, ExamInfo
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models import ScoreModel, VPSchedule
from sirf_diffusion.models.expected_image import EXPECTED
from sirf_diffusion.patient import AnatomicalImage, write_nifti
from sirf_diffusion.patient.image import SourceImage
from sirf_diffusion.patient.resampling import stir_grid
from sirf_diffusion.priors import BowsherPenalty, ScorePenalty

pytest.importorskip("SimpleITK")

GRID = ImageGeometry((3, 10, 12), (4.0, 2.0, 2.0))
FINE = ImageGeometry((5, 30, 32), (3.0, 1.0, 1.0), (-1.0, 0.5, -0.5))
SCALE = 20.0


@pytest.fixture(params=["embedded", pytest.param("sirf", marks=[pytest.mark.requires_sirf, pytest.mark.requires_shim])])
def pet(request):
    return sirf_diffusion.get_engine(request.param)


def image_of(pet, values, geometry=GRID):
    image = pet.ImageData()
    image.initialise(geometry.shape, geometry.voxel_size, geometry.origin)
    return image.fill(np.asarray(values, dtype=np.float32))


def activity():
    return SCALE * (torch.rand(GRID.shape, generator=torch.Generator().manual_seed(2)) + 0.2)


def anatomy():
    return 100 * torch.rand(FINE.shape, generator=torch.Generator().manual_seed(3)) + 1


def conditional():
    return ScoreModel(MeanFromAnatomy(), VPSchedule(), "eps", (2.0, 2.0, 2.0), multiple=4, in_channels=2)


def given(pet, kind, folder):
    """The anatomical image as a script may have it."""
    if kind == "image":
        return image_of(pet, anatomy(), FINE)
    if kind == "Interfile":
        write_image(folder / "mr.hv", anatomy(), FINE)
        return folder / "mr.hv"
    pytest.importorskip("nibabel")
    return str(write_nifti_at(folder / "mr.nii.gz", anatomy(), FINE, "SLP"))


@pytest.mark.parametrize("kind", ["image", "Interfile", "NIfTI"])
@pytest.mark.parametrize("early", [True, False], ids=["before set_up", "after set_up"])
def test_score_prior(pet, tmp_path, kind, early, caplog):
    x, mr = image_of(pet, activity()), given(pet, kind, tmp_path)
    prior = pet.ScorePrior(conditional(), 0.4, intensity_scale=SCALE, memory=False)
    if not early:
        prior.set_up(x)
    with caplog.at_level(logging.INFO, "sirf_diffusion"):
        prior.set_anatomical_image(mr)
        prior.set_guidance(0.5)
        if early:
            prior.set_up(x)
        found = [prior.get_gradient(x).as_array() for _ in range(2)]
    assert caplog.text.count("is resampled: ") == 1
    assert prior.get_anatomical_image() is mr
    assert prior.get_guidance() == 0.5
    resampled = AnatomicalImage.of(anatomy(), FINE).on(GRID)
    expected = sirf_diffusion.priors.ScorePenalty(
        conditional().on(GRID, SCALE, "three", anatomical=resampled, guidance=0.5), 0.4, memory=False
    ).gradient(activity())
    for gradient in found:
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_guidance_may_change_and_the_image_may_go(pet):
    x = image_of(pet, activity())
    prior = pet.ScorePrior(conditional(), 0.4, intensity_scale=SCALE, memory=False)
    prior.set_anatomical_image(image_of(pet, anatomy(), FINE))
    prior.set_up(x)
    guided = prior.get_gradient(x).as_array()
    prior.set_guidance(-1)
    plain = prior.get_gradient(x).as_array()
    assert not np.allclose(guided, plain, rtol=1e-2, atol=1e-3 * np.abs(plain).max())
    prior.set_anatomical_image(None)
    np.testing.assert_allclose(prior.get_gradient(x).as_array(), plain, rtol=1e-5)


@pytest.mark.parametrize("kind", ["image", "NIfTI"])
def test_processor(pet, tmp_path, kind):
    x = image_of(pet, activity())
    processor = pet.ScoreImageProcessor(conditional(), 0.4, intensity_scale=SCALE)
    processor.set_anatomical_image(given(pet, kind, tmp_path))
    processor.set_guidance(0.25)
    processor.apply(x)
    resampled = AnatomicalImage.of(anatomy(), FINE).on(GRID)
    bound = conditional().on(GRID, SCALE, "three", anatomical=resampled, guidance=0.25)
    expected = bound.denoise_at(activity(), 0.4).clamp(min=0)
    np.testing.assert_allclose(x.as_array(), expected, rtol=1e-3, atol=1e-4 * SCALE)


def test_bowsher_prior(pet, tmp_path):
    x = image_of(pet, activity())
    prior = pet.BowsherPrior(given(pet, "NIfTI", tmp_path), num_neighbours=5)
    prior.set_up(x)
    resampled = AnatomicalImage.of(anatomy(), FINE).on(GRID)
    expected = sirf_diffusion.priors.BowsherPenalty(GRID, 1.0, resampled, 5).gradient(activity())
    np.testing.assert_allclose(prior.get_gradient(x).as_array(), expected, rtol=1e-3, atol=1e-4 * float(expected.max()))


def test_reconstructors_take_a_guided_model():
    """`guided_by` serves what binds the model itself: the scale is not known to the script."""
    from toy_objective import make_toy

    from sirf_diffusion.reconstructors import DDSReconstructor

    objective, _ = make_toy((1, 16, 16), num_bins=400)
    mr = torch.rand(objective.geometry.shape, generator=torch.Generator().manual_seed(0)) + 0.5
    recon = DDSReconstructor(objective, conditional().guided_by(mr, 0.5), num_steps=3)
    found = recon.process().get_output()
    assert recon.record["model"]["conditioning"]["guidance"] == 0.5
    scale = recon.record["model"]["intensity_scale"]
    model = conditional().on(objective.geometry, scale, anatomical=mr, guidance=0.5)
    torch.testing.assert_close(found, DDSReconstructor(objective, model, num_steps=3).process().get_output())
    with pytest.raises(ValueError, match="without anatomical images"):
        ScoreModel(lambda *_, **__: None, VPSchedule()).guided_by(mr)


@pytest.mark.parametrize("position", [HEAD_FIRST_SUPINE, ("feet_in", "supine")])
def test_a_personalised_model_is_shown_its_image_as_the_patient_lies(position):
    model, pet = conditional(), sirf_diffusion.get_engine("embedded")
    source = SourceImage(anatomy().numpy(), stir_grid(FINE, position).affine, "NIfTI")
    model.expected_image = AnatomicalImage(source, EXPECTED)
    x = image_of(pet, activity())
    x.exam = replace(x.exam or ExamInfo(), orientation=position[0], rotation=position[1])
    prior = pet.ScorePrior(model, 0.4, intensity_scale=SCALE, memory=False)
    prior.set_up(x)
    shown = AnatomicalImage.of(anatomy(), FINE).on(GRID)
    expected = ScorePenalty(conditional().on(GRID, SCALE, "three", anatomical=shown), 0.4, memory=False)
    np.testing.assert_allclose(prior.get_gradient(x).as_array(), expected.gradient(activity()), atol=1e-3)
    assert prior.get_anatomical_image() is None
    prior.set_anatomical_image(None)
    np.testing.assert_allclose(prior.get_gradient(x).as_array(), expected.gradient(activity()), atol=1e-3)
    guided = conditional().guided_by(AnatomicalImage.of(anatomy(), FINE))
    images = [pet.ScoreImageProcessor(m, 0.4, intensity_scale=SCALE).process(x).as_array() for m in (model, guided)]
    np.testing.assert_allclose(*images, atol=1e-3)


def test_a_file_given_after_set_up_lies_as_the_patient(tmp_path):
    pet, gradients = sirf_diffusion.get_engine("embedded"), []
    mr = given(pet, "NIfTI", tmp_path)
    for order in ("known before", "known after", "supine"):
        x, prior = image_of(pet, activity()), pet.ScorePrior(conditional(), 0.4, intensity_scale=SCALE, memory=False)
        x.exam = ExamInfo(orientation="head_in", rotation="supine" if order == "supine" else "prone")
        steps = [lambda p=prior: p.set_anatomical_image(mr), lambda p=prior, x=x: p.set_up(x)]
        for step in reversed(steps) if order == "known after" else steps:
            step()
        gradients.append(prior.get_gradient(x).as_array())
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-6)
    assert np.abs(gradients[2] - gradients[0]).max() > 0.01 * np.abs(gradients[0]).max()


PRONE = ExamInfo(orientation="head_in", rotation="prone")


def prone_data(pet, folder):
    """Acquisition data of a patient who lies prone, and the grid that images made of them have."""
    example = files("sirf_diffusion.data") / "brain2d"
    header = (example / "prompts.hs").read_text()
    lines = "patient orientation := head_in\npatient rotation := prone\nimagedata byte order"
    (folder / "prompts.hs").write_text(header.replace("imagedata byte order", lines))
    shutil.copy(example / "prompts.s", folder)
    pet.AcquisitionData.set_storage_scheme("memory")
    data = pet.AcquisitionData(str(folder / "prompts.hs"))
    return data, data.create_uniform_image(1.0, (24, 20))


@pytest.mark.parametrize("kind", ["NIfTI", "Interfile"])
@pytest.mark.parametrize("before", [True, False], ids=["set_up before", "objective alone"])
def test_files_lie_as_the_patient_of_the_data(pet, tmp_path, kind, before):
    """SIRF's images made of data do not tell the position."""
    data, image = prone_data(pet, tmp_path)
    shape, sizes = image.shape, tuple(float(v) for v in image.voxel_sizes())
    grid, generator = ImageGeometry(shape, sizes), torch.Generator().manual_seed(1)
    mr, x = (torch.rand(shape, generator=generator) + 0.5 for _ in range(2))
    write = write_image if kind == "Interfile" else write_nifti
    path = tmp_path / ("mr.hv" if kind == "Interfile" else "mr.nii.gz")
    write(path, mr, grid, exam=PRONE)
    prior = pet.BowsherPrior(path)
    objective = pet.make_Poisson_loglikelihood(data, acq_model=pet.AcquisitionModelUsingRayTracingMatrix())
    objective.set_prior(prior)
    if before:
        prior.set_up(image)
    objective.set_up(image)
    expected = BowsherPenalty(grid, 1.0, mr).gradient(x)
    found = prior.get_gradient(image.fill(x.numpy())).as_array()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_a_model_with_a_file_lies_as_the_patient_of_an_objective(tmp_path, caplog):
    write_nifti(tmp_path / "mr.nii.gz", anatomy(), FINE, PRONE)
    model = conditional().guided_by(tmp_path / "mr.nii.gz")
    data, silent = (SimpleNamespace(geometry=GRID, exam_info=lambda exam=exam: exam) for exam in (PRONE, ExamInfo()))
    found, plain = (model.for_data(d, intensity_scale=SCALE).anatomical_input.anatomy for d in (data, GRID))
    assert "placed for head first" not in caplog.text
    assert torch.equal(model.for_data(silent, intensity_scale=SCALE).anatomical_input.anatomy, plain)
    assert "placed for head first, supine" in caplog.text
    caplog.clear()
    write_image(tmp_path / "mr.hv", anatomy(), FINE, exam=PRONE)  # says so itself
    conditional().guided_by(tmp_path / "mr.hv").for_data(silent, intensity_scale=SCALE)
    assert "placed for head first" not in caplog.text
    shown = AnatomicalImage.of(anatomy(), FINE)
    expected = conditional().on(GRID, SCALE, "three", anatomical=shown).anatomical_input.anatomy
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert float((plain - expected).abs().max()) > 0.01


def test_the_scale_that_was_found_stays_with_another_anatomical_image(pet):
    x, prior = image_of(pet, activity()), pet.ScorePrior(conditional(), 0.4, memory=False)
    prior.set_up(x)
    scale = prior.get_intensity_scale()
    prior.set_anatomical_image(image_of(pet, anatomy(), FINE))
    assert prior.get_intensity_scale() == scale > 0


@pytest.mark.requires_sirf
@pytest.mark.requires_shim
@pytest.mark.parametrize("known", [True, False])
def test_sirfs_own_objective_function_tells_what_its_image_does(tmp_path, caplog, known):
    import sirf.STIR

    pet = sirf_diffusion.get_engine("sirf")
    data, image = prone_data(pet, tmp_path)
    grid = ImageGeometry(image.shape, tuple(float(v) for v in image.voxel_sizes()))
    mr, x = (torch.rand(grid.shape, generator=torch.Generator().manual_seed(k)) + 0.5 for k in (1, 2))
    if known:
        write_image(tmp_path / "start.hv", torch.ones(grid.shape), grid, exam=PRONE)
        image = pet.ImageData(str(tmp_path / "start.hv"))
    write_nifti(tmp_path / "mr.nii.gz", mr, grid, exam=PRONE)
    prior = pet.BowsherPrior(tmp_path / "mr.nii.gz")
    objective = sirf.STIR.make_Poisson_loglikelihood(data, acq_model=pet.AcquisitionModelUsingRayTracingMatrix())
    objective.set_prior(prior)
    objective.set_up(image)
    expected = BowsherPenalty(grid, 1.0, mr).gradient(x)
    found = [prior.get_gradient(image.fill(x.numpy())).as_array() for _ in range(2)][1]
    assert caplog.text.count("is placed for head first, supine") == (0 if known else 1)
    assert np.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())) == known
