"""Reconstructors on the objective of an engine that has image objects of its own."""

from dataclasses import dataclass

import pytest
import torch
from toy_model import Gaussian, ToyModel
from toy_objective import ToyObjective, make_toy

from sirf_diffusion.engines import Evaluation
from sirf_diffusion.reconstructors import OSEM, DDSReconstructor


@dataclass
class Image:
    """An engine's image: values and something about the patient that a tensor cannot carry."""

    values: list
    patient: str


class WithImages(ToyObjective):
    def to_tensor(self, image):
        return torch.tensor(image.values, dtype=torch.float64)

    def to_image(self, x):
        return Image(x.tolist(), "the data's")


@pytest.fixture
def objectives():
    plain, _ = make_toy((1, 6, 6))
    return plain, WithImages(plain.matrix, plain.prompts, plain.background, plain.geometry.shape)


def test_output_is_an_image_of_the_engine(objectives):
    plain, with_images = objectives
    image = OSEM(with_images, 3).process().get_output()
    assert image.patient == "the data's"
    assert torch.equal(torch.tensor(image.values, dtype=torch.float64), OSEM(plain, 3).process().get_output())


def test_an_image_of_the_engine_starts_a_run_and_is_left_as_it_was(objectives):
    plain, with_images = objectives
    start = torch.linspace(0, 2, 36, dtype=torch.float64).reshape(1, 6, 6)
    given = Image(start.tolist(), "the user's")
    of_tensor, of_image = OSEM(plain, 2), OSEM(with_images, 2)
    of_tensor.set_up(start)
    of_image.set_up(given)
    found = of_image.process().get_output()
    assert torch.equal(torch.tensor(found.values, dtype=torch.float64), of_tensor.process().get_output())
    assert given.values == start.tolist()


def test_samples_and_uncertainty_are_images_of_the_engine(objectives):
    plain, with_images = objectives
    runs = []
    for objective in (plain, with_images):
        model = ToyModel(Gaussian(1.0, 0.25)).on(objective.geometry, 1.0)
        runs.append(DDSReconstructor(objective, model, num_steps=4, num_samples=2).process())
    tensors, images = (run.get_samples() for run in runs)
    assert torch.equal(torch.stack([torch.tensor(image.values, dtype=torch.float64) for image in images]), tensors)
    assert torch.equal(torch.tensor(runs[1].get_uncertainty().values, dtype=torch.float64), runs[0].get_uncertainty())


def test_another_kind_of_image_is_refused(objectives):
    with pytest.raises(TypeError, match="initial_image"):
        OSEM(objectives[0], 1).set_up(Image([[[1.0]]], ""))


def test_a_value_that_costs_a_projection_is_computed_once_and_only_when_asked_for():
    calls = []

    def value():
        calls.append(1)
        return torch.zeros(())

    evaluation = Evaluation(value, lambda active=None: torch.ones(1))
    evaluation.gradient()
    assert not calls
    assert evaluation.value is evaluation.value
    assert len(calls) == 1
