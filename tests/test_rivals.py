"""The supervised rivals of the benchmark: OSEM where they know nothing, trained through the projector, resumable."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_supervised import RECIPE, disc, files, layout  # noqa: F401

from benchmarks import rivals
from sirf_diffusion.engines.embedded.acquisition_model import AcquisitionModel
from sirf_diffusion.engines.embedded.poisson import PoissonObjective
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.training import train
from sirf_diffusion.training.data.scans import ScanSimulator
from sirf_diffusion.training.views import Window

pytestmark = pytest.mark.usefixtures("undrawn")
ARCHITECTURE = replace(RECIPE.architecture, in_channels=1)


@pytest.fixture(scope="module")
def scans():
    simulator = ScanSimulator(ImageGeometry((1, 32, 32), (4.0, 4.0, 4.0)), layout())
    images = torch.stack([disc(), 0.5 * disc()])
    return simulator.scans(images, 0.05 * images.sign(), [np.random.default_rng(k) for k in range(2)], 3e4)


def test_untrained_and_without_a_penalty_it_is_osem(scans):
    network, cut = rivals.FBSEMNet(ARCHITECTURE), Window((32, 32), (24, 24), ((4, 4), (4, 4)))
    torch.nn.init.constant_(network.strength, -10)
    subsets, _, images, _ = network.start(scans)
    expected, number = images[-1], len(subsets.sensitivities)
    for k in range(rivals.MODULES * rivals.UPDATES):
        expected = subsets.update(expected, k % number)
    torch.testing.assert_close(network(scans, cut), cut(expected), rtol=1e-3, atol=1e-4)


def test_the_gradient_goes_through_the_projector(scans):
    torch.manual_seed(0)
    network, cut = rivals.FBSEMNet(ARCHITECTURE), Window((32, 32), (24, 24), ((4, 4), (4, 4)))
    torch.nn.init.normal_(network.cnn.layers[-1].weight, 0, 0.02)

    def loss():
        return network(scans, cut, 3).square().mean()

    loss().backward()
    for parameter in (network.strength, network.cnn.layers[-1].weight, network.cnn.layers[0].weight):
        direction, values = parameter.grad / parameter.grad.norm(), []
        with torch.no_grad():
            for step in (3e-3, -3e-3):
                parameter += step * direction
                values.append(float(loss()))
                parameter -= step * direction
        assert (values[0] - values[1]) / 6e-3 == pytest.approx(float(parameter.grad.norm()), rel=0.05)


@pytest.mark.parametrize("kind", rivals.RIVALS)
def test_a_training_goes_on_and_its_file_reconstructs(files, tmp_path, kind, scans):  # noqa: F811
    inputs = rivals.UNet.epochs if kind == "unet" else 1
    recipe = replace(RECIPE, cycles=(2,), architecture=replace(ARCHITECTURE, in_channels=inputs))
    training = rivals.RivalTraining(str(files / "base.safetensors"), files / "ring1.hs", kind=kind)

    def trained(name, *stops):
        for stop in stops:
            train(recipe, tmp_path / name, data=files / "train.h5", supervision=training, max_steps=stop, threads=1)
        return (tmp_path / name).read_bytes()

    assert trained("a.safetensors", None) == trained("b.safetensors", 1, None)
    network = rivals.load(tmp_path / "a.safetensors")
    images = []
    for scale in (1.0, 50.0):  # whatever the unit of the image
        model = AcquisitionModel(scans.projector, scans.factors[0] / scale, background_term=scans.background[0])
        images.append(rivals.reconstruct(network, PoissonObjective(model, scans.prompts[0], 1)) / scale)
    assert float((images[0] - disc()).norm()) < 0.7 * float(disc().norm())
    torch.testing.assert_close(images[1], images[0], rtol=1e-2, atol=1e-2)
