import math

import pytest
import torch

from sirf_diffusion.models.schedules import (
    PREDICTIONS,
    SPACINGS,
    DDPMSchedule,
    NoiseSchedule,
    VESchedule,
    VPSchedule,
    denoised_and_noise,
    prediction_target,
)

PRESERVING = [
    VPSchedule(),
    DDPMSchedule(),
    DDPMSchedule(betas="cosine"),
    DDPMSchedule(1001, 0.00085, 0.012, "scaled_linear", zero_snr=True),
    DDPMSchedule(betas="sigmoid"),
]
SCHEDULES = [VESchedule(), *PRESERVING]


@pytest.fixture(params=SCHEDULES, ids=lambda s: "-".join(str(v) for v in s.to_config().values()))
def schedule(request):
    return request.param


def some_times(schedule):
    return schedule.timesteps(9, spacing="t")[1:-1]


def test_vp_is_the_integral_of_its_rate():
    schedule, t = VPSchedule(), 0.37
    grid = torch.linspace(0, t, 20001, dtype=torch.float64)
    integral = torch.trapezoid(0.1 + grid * 9.9, grid)
    assert schedule.gamma(t) == pytest.approx(float(torch.exp(-integral / 2)), rel=1e-9)


def test_published_noise_levels():
    """Noise levels of the schedules that published PET models use."""
    assert VPSchedule().sigma(1.0) == pytest.approx(12.45, abs=0.005)
    assert VPSchedule().sigma(0.1) == pytest.approx(0.2476, abs=5e-5)
    for index, sigma in ((0, 0.01), (50, 0.176), (199, 0.719), (999, 157)):
        assert DDPMSchedule().sigma(index) == pytest.approx(sigma, rel=5e-3)
    assert VESchedule().sigma(0.0) == pytest.approx(0.01)
    assert VESchedule().sigma(1.0) == pytest.approx(40)


@pytest.mark.parametrize("preserving", PRESERVING, ids=lambda s: s.name)
def test_variance_is_preserved(preserving):
    t = some_times(preserving)
    torch.testing.assert_close(preserving.gamma(t) ** 2 + preserving.nu(t) ** 2, torch.ones_like(t))


def test_floats_and_tensors_agree(schedule):
    for t in some_times(schedule):
        for name in ("gamma", "nu", "sigma"):
            function = getattr(schedule, name)
            assert isinstance(function(float(t)), float)
            assert float(function(t)) == pytest.approx(function(float(t)), rel=1e-12)
        assert schedule.sigma(float(t)) == pytest.approx(schedule.nu(float(t)) / schedule.gamma(float(t)), rel=1e-12)


def test_time_of_a_noise_level_is_the_inverse(schedule):
    for t in (*some_times(schedule), schedule.timesteps(1)[0], schedule.timesteps(1)[1]):
        assert schedule.t_of_sigma(schedule.sigma(float(t))) == pytest.approx(float(t), rel=1e-9, abs=1e-12)
    times = some_times(schedule)
    torch.testing.assert_close(schedule.t_of_sigma(schedule.sigma(times)).double(), times)


def test_discrete_time_is_the_nearest_noise_level():
    schedule = DDPMSchedule()
    table = torch.log(schedule.sigma(torch.arange(1000).double()))
    for sigma in torch.logspace(math.log10(0.0101), math.log10(157), 50, dtype=torch.float64):
        nearest = int((table - torch.log(sigma)).abs().argmin())
        assert schedule.t_of_sigma(float(sigma)) == nearest


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("num_steps", [1, 2, 40])
def test_timesteps_descend_from_start_to_end(schedule, spacing, num_steps):
    start, end = (1.0, 0.02) if schedule.t_max == 1 else (999.0, 3.0)
    times = schedule.timesteps(num_steps, t_end=end, spacing=spacing)
    assert len(times) == num_steps + 1
    assert float(times[0]) == start
    assert float(times[-1]) == end
    assert bool((times.diff() < 0).all())
    later = schedule.timesteps(num_steps, t_end=end, spacing=spacing, t_start=float(times[0]) / 2 + 0.5 * (start > 1))
    assert float(later[0]) == (0.5 if start == 1 else 500.0)


def test_timesteps_follow_their_spacing():
    schedule = VPSchedule()
    assert bool((schedule.timesteps(10, 0.1, "t").diff() + 0.09).abs().max() < 1e-12)
    log_sigma = torch.log(schedule.sigma(schedule.timesteps(10, 0.1, "log_sigma")))
    torch.testing.assert_close(log_sigma.diff(), log_sigma.diff().mean().expand(10))
    root = schedule.sigma(schedule.timesteps(10, 0.1, "karras")) ** (1 / 7)
    torch.testing.assert_close(root.diff(), root.diff().mean().expand(10))


def test_every_time_of_a_discrete_schedule_can_be_used_once():
    schedule = DDPMSchedule(num_train_steps=20)
    for spacing in SPACINGS:
        assert schedule.timesteps(19, spacing=spacing).tolist() == list(range(19, -1, -1))
        with pytest.raises(ValueError, match="num_steps = 20"):
            schedule.timesteps(20, spacing=spacing)


@pytest.mark.parametrize("arguments", [
    {"num_steps": 0}, {"num_steps": 5, "t_end": 1.0}, {"num_steps": 5, "t_end": -0.1},
    {"num_steps": 5, "t_end": math.nan}, {"num_steps": 5, "spacing": "sqrt"},
    {"num_steps": 5, "t_end": 0.0, "spacing": "log_sigma"}, {"num_steps": 5, "t_end": 0.5, "t_start": 0.4},
])  # fmt: skip
def test_impossible_timesteps_are_refused(arguments):
    with pytest.raises(ValueError, match=r"num_steps|t_end|spacing|t must"):
        VPSchedule().timesteps(**arguments)


