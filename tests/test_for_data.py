"""`ScoreModel.for_data`: one intensity scale, one choice of orientations, whichever door a model comes in by."""

import pytest
import torch
from tiny_model import small_model
from toy_objective import make_toy

from sirf_diffusion.data import load_example
from sirf_diffusion.models import intensity_scale
from sirf_diffusion.reconstructors import OSEM


@pytest.mark.parametrize(("shape", "sampling", "planes"), [
    ((1, 8, 8), True, "transverse"),
    ((4, 8, 8), True, "alternating"),
    ((4, 8, 8), False, "three"),
])  # fmt: skip
def test_scale_and_orientations_are_chosen_from_the_objective(shape, sampling, planes):
    objective, _ = make_toy(shape, dtype=torch.float32)
    bound = small_model().for_data(objective, sampling=sampling)
    assert bound.planes == planes
    early = OSEM(make_toy(shape, dtype=torch.float32)[0], 14).process().get_output()
    assert bound.intensity_scale == intensity_scale(early, objective.geometry)
    assert objective.counter.forward == 14


def test_what_is_given_is_not_estimated():
    objective, truth = make_toy((4, 8, 8), dtype=torch.float32)
    model = small_model()
    assert model.for_data(objective, truth).intensity_scale == intensity_scale(truth, objective.geometry)
    bound = model.for_data(objective.geometry, intensity_scale=3.0, planes="transverse", extent=8.0)
    assert (bound.intensity_scale, bound.planes) == (3.0, "transverse")
    assert objective.counter.forward == 0
    with pytest.raises(ValueError, match="give early_image or intensity_scale"):
        model.for_data(objective.geometry)


def test_the_early_image_does_not_depend_on_the_subsets():
    acquisition = load_example("brain2d").acquisition
    objectives = [acquisition.objective(n) for n in (1, 2, 14)]
    images = [objective.early_image() for objective in objectives]
    assert all(torch.equal(image, images[0]) for image in images)
    for objective in objectives:
        before = objective.counter.forward, objective.counter.back
        objective.early_image()  # kept
        assert (objective.counter.forward, objective.counter.back) == before
        assert objective.counter.forward == pytest.approx(1)
