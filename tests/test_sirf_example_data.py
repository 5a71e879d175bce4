"""SIRF's example scripts for OSL and OSSPS, call by call, on SIRF's example data, with our prior in place of theirs."""

import os
from pathlib import Path

import numpy as np
import pytest

from sirf_diffusion import priors

pytestmark = [pytest.mark.requires_sirf, pytest.mark.requires_shim]

DATA = {"thorax": "thorax_single_slice", "brain": "brain"}
NUM_SUBSETS = 4
NUM_SUBITERATIONS = 4
# One-step-late is unstable with strong penalties: with the script's own factor of 10 it multiplies a change of the
# start by 5e-7 into one of 90 % in 4 subiterations, with SIRF's prior as with ours. OSSPS has no such limit.
FACTORS = {"osl": 0.1, "ossps": 10.0}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """OSSPS leaves files in the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module", params=sorted(DATA))
def data(request, pet):
    """Emission image and noisy prompts, drawn here: the example data hold images and templates of sinograms."""
    from sirf.Utilities import examples_data_path

    folder = Path(examples_data_path("PET") or ".", DATA[request.param])
    if not (folder / "emission.v").is_file():
        reason = f"SIRF's example data are not in {folder}: set SIRF_DATA_PATH"
        if os.environ.get("REQUIRE_SIRF") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    emission = pet.ImageData(str(folder / "emission.hv"))
    # The template names itself as its data file: only its geometry is read here.
    prompts = pet.AcquisitionData(str(folder / "template_sinogram.hs")).get_uniform_copy(0)
    acq_model = pet.AcquisitionModelUsingRayTracingMatrix()
    acq_model.set_up(prompts, emission)
    counts = np.random.default_rng(0).poisson(acq_model.forward(emission).as_array())
    return request.param, emission, prompts.fill(counts.astype(np.float32))


def osl(pet, acq_data, image, prior, penalisation_factor, num_subiterations=NUM_SUBITERATIONS):
    """``osl_reconstruction.py``."""
    acq_model = pet.AcquisitionModelUsingRayTracingMatrix()
    prior.set_up(image)
    prior.set_penalisation_factor(penalisation_factor)
    acq_model.set_up(acq_data, image)
    obj_fun = pet.make_Poisson_loglikelihood(acq_data)
    obj_fun.set_acquisition_model(acq_model)
    obj_fun.set_prior(prior)
    recon = pet.OSMAPOSLReconstructor()
    recon.set_objective_function(obj_fun)
    recon.set_num_subsets(NUM_SUBSETS)
    recon.set_num_subiterations(num_subiterations)
    recon.set_input(acq_data)
    recon.set_up(image)
    recon.reconstruct(image)
    return image


def ossps(pet, acq_data, image, prior, penalisation_factor, num_subiterations=NUM_SUBITERATIONS):
    """``ossps_reconstruction.py``."""
    acq_model = pet.AcquisitionModelUsingRayTracingMatrix()
    obj_fun = pet.make_Poisson_loglikelihood(acq_data)
    obj_fun.set_acquisition_model(acq_model)
    obj_fun.set_prior(prior.set_penalisation_factor(penalisation_factor))
    recon = pet.OSSPSReconstructor()
    recon.set_num_subsets(NUM_SUBSETS)
    recon.set_num_subiterations(num_subiterations)
    recon.set_objective_function(obj_fun)
    recon.set_input(acq_data)
    recon.set_up(image)
    for _ in range(num_subiterations):
        recon.update(image)
    return image


def relative_difference(found, expected):
    return np.abs(found.as_array() - expected.as_array()).max() / np.abs(expected.as_array()).max()


@pytest.mark.parametrize("script", [osl, ossps])
def test_scripts_give_the_same_image_with_the_copied_quadratic_prior(pet, data, script):
    from sirf_diffusion.engines.sirf.convert import image_geometry

    _, emission, prompts = data
    start = emission.get_uniform_copy(float(emission.as_array().mean()))
    ours = pet.PythonPrior(priors.QuadraticPenalty(image_geometry(emission), 1.0))
    factor = FACTORS[script.__name__]
    expected = script(pet, prompts, start.clone(), pet.QuadraticPrior(), factor)
    found = script(pet, prompts, start.clone(), ours, factor)
    assert relative_difference(found, expected) <= 1e-5
    unpenalised = script(pet, prompts, start.clone(), pet.QuadraticPrior(), 0.0)
    assert relative_difference(unpenalised, expected) > 1e-2


@pytest.mark.parametrize("script", [osl, ossps])
def test_scripts_run_with_the_bundled_score_model(pet, data, script):
    """Slices of another voxel size and plane thickness than the model's: its grid is adapted, not the user's."""
    _, emission, prompts = data
    early = osl(
        pet, prompts, emission.get_uniform_copy(float(emission.as_array().mean())), pet.QuadraticPrior(), 0.0, 8
    )
    prior = pet.ScorePrior("brain-fdg", noise_level=0.2, planes="transverse", device="cpu")
    # One-step-late tolerates penalties that are small beside the sensitivity; OSSPS any.
    with_prior = script(pet, prompts, early.clone(), prior, 0.5, num_subiterations=4)
    without = script(pet, prompts, early.clone(), pet.QuadraticPrior(), 0.0, num_subiterations=4)
    assert with_prior.shape == emission.shape
    assert np.isfinite(with_prior.as_array()).all()
    assert prior.get_intensity_scale() > 0
    roughness = [float(np.square(np.diff(image.as_array(), axis=-1)).sum()) for image in (with_prior, without)]
    assert roughness[0] < roughness[1]
