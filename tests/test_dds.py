"""Decomposed diffusion sampling where the answer is known."""

import pytest
import torch
from toy_model import Fixed, Gaussian, Record, ToyModel, identity
from toy_objective import ToyObjective, make_toy

from sirf_diffusion.engines.em import em_update, herman_meyer_order
from sirf_diffusion.models.schedules import VESchedule
from sirf_diffusion.priors import RelativeDifferencePenalty
from sirf_diffusion.reconstructors.diffusion.dds import DDSReconstructor

FLOOR = 1e-6


def relative_kkt(x, gradient, sensitivity):
    """Violation of the optimality conditions of a maximiser over ``x >= 0``, relative to the sensitivity."""
    return float(torch.where(x > 1e-4, gradient.abs(), gradient.clamp(min=0)).div(sensitivity).max())


@pytest.mark.parametrize("num_inner", [1, 3])
def test_with_an_identity_denoiser_it_is_mlem(num_inner):
    objective, _ = make_toy((2, 6, 6))
    model = ToyModel(identity).on(objective.geometry, 1.0)
    record = Record()
    DDSReconstructor.published(
        objective, model, num_steps=6, num_inner=num_inner, anchor_strength=0.0, eta=0.0, callbacks=[record]
    ).process()
    x = record.images[0]
    for image in record.images[1:]:
        for _ in range(num_inner):
            x = em_update(objective, x, floor=FLOOR)
        assert torch.allclose(image, x, rtol=1e-10)
    values = [float(objective.value(image)) for image in record.images]
    assert values == sorted(values)
    assert values[-1] > values[0]


@pytest.mark.parametrize("strength", [4.0, 300.0])
def test_from_pure_noise_a_gaussian_prior_gives_its_map_estimate(strength):
    # At a noise level of 1e4 the denoiser returns the prior's mean m whatever the noise; with the anchor's strength
    # equal to the prior's precision 1/w, the data step then maximises L(x) - |x/c - m|^2 / (2 w): the MAP estimate.
    objective, _ = make_toy((1, 8, 8))
    mean, c = 0.8, 1.5
    model = ToyModel(Gaussian(mean, 1 / strength), VESchedule(0.01, 1e4)).on(objective.geometry, c)
    run = DDSReconstructor.published(objective, model, num_steps=1, num_inner=600, anchor_strength=strength)
    x = run.process().get_output()
    gradient = objective.gradient(x) - strength / c**2 * (x - c * mean)
    assert relative_kkt(x, gradient, objective.sensitivity()) < 1e-3


def test_the_anchor_weakens_as_the_noise_rises():
    objective, _ = make_toy((1, 8, 8))
    model = ToyModel(Gaussian(0.8, 0.1), VESchedule(0.01, 10.0)).on(objective.geometry, 1.5)
    sigma = float(model.schedule.sigma(model.schedule.t_max))

    def image(strength, exponent):
        settings = {"num_steps": 1, "anchor_strength": strength, "anchor_exponent": exponent}
        return DDSReconstructor.published(objective, model, **settings).process().get_output()

    assert torch.allclose(image(300.0 * sigma, 1.0), image(300.0, 0.0), rtol=1e-5)
    assert not torch.allclose(image(300.0, 1.0), image(300.0, 0.0), rtol=1e-2)
    with pytest.raises(ValueError, match="anchor_exponent"):
        image(1.0, -1.0)


@pytest.mark.parametrize("factor", [0.01, 1.0, 100.0])
def test_the_anchor_is_stable_at_any_count_level(factor):
    objective, truth = make_toy((1, 8, 8), counts=2e3)
    scaled = ToyObjective(
        objective.matrix * factor, (objective.prompts * factor).round(), objective.background * factor, (1, 8, 8)
    )
    model = ToyModel(Fixed(truth)).on(objective.geometry, 1.0)
    run = DDSReconstructor.published(scaled, model, num_steps=3, num_inner=40, anchor_strength=10.0).process()
    x = run.get_output()

    def penalised(z):
        return float(scaled.value(z)) - 5.0 * float(((z - truth) ** 2).sum())

    assert penalised(x) > penalised(truth)
    more = (
        DDSReconstructor.published(scaled, model, num_steps=3, num_inner=80, anchor_strength=10.0)
        .process()
        .get_output()
    )
    assert penalised(more) >= penalised(x) - 1e-6 * abs(penalised(x))


def test_subsets_are_counted_through_all_noise_levels():
    seen = []

    class Watched(ToyObjective):
        def at(self, x, subset=None):
            seen.append(subset)
            return super().at(x, subset)

    plain, _ = make_toy((1, 8, 8))
    objective = Watched(plain.matrix, plain.prompts, plain.background, (1, 8, 8), num_subsets=8)
    model = ToyModel(Gaussian()).on(objective.geometry, 1.0)
    run = DDSReconstructor.published(objective, model, num_steps=8, num_inner=3).process()
    assert seen == list(herman_meyer_order(8)) * 3
    assert run.record["projections"]["forward"] == pytest.approx(3.0)


def test_an_axial_penalty_joins_slices():
    objective, _ = make_toy((6, 6, 6), counts=2e3, num_bins=300, dtype=torch.float32)
    image = torch.rand((6, 6, 6), generator=torch.Generator().manual_seed(0)) + 0.5
    model = ToyModel(Fixed(image)).on(objective.geometry, 1.0)
    prior = RelativeDifferencePenalty(objective.geometry, 20.0, epsilon=1e-3, neighbourhood="axial")

    def roughness(prior, axis):
        run = DDSReconstructor.published(objective, model, num_steps=2, num_inner=20, anchor_strength=1.0, prior=prior)
        x = run.process().get_output()
        assert bool(torch.isfinite(x).all())
        return float(x.diff(dim=axis).abs().mean())

    assert roughness(prior, 0) < 0.5 * roughness(None, 0)
    assert roughness(prior, 1) > 0.5 * roughness(None, 1)
