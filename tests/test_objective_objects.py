"""The anchored and the scheduled objective: loops written by a user do what the samplers do."""

import numpy as np
import pytest
import torch
from small_scan import script_objects, write_small_scan
from toy_model import Fixed, Gaussian, ToyModel
from toy_objective import make_toy

import sirf_diffusion
from sirf_diffusion.engines.em import herman_meyer_order
from sirf_diffusion.interop.stepwise import HQSObjective, LikelihoodScheduledObjective
from sirf_diffusion.models.schedules import VESchedule
from sirf_diffusion.reconstructors import HQSReconstructor, LikelihoodScheduledReconstructor
from sirf_diffusion.reconstructors.diffusion.lisch import share_of_step


@pytest.fixture(params=["embedded", pytest.param("sirf", marks=pytest.mark.requires_sirf)])
def scan(request, tmp_path):
    """Makes an objective function with subsets as a script does, and an image of its grid, in either engine."""
    pet = sirf_diffusion.get_engine(request.param)
    files = write_small_scan(tmp_path, planes=3, counts=2e5)
    scheme = ""
    if request.param == "sirf":
        pet.set_verbosity(0)
        scheme = pet.AcquisitionData.get_storage_scheme()
        pet.AcquisitionData.set_storage_scheme("memory")

    def make(num_subsets=1):
        _, truth, _, objective = script_objects(pet, files)
        objective.set_num_subsets(num_subsets)
        objective.set_up(truth)
        return objective, truth

    yield make
    if scheme:
        pet.AcquisitionData.set_storage_scheme(scheme)


def a_model():
    return ToyModel(Gaussian(1.0, 0.3))


def toy(kind, **settings):
    objective, truth = make_toy((2, 6, 6), num_subsets=4)
    model = ToyModel(Fixed(truth.roll(2, -1) * 1.2), VESchedule(0.01, 2.0)).on(objective.geometry, 1.5)
    made = kind(objective, model, **settings)
    made.set_up()
    return made, objective, truth + 0.3


def number(image):
    return image.as_array().astype(np.float64)


@pytest.mark.parametrize("num_subsets", [1, 4])
def test_a_loop_of_de_pierros_updates_is_the_hqs_reconstructor(scan, num_subsets):
    native, image = scan(num_subsets)
    num_steps, num_inner = 6, 3
    sampler = HQSReconstructor(native, a_model(), num_steps=num_steps, num_inner=num_inner, beta=0.7, seed=5)
    expected = sampler.process().get_output()

    objective = HQSObjective(native, a_model(), num_steps=num_steps, beta=0.7, seed=5)
    objective.set_up(image)
    order, updates = herman_meyer_order(num_subsets), 0
    while not objective.finished:
        denoised = objective.get_denoised_image()
        v, rho = number(denoised), objective.anchor_strength / num_subsets
        x = objective.admissible(denoised)
        for _ in range(num_inner):
            subset = order[updates % num_subsets]
            s = number(objective.get_subset_sensitivity(subset))
            ascent = number(objective.get_subset_gradient(x, subset)) + rho * (number(x) - v)
            seen = s > 0
            em = number(x) * (1 + np.divide(ascent, s, out=np.zeros_like(s), where=seen))
            b = s - rho * v
            x.fill((np.sqrt(b * b + 4 * rho * s * em) - b) / (2 * rho))
            x = objective.admissible(x)
            updates += 1
        objective.advance(x)
    np.testing.assert_allclose(x.as_array(), expected.as_array(), rtol=2e-4, atol=2e-5)


