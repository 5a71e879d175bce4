"""The embedded engine's copy of SIRF's names against SIRF itself: same calls, same numbers within the projectors'."""

from __future__ import annotations

import numpy as np
import pytest

import sirf_diffusion
from sirf_diffusion.data import load_example

pytestmark = pytest.mark.requires_sirf

NUM_SUBSETS = 9


@pytest.fixture(scope="module")
def both():
    """The objective function with RDP and kappa, and an image, of either engine."""
    made = []
    folder = load_example("brain2d").folder
    for name in ("sirf", "embedded"):
        pet = sirf_diffusion.get_engine(name)
        pet.set_verbosity(0)
        scheme = pet.AcquisitionData.get_storage_scheme()
        pet.AcquisitionData.set_storage_scheme("memory")
        model = pet.AcquisitionModelUsingRayTracingMatrix()
        model.set_num_tangential_LORs(10)
        factors = pet.AcquisitionData(str(folder / "multiplicative.hs"))
        model.set_acquisition_sensitivity(pet.AcquisitionSensitivityModel(factors))
        model.set_additive_term(pet.AcquisitionData(str(folder / "additive.hs")))
        objective = pet.make_Poisson_loglikelihood(pet.AcquisitionData(str(folder / "prompts.hs")), acq_model=model)
        pet.AcquisitionData.set_storage_scheme(scheme)
        image = pet.ImageData(str(folder / "truth.hv")) + 0.5
        prior = pet.RelativeDifferencePrior()
        prior.set_penalisation_factor(0.005)
        prior.set_gamma(2.0)
        prior.set_epsilon(0.05)
        prior.set_kappa(image.power(0.5))
        prior.set_up(image)
        objective.set_prior(prior)
        objective.set_num_subsets(NUM_SUBSETS)
        objective.set_up(image)
        made.append((pet, objective, prior, image))
    return made


def same(both, compute, tolerance):
    real, ours = (compute(*each) for each in both)
    real, ours = (np.asarray(v.as_array() if hasattr(v, "as_array") else v, dtype=float) for v in (real, ours))
    assert real.shape == ours.shape
    assert np.linalg.norm(real - ours) <= tolerance * np.linalg.norm(real)


def osem(pet, objective, prior, image):
    reconstructor = pet.OSMAPOSLReconstructor()
    reconstructor.set_objective_function(objective)
    reconstructor.set_num_subsets(NUM_SUBSETS)
    reconstructor.set_num_subiterations(NUM_SUBSETS)
    reconstructor.set_up(image)
    reconstructor.set_current_estimate(image)
    reconstructor.process()
    return reconstructor.get_output()


@pytest.mark.parametrize(
    ("compute", "tolerance"),
    [
        (lambda pet, objective, prior, x: objective.value(x), 1e-4),
        (lambda pet, objective, prior, x: prior.value(x), 1e-5),
        (lambda pet, objective, prior, x: prior.gradient(x), 1e-5),
        (lambda pet, objective, prior, x: prior.multiply_with_Hessian(x, x * x), 1e-4),
        (lambda pet, objective, prior, x: prior.accumulate_Hessian_times_input(x, x * x, out=x.clone()), 1e-4),
        (lambda pet, objective, prior, x: objective.get_subset_sensitivity(3), 0.02),
        (lambda pet, objective, prior, x: objective.gradient(x), 0.05),
        (lambda pet, objective, prior, x: objective.get_subset_gradient(x, 4), 0.05),
        (lambda pet, objective, prior, x: objective.multiply_with_Hessian(x, x * x), 0.02),
        (lambda pet, objective, prior, x: objective.multiply_with_Hessian(x, x * x, subset=2), 0.02),
        (osem, 0.02),
    ],
    ids=[
        "value", "prior", "prior gradient", "prior Hessian", "prior Hessian added", "subset sensitivity", "gradient",
        "subset gradient", "Hessian", "subset Hessian", "one-step-late",
    ],
)  # fmt: skip
def test_same_calls_give_the_same_numbers(both, compute, tolerance):
    same(both, compute, tolerance)


def test_reconstructors_give_images_of_the_engine_they_work_on(both):
    for pet, objective, _, image in both:
        reconstructor = sirf_diffusion.OSEM(objective, 1)
        reconstructor.set_up(image)
        output = reconstructor.process().get_output()
        assert isinstance(output, pet.ImageData)
        assert output.voxel_sizes() == pytest.approx(image.voxel_sizes())