@pytest.mark.parametrize("eta", [0.0, 0.1, 0.85, 1.0])
def test_a_step_with_perfect_noise_has_the_next_marginal(schedule, eta):
    """``u_next`` is ``gamma' u0`` plus noise of variance ``nu'^2``, whatever the share of fresh noise."""
    generator = torch.Generator().manual_seed(1)
    eps, z = torch.randn(2, 200_000, generator=generator, dtype=torch.float64)
    t, t_next = (float(t) for t in some_times(schedule)[2:4])
    u_next = schedule.ddim_step(torch.full_like(eps, 3.0), eps, t, t_next, eta, z)
    noise = u_next - 3.0 * schedule.gamma(t_next)
    assert float(noise.var()) == pytest.approx(schedule.nu(t_next) ** 2, rel=0.02)
    # Exactly, from the two coefficients.
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    kept = schedule.ddim_step(zero, one, t, t_next, eta, zero)
    fresh = schedule.ddim_step(zero, zero, t, t_next, eta, one)
    assert float(kept**2 + fresh**2) == pytest.approx(schedule.nu(t_next) ** 2, rel=1e-9)


def test_ancestral_noise_is_the_posterior_variance():
    """``eta = 1``: fresh noise has the variance of ``u_next`` given ``u_t`` and ``u_0``, as DDPM's paper has it."""
    schedule, zero, one = DDPMSchedule(), torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    t = 300
    beta = 1 - (schedule.gamma(t) / schedule.gamma(t - 1)) ** 2
    posterior = beta * schedule.nu(t - 1) ** 2 / schedule.nu(t) ** 2
    assert float(schedule.ddim_step(zero, zero, t, t - 1, 1.0, one)) ** 2 == pytest.approx(posterior, rel=1e-9)


def test_special_steps():
    schedule = VPSchedule()
    u0, eps = torch.tensor([2.0]), torch.tensor([-1.0])
    assert float(schedule.ddim_step(u0, eps, 0.3, 0.0, eta=0.5)) == 2.0
    here = schedule.gamma(0.3) * u0 + schedule.nu(0.3) * eps
    torch.testing.assert_close(schedule.ddim_step(u0, eps, 0.3, 0.3, eta=1.0, noise=eps), here)
    with pytest.raises(ValueError, match="fresh noise"):
        schedule.ddim_step(u0, eps, 0.3, 0.2, eta=0.5)
    with pytest.raises(ValueError, match="eta"):
        schedule.ddim_step(u0, eps, 0.3, 0.2, eta=1.5, noise=eps)
    with pytest.raises(ValueError, match="t_next"):
        schedule.ddim_step(u0, eps, 0.3, 0.4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_predictions_convert_back_to_image_and_noise(schedule, prediction):
    generator = torch.Generator().manual_seed(2)
    u0, eps = torch.randn(2, 1000, generator=generator, dtype=torch.float64)
    for t in some_times(schedule):
        gamma, nu = schedule.gamma(float(t)), schedule.nu(float(t))
        if prediction == "v" and not schedule.variance_preserving:
            with pytest.raises(ValueError, match="v-prediction"):
                prediction_target(prediction, u0, eps, gamma, nu)
            continue
        target = prediction_target(prediction, u0, eps, gamma, nu)
        found = denoised_and_noise(prediction, target, gamma * u0 + nu * eps, gamma, nu)
        torch.testing.assert_close(found[0], u0, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found[1], eps, rtol=1e-9, atol=1e-9)


def test_configuration_round_trip(schedule):
    assert NoiseSchedule.from_config(schedule.to_config()) == schedule
    other = VPSchedule(0.2, 5.0)
    assert NoiseSchedule.from_config(other.to_config()) == other


@pytest.mark.parametrize("config", [
    None, {}, {"name": "cosine"}, {"name": ["vp"]}, {"name": "vp", "beta_min": 0.1},
    {"name": "vp", "beta_min": 0.1, "beta_max": 10.0, "beta_mid": 1.0},
    {"name": "vp", "beta_min": "0.1", "beta_max": 10.0}, {"name": "vp", "beta_min": math.nan, "beta_max": 10.0},
    {"name": "vp", "beta_min": 10.0, "beta_max": 0.1}, {"name": "ve", "sigma_min": -1.0, "sigma_max": 1.0},
    {"name": "ddpm", "num_train_steps": 10**9, "beta_start": 1e-4, "beta_end": 0.02},
    {"name": "ddpm", "num_train_steps": 1000, "beta_start": True, "beta_end": 0.02},
])  # fmt: skip
def test_hostile_configurations_are_refused(config):
    with pytest.raises(ValueError, match=r"schedule|VP|VE|num_train_steps"):
        NoiseSchedule.from_config(config)


def test_times_and_noise_levels_outside_the_range_are_refused(schedule):
    for value in (schedule.t_max + 1, -1.0, math.nan):
        with pytest.raises(ValueError, match="t must lie"):
            schedule.gamma(value)
    for value in (2 * schedule.sigma(schedule.t_max), -1.0, math.nan):
        with pytest.raises(ValueError, match="sigma must lie"):
            schedule.t_of_sigma(value)
    with pytest.raises(ValueError, match="whole number"):
        DDPMSchedule().sigma(1.5)