def test_a_loop_of_em_updates_up_to_the_target_is_lisch(scan):
    native, image = scan(2)
    settings = {"num_steps": 6, "seed": 3, "num_em_iterations": 8, "eta": 0.85}
    sampler = LikelihoodScheduledReconstructor.published(native, a_model(), step_size=1.0, **settings)
    expected = sampler.process().get_output()

    objective = LikelihoodScheduledObjective(native, a_model(), **settings)
    objective.set_up(image)
    assert objective.schedule.values == sampler.schedule.values
    sensitivity = number(objective.get_subset_sensitivity(-1))
    lowest, updates = 1e-6 * objective.intensity_scale, 0
    while not objective.finished:
        x = objective.admissible(objective.get_denoised_image())
        seen = number(x) > 0
        while not objective.reached(x):
            before, gradient = objective.log_likelihood(x), number(objective.gradient(x))
            start = number(x)
            end = start + start * np.divide(gradient, sensitivity, out=np.zeros_like(gradient), where=seen)
            x.fill(np.where(seen, np.maximum(np.maximum(end, 0.5 * end), lowest), 0.0))
            updates += 1
            if objective.reached(x):
                gain = objective.log_likelihood(x) - before
                slope = float((gradient * (number(x) - start)).sum())
                share = share_of_step(objective.target - before, gain, slope)
                x.fill(start + share * (number(x) - start))
                break
        objective.advance(x)
    assert updates > 6
    np.testing.assert_allclose(x.as_array(), expected.as_array(), rtol=2e-4, atol=2e-5)


def test_plain_gradient_ascent_finds_the_maximum_of_the_anchored_objective():
    """One noise level, many inner updates: another algorithm of the user's meets HQS at the maximum."""
    objective, likelihood, _ = toy(HQSObjective, num_steps=1, beta=300.0, reference_steps=0)
    model = ToyModel(Fixed(objective.get_denoised_image() / 1.5), VESchedule(0.01, 2.0)).on(likelihood.geometry, 1.5)
    sampler = HQSReconstructor(likelihood.divided(1), model, num_steps=1, num_inner=2000, beta=300.0, reference_steps=0)
    x = objective.admissible(objective.get_denoised_image())
    scaling = 1 / (objective.get_subset_sensitivity(-1) + objective.anchor_strength)
    for _ in range(2000):
        x = objective.admissible(x + scaling * x.clamp(max=1) * objective.gradient(x) * 0.5)
    torch.testing.assert_close(x, sampler.process().get_output(), rtol=1e-3, atol=1e-3)
    assert not objective.advance(x)


@pytest.mark.parametrize("subset", [None, 0, 3])
def test_gradient_of_the_anchored_objective_is_its_derivative(subset):
    objective, _, x = toy(HQSObjective, num_steps=3, beta=2.0)
    direction = torch.rand(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype) - 0.3
    h = 1e-5
    difference = (objective.value(x + h * direction, subset) - objective.value(x - h * direction, subset)) / (2 * h)
    slope = float((objective.gradient(x, subset) * direction).sum())
    assert slope == pytest.approx(difference, rel=1e-6)


def test_gradient_of_the_scheduled_objective_is_its_derivative_and_zero_beyond_the_target():
    objective, likelihood, x = toy(LikelihoodScheduledObjective, num_steps=4, num_em_iterations=6)
    below, above = likelihood.uniform_image(), x - 0.3
    assert not objective.reached(below)
    assert objective.reached(above)
    direction = torch.rand(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype) - 0.3
    h = 1e-6
    difference = (objective.value(below + h * direction) - objective.value(below - h * direction)) / (2 * h)
    assert float((objective.gradient(below) * direction).sum()) == pytest.approx(difference, rel=1e-5)
    assert objective.value(above) == objective.target < objective.log_likelihood(above)
    assert not objective.gradient(above).any()
    assert not objective.get_subset_gradient(above, 2).any()
    torch.testing.assert_close(objective.get_subset_gradient(below, 2), likelihood.gradient(below, 2))


