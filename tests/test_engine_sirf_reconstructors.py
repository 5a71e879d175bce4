"""Every reconstructor on a SIRF objective function gives the image that it gives on the embedded engine."""

from __future__ import annotations

import pytest
import torch
from sirf_scan import bundled, quiet_sirf

from sirf_diffusion import as_objective
from sirf_diffusion.data import load_example
from sirf_diffusion.engines.autograd import log_likelihood
from sirf_diffusion.models import ScoreModel, intensity_scale
from sirf_diffusion.reconstructors.methods import build_reconstructor
from sirf_diffusion.study.metrics import nrmse

pytestmark = pytest.mark.requires_sirf

NUM_SUBSETS = 6
METHODS = {
    "osem": {"num_iterations": 2},
    "map-rdp": {"num_iterations": 5},
    "map-score": {"num_iterations": 5},
    "dds": {"num_steps": 10},
    "hqs": {"num_steps": 10},
    "lisch": {"num_steps": 10},
}


@pytest.fixture(scope="module")
def pet():
    with quiet_sirf() as module:
        yield module


@pytest.fixture(scope="module")
def scan(pet):
    return bundled(pet)


@pytest.fixture(scope="module")
def embedded():
    return load_example("brain2d").acquisition.objective(NUM_SUBSETS)


@pytest.fixture(scope="module")
def scale(embedded):
    x = build_reconstructor("osem", embedded, {"num_iterations": 1}).process().get_output()
    return intensity_scale(x, embedded.geometry)


@pytest.fixture(scope="module")
def unbound():
    return ScoreModel.load("brain-fdg")


@pytest.mark.parametrize("known", [True, False], ids=["data known", "data unknown"])
@pytest.mark.parametrize("method", METHODS)
def test_image_is_that_of_the_embedded_engine(pet, scan, embedded, unbound, scale, method, known):
    obj = scan.objective(pet, NUM_SUBSETS)
    objective = as_objective(obj, acquisition_data=scan.prompts) if known else as_objective(obj)
    images = []
    for engine in (embedded, objective):
        model = unbound.on(engine.geometry, scale)
        made = build_reconstructor(method, engine, METHODS[method], model=model, intensity_scale=scale, seed=3)
        # From one image: with background, the uniform images of unknown data is another.
        start = embedded.uniform_image()
        made.set_up(objective.to_image(start) if engine is objective else start)
        images.append(made.process().get_output())
    assert isinstance(images[1], pet.ImageData)
    assert images[1].get_info() == scan.truth.get_info()
    error = nrmse(objective.to_tensor(images[1]), images[0])
    print(f"{method}: {100 * error:.2f} %")
    assert error < 0.03


def test_autograd_through_sirf(pet, scan):
    objective = as_objective(scan.objective(pet, NUM_SUBSETS), acquisition_data=scan.prompts)
    x = objective.uniform_image().expand(2, 1, 128, 128).clone().requires_grad_()
    value = log_likelihood(objective, x)
    (value[0] - 2 * value[1]).backward()
    expected = objective.gradient(x[0].detach())
    assert torch.allclose(x.grad[0], expected, atol=1e-4)
    assert torch.allclose(x.grad[1], -2 * expected, atol=1e-4)
