"""The deep image prior: it fits the data more the longer it runs, and depends on its seed alone."""

import torch
from toy_objective import make_toy

from benchmarks.bench.deep_image_prior import DeepImagePrior


def run(num_iterations, seed=0, **options):
    objective, truth = make_toy(shape=(1, 9, 10), dtype=torch.float32)
    prior = DeepImagePrior(objective, num_iterations, intensity_scale=1.5, seed=seed, **options)
    return objective, prior.process(), truth


def test_the_likelihood_rises_and_the_image_is_positive(untouched_random_state):
    _, prior, _ = run(60)
    trace = prior.record["log_likelihood"]
    assert trace[-1] > trace[0]
    assert float(prior.get_output().min()) >= 0
    assert prior.record["network_evaluations"] == 4 * 60
    assert prior.record["projections"]["forward"] == 60


def test_the_seed_decides():
    images = [run(5, seed)[1].get_output() for seed in (0, 0, 1)]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_an_anatomical_image_may_be_the_input():
    _, truth = make_toy(shape=(1, 9, 10), dtype=torch.float32)
    plain, guided = run(5)[1].get_output(), run(5, anatomical=truth)[1].get_output()
    assert not torch.equal(plain, guided)