def test_subset_gradients_hold_the_pull_once():
    objective, likelihood, x = toy(HQSObjective, num_steps=3)
    parts = [objective.get_subset_gradient(x, k) for k in range(objective.get_num_subsets())]
    torch.testing.assert_close(sum(parts), objective.gradient(x))
    share = (parts[1] - likelihood.gradient(x, 1)) * 4
    torch.testing.assert_close(share, -objective.anchor_strength * (x - objective.get_denoised_image()))
    assert sum(objective.value(x, k) for k in range(4)) == pytest.approx(objective(x))


def test_targets_rise_from_level_to_level_and_the_pull_strengthens():
    scheduled, _, _ = toy(LikelihoodScheduledObjective, num_steps=5, num_em_iterations=6)
    targets, x = [], scheduled.get_denoised_image()
    while not scheduled.finished:
        targets.append(scheduled.target)
        scheduled.advance(x)
    assert targets == sorted(set(targets))
    assert targets[-1] == pytest.approx(scheduled.schedule.target)
    anchored, _, x = toy(HQSObjective, num_steps=5, beta=1.0, reference_steps=0)
    strengths = []
    while not anchored.finished:
        strengths.append(anchored.anchor_strength * anchored.noise_level**2)
        anchored.advance(x)
    assert strengths == pytest.approx([1 / 1.5**2] * 5)


def test_value_test_and_gradient_at_one_image_share_a_projection():
    objective, likelihood, _ = toy(LikelihoodScheduledObjective, num_steps=4, num_em_iterations=6)
    before = likelihood.counter.forward
    x = likelihood.uniform_image()
    objective.value(x)
    objective.reached(x)
    objective.gradient(x)
    assert likelihood.counter.forward == before + 1
    x += 0.1  # in place: the same tensor is another image now
    assert objective.log_likelihood(x) == pytest.approx(float(likelihood.value(x)))


def test_results_go_where_out_says_also_onto_the_image_itself(scan):
    native, image = scan(2)
    for objective in (
        HQSObjective(native, a_model(), num_steps=3),
        LikelihoodScheduledObjective(native, a_model(), num_steps=3, num_em_iterations=4),
    ):
        objective.set_up(image)
        x = image.get_uniform_copy(0.7)
        expected = objective.gradient(x).as_array()
        assert np.abs(expected).max() > 0
        out = image.get_uniform_copy(0.0)
        assert objective.get_gradient(x, out=out) is out
        np.testing.assert_array_equal(out.as_array(), expected)
        assert x.min() == x.max() == np.float32(0.7)
        assert objective.gradient(x, out=x) is x
        np.testing.assert_array_equal(x.as_array(), expected)


def test_subsets_of_an_engines_objective_may_be_changed_before_set_up(scan):
    native, image = scan(1)
    objective = HQSObjective(native, a_model(), num_steps=3)
    objective.set_num_subsets(4)
    with pytest.raises(RuntimeError, match="set_up"):
        objective.gradient(image)
    objective.set_up(image)
    x = image.get_uniform_copy(0.7)
    total = sum(number(objective.get_subset_gradient(x, k)) for k in range(4))
    np.testing.assert_allclose(total, number(objective.gradient(x)), rtol=1e-3, atol=1e-2)


def test_wrong_use_is_explained():
    objective, likelihood, x = toy(HQSObjective, num_steps=1)
    with pytest.raises(ValueError, match="4 subsets"):
        objective.set_num_subsets(3)
    with pytest.raises(ValueError, match="shape"):
        objective.value(x[:1])
    with pytest.raises(FloatingPointError, match="finite"):
        objective.advance(x * float("nan"))
    objective.advance(x)
    with pytest.raises(RuntimeError, match="set_up"):
        objective.advance(x)
    scheduled, *_ = toy(LikelihoodScheduledObjective, num_steps=2, num_em_iterations=3)
    with pytest.raises(NotImplementedError, match="subsets"):
        scheduled.value(x, 0)
    with pytest.raises(RuntimeError, match="not set up"):
        HQSObjective(likelihood, a_model()).gradient(x)
