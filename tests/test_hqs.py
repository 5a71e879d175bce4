"""Half-quadratic splitting where the answer is known."""

import pytest
import torch
from test_dds import relative_kkt
from toy_model import Fixed, Gaussian, Record, ToyModel
from toy_objective import make_toy

from sirf_diffusion.models.schedules import VESchedule
from sirf_diffusion.reconstructors.diffusion.dds import DDSReconstructor
from sirf_diffusion.reconstructors.diffusion.hqs import HQSReconstructor

SIGMA = 1e4


@pytest.mark.parametrize("variance", [0.1, 0.001])
def test_from_pure_noise_a_gaussian_prior_gives_its_map_estimate(variance):
    # The denoiser returns the prior's mean m; with beta / sigma^2 = 1 / w the data step is that of the prior N(m, w).
    objective, _ = make_toy((1, 8, 8))
    mean, c = 0.8, 1.5
    model = ToyModel(Gaussian(mean, variance), VESchedule(0.01, SIGMA)).on(objective.geometry, c)
    beta = SIGMA**2 / variance
    x = HQSReconstructor.published(objective, model, num_steps=1, num_inner=600, beta=beta).process().get_output()
    gradient = objective.gradient(x) - (x - c * mean) / (variance * c**2)
    assert relative_kkt(x, gradient, objective.sensitivity()) < 1e-3
    dds = DDSReconstructor.published(objective, model, num_steps=1, num_inner=600, anchor_strength=1 / variance)
    assert torch.allclose(dds.process().get_output(), x, rtol=1e-3, atol=1e-4)


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
