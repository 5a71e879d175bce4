"""Methods of the benchmark only: guidance follows the data as its strength says; the deep image prior fits them."""

import pytest
import torch
from toy_model import Gaussian, ToyModel
from toy_objective import make_toy

from benchmarks.bench.deep_image_prior import DeepImagePrior
from benchmarks.bench.guided import DPSReconstructor, NaiveReconstructor
from sirf_diffusion.reconstructors.diffusion.loop import DiffusionReconstructor


class Differentiable(ToyModel):
    def predict_with_gradient(self, u, t):
        with torch.enable_grad():
            return self.predict(u, t)


def make(kind, strength, **options):
    objective, _ = make_toy(dtype=torch.float32)
    model = Differentiable(Gaussian(1.0, 0.25)).on(objective.geometry, 1.3)
    sampler = kind(objective, model, strength=strength, num_steps=30, num_samples=3, seed=4, **options)
    return objective, sampler


@pytest.mark.parametrize("kind", [NaiveReconstructor, DPSReconstructor])
def test_without_strength_the_samples_are_the_priors(kind):
    objective, sampler = make(kind, 0.0)
    sampler.process()
    prior = DiffusionReconstructor(objective, sampler.model, None, num_steps=30, num_samples=3, seed=4, eta=1.0)
    prior.process()
    assert torch.allclose(sampler.get_samples(), prior.get_samples(), atol=1e-5)


@pytest.mark.parametrize(("kind", "strength"), [(NaiveReconstructor, 1.0), (DPSReconstructor, 5.0)])
def test_strength_raises_the_likelihood_and_the_run_repeats(kind, strength, untouched_random_state):
    values, images = [], []
    for s in (0.0, strength / 4, strength, strength):
        objective, sampler = make(kind, s)
        images.append(sampler.process().get_output())
        # Of the samples: their mean is near the prior's without data, which is more likely than they are.
        values.append(float(objective.value(sampler.get_samples().clamp_min(1e-6)).mean()))
    assert values[0] < values[1] < values[2]
    assert torch.equal(images[2], images[3])


def test_dps_moves_along_the_derivative_of_the_likelihood_with_respect_to_the_noisy_image():
    objective, sampler = make(DPSReconstructor, 5.0)
    sampler.set_up()
    chain = sampler.begin()
    chain.step = 15
    u = chain.u[:1].clone()

    def distance(v: torch.Tensor) -> float:
        u0, _ = sampler.model.predict(v, sampler.times[15])
        x = sampler._admissible(sampler.model.to_image(u0))
        return sampler._best - float(objective.value(x))

    sampler.denoise(chain, sampler.model)
    direction = torch.randn(u.shape, generator=torch.Generator().manual_seed(1))
    step = 1e-2
    slope = (distance(u + step * direction) - distance(u - step * direction)) / (2 * step)
    expected = -float((sampler._move[:1] * direction).sum()) * distance(u) / sampler.strength
    assert slope == pytest.approx(expected, rel=2e-2)


def test_naive_adds_the_likelihoods_gradient_at_the_noisy_image_to_the_score():
    objective, sampler = make(NaiveReconstructor, 0.02)
    _, plain = make(NaiveReconstructor, 0.0)
    for s in (sampler, plain):
        s.set_up()
    chain = sampler.begin()
    chain.step = 10
    guided, found = sampler.denoise(chain, sampler.model), plain.denoise(chain, sampler.model)
    t = sampler.times[10]
    gamma, nu = (float(f(t)) for f in (sampler.model.schedule.gamma, sampler.model.schedule.nu))
    change_of_score = -(guided.eps - found.eps) / nu
    assert torch.allclose(guided.u0 - found.u0, nu * nu / gamma * change_of_score, rtol=1e-3, atol=1e-6)
    noisy = sampler.model.to_image(chain.u)
    gradient = objective.gradient(sampler._admissible(noisy)) * (noisy > 0) * sampler.model.intensity_scale
    expected = 0.02 * (1 - t / float(sampler.model.schedule.t_max)) * gradient
    assert torch.allclose(change_of_score, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_what_dps_needs_is_said():
    objective, _ = make_toy(dtype=torch.float32)
    with pytest.raises(NotImplementedError, match="predict_with_gradient"):
        DPSReconstructor(objective, ToyModel(Gaussian()).on(objective.geometry, 1.0))


def dip(num_iterations, seed=0, **options):
    objective, truth = make_toy(shape=(1, 9, 10), dtype=torch.float32)
    prior = DeepImagePrior(objective, num_iterations, intensity_scale=1.5, seed=seed, **options)
    return objective, prior.process(), truth


def test_the_likelihood_rises_and_the_image_is_positive(untouched_random_state):
    _, prior, _ = dip(60)
    trace = prior.record["log_likelihood"]
    assert trace[-1] > trace[0]
    assert float(prior.get_output().min()) >= 0
    assert prior.record["network_evaluations"] == 4 * 60
    assert prior.record["projections"]["forward"] == 60


def test_the_seed_decides():
    images = [dip(5, seed)[1].get_output() for seed in (0, 0, 1)]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_an_anatomical_image_may_be_the_input():
    _, truth = make_toy(shape=(1, 9, 10), dtype=torch.float32)
    plain, guided = dip(5)[1].get_output(), dip(5, anatomical=truth)[1].get_output()
    assert not torch.equal(plain, guided)
