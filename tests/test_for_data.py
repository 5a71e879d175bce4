"""`ScoreModel.for_data`: one intensity scale, one choice of orientations, whichever door a model comes in by."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from tiny_model import small_model
from toy_objective import make_toy

from sirf_diffusion.data import load_example
from sirf_diffusion.models import ScoreModel, intensity_scale
from sirf_diffusion.reconstructors import OSEM, DDSReconstructor, ScoreMAP


@pytest.mark.parametrize(("shape", "sampling", "planes", "updates"), [
    ((1, 8, 8), True, "transverse", 14),
    ((4, 8, 8), True, "alternating", 4),
    ((4, 8, 8), False, "three", 4),
])  # fmt: skip
def test_scale_and_orientations_are_chosen_from_the_objective(shape, sampling, planes, updates):
    objective, _ = make_toy(shape, dtype=torch.float32)  # whose planes have fewer counts if there are four
    bound = small_model().for_data(objective, sampling=sampling)
    assert bound.planes == planes
    early = OSEM(make_toy(shape, dtype=torch.float32)[0], updates).process().get_output()
    assert bound.intensity_scale == intensity_scale(early, objective.geometry)
    assert objective.counter.forward == updates


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


def thinned(counts):
    """The bundled slice with so many of its counts."""
    acquisition = load_example("brain2d").acquisition
    share = counts / float(acquisition.prompts.sum())
    drawn = np.random.default_rng(3).binomial(acquisition.prompts.numpy().astype(int), share)
    prompts = torch.from_numpy(drawn.astype(np.float32))
    return replace(acquisition, prompts=prompts, additive=acquisition.additive * share), share


@pytest.mark.parametrize("counts", [1e3, 5e3, 2e4])
def test_the_scale_of_few_counts_is_that_of_many(counts):
    expected = intensity_scale(load_example("brain2d").truth, load_example("brain2d").acquisition.geometry)
    acquisition, share = thinned(counts)
    for number in (1, 14):
        early = acquisition.objective(number).early_image() / share
        assert intensity_scale(early, acquisition.geometry) == pytest.approx(expected, rel=0.25)


def test_an_image_of_more_counts_is_scaled_before_a_score_prior_sees_it(caplog):
    acquisition, share = thinned(2e4)
    model, truth = ScoreModel.load("brain-fast"), load_example("brain2d").truth.clamp(min=0) * share
    sums = []
    for factor in (1.0, 10.0):
        run = ScoreMAP(acquisition.objective(), model, num_iterations=5)
        run.set_up(factor * truth)
        sums.append(float(run.process().get_output().sum()))
    assert sums[1] == pytest.approx(sums[0], rel=0.02)
    assert caplog.text.count("times the counts of the data: it is scaled to them") == 1


def test_subsets_that_empty_the_image_are_an_error():
    with pytest.raises(ValueError, match="the image is zero everywhere: the counts are too few for 14 subsets"):
        OSEM(thinned(200)[0].objective(14), 2).process()


def test_a_class_takes_the_name_of_a_model_and_nothing_else():
    objective = load_example("brain2d").acquisition.objective()
    for make in (partial(ScoreMAP, num_iterations=1), partial(DDSReconstructor, num_steps=2)):
        images = [make(objective, m).process().get_output() for m in ("brain-fast", ScoreModel.load("brain-fast"))]
        assert torch.equal(*images)
        with pytest.raises(TypeError, match="expected a score model, the name of a bundled one or a file, found int"):
            make(objective, 3)
