"""Decomposed diffusion sampling and half-quadratic splitting where the answer is known."""

import pytest
import torch
from toy_model import Fixed, Gaussian, Record, ToyModel, identity
from toy_objective import ToyObjective, make_toy

from sirf_diffusion.engines.em import em_update, herman_meyer_order
from sirf_diffusion.models.schedules import VESchedule
from sirf_diffusion.priors import RelativeDifferencePenalty
from sirf_diffusion.reconstructors.diffusion.dds import DDSReconstructor
from sirf_diffusion.reconstructors.diffusion.hqs import HQSReconstructor

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
            x = em_update(objective, x).clamp_min(FLOOR)
        assert torch.allclose(image, x, rtol=1e-10)
    values = [float(objective.value(image)) for image in record.images]
    assert values == sorted(values)
    assert values[-1] > values[0]


@pytest.mark.parametrize("variance", [0.1, 0.001])
def test_from_pure_noise_a_gaussian_prior_gives_its_map_estimate(variance):
    # At this noise level the denoiser returns the prior's mean m whatever the noise; with an anchor of the precision
    # 1 / w, which HQS has as beta / sigma^2, the data step maximises L(x) - |x/c - m|^2 / (2 w): the MAP estimate.
    objective, _ = make_toy((1, 8, 8))
    mean, c, sigma = 0.8, 1.5, 1e4
    model = ToyModel(Gaussian(mean, variance), VESchedule(0.01, sigma)).on(objective.geometry, c)
    found = []
    for kind, strength in (
        (HQSReconstructor, {"beta": sigma**2 / variance}), (DDSReconstructor, {"anchor_strength": 1 / variance}),
    ):  # fmt: skip
        run = kind.published(objective, model, num_steps=1, num_inner=600, **strength)
        found.append(run.process().get_output())
        gradient = objective.gradient(found[-1]) - (found[-1] - c * mean) / (variance * c**2)
        assert relative_kkt(found[-1], gradient, objective.sensitivity()) < 1e-3
    assert torch.allclose(*found, rtol=1e-3, atol=1e-4)


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


# Half-quadratic splitting ---------------------------------------------------------------------------------------------


def test_each_update_raises_the_penalised_likelihood():
    objective, truth = make_toy((2, 6, 6))
    image = truth.roll(2, -1) * 1.3
    model = ToyModel(Fixed(image), VESchedule(0.01, 1.0)).on(objective.geometry, 2.0)
    values = []
    for num_inner in range(1, 12):
        x = (
            HQSReconstructor.published(objective, model, num_steps=1, num_inner=num_inner, beta=50.0)
            .process()
            .get_output()
        )
        values.append(float(objective.value(x)) - 0.5 * 50.0 / 4.0 * float(((x - 2 * image) ** 2).sum()))
    assert values == sorted(values)
    assert values[-1] > values[0]


def test_the_pull_grows_as_the_noise_falls():
    objective, truth = make_toy((1, 8, 8))
    image = truth.roll(3, -1) + 0.1
    model = ToyModel(Fixed(image), VESchedule(0.01, 40.0)).on(objective.geometry, 1.0)
    record = Record()
    HQSReconstructor.published(objective, model, num_steps=12, num_inner=20, callbacks=[record]).process()
    distances = [float((x - image).norm()) for x in record.images]
    assert distances == sorted(distances, reverse=True)


@pytest.mark.parametrize(
    ("kind", "name"), [(HQSReconstructor, "beta"), (DDSReconstructor, "anchor_strength")], ids=["hqs", "dds"]
)
@pytest.mark.parametrize(("num_steps", "reference_steps"), [(6, 12), (6, 6), (12, 6)])
def test_the_pull_is_in_proportion_to_the_noise_levels(kind, name, num_steps, reference_steps):
    objective, truth = make_toy((1, 8, 8))
    model = ToyModel(Fixed(truth.roll(3, -1) + 0.1), VESchedule(0.01, 40.0)).on(objective.geometry, 1.0)

    def image(strength, reference):
        settings = {"num_steps": num_steps, "reference_steps": reference, name: strength}
        return kind.published(objective, model, **settings).process().get_output()

    expected = image(30.0 * num_steps / reference_steps, 0)
    torch.testing.assert_close(image(30.0, reference_steps), expected, rtol=1e-5, atol=1e-6)
    assert kind.defaults()["num_steps"] == kind.defaults()["reference_steps"]
    assert kind.defaults("volumes")["num_steps"] == kind.defaults("volumes")["reference_steps"]
