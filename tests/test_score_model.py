import math
from dataclasses import replace

import pytest
import torch

from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models.coverage import largest_batch
from sirf_diffusion.models.networks import NetworkConfig, build_network
from sirf_diffusion.models.schedules import DDPMSchedule, VESchedule, VPSchedule, prediction_target
from sirf_diffusion.models.score_model import ScoreModel

MEAN, VARIANCE = 1.2, 0.3
SCALE = 250.0
SCHEDULES = [VPSchedule(), VESchedule(), DDPMSchedule()]


class AnalyticGaussian:
    """The ideal network for independent voxels ``N(mean, variance)``; the mean may depend on the slice orientation."""

    def __init__(self, schedule, prediction="eps", mean=(MEAN,) * 3, variance=VARIANCE):
        self.schedule, self.prediction, self.variance = schedule, prediction, variance
        self.mean = torch.tensor(mean, dtype=torch.float64)
        self.calls = []

    def __call__(self, images, times, class_labels):
        self.calls.append((tuple(images.shape), class_labels.tolist()))
        sigma = float(torch.exp(times[0].double() / 250))
        t = self.schedule.t_of_sigma(sigma)
        gamma, nu = self.schedule.gamma(t), self.schedule.nu(t)
        u = images.double() * math.sqrt(gamma**2 + nu**2)
        mean = self.mean[class_labels].reshape(-1, 1, 1, 1)
        u0 = mean + gamma * self.variance / (gamma**2 * self.variance + nu**2) * (u - gamma * mean)
        return prediction_target(self.prediction, u0, (u - gamma * u0) / nu, gamma, nu).to(images)


class MeanOfNeighbours:
    """A denoiser that looks around itself, and treats rows and columns differently: detects wrong padding and axes."""

    calls = 0

    def __call__(self, images, times, class_labels):
        self.calls += 1
        padded = torch.nn.functional.pad(images, (1, 0, 1, 0))
        return 0.5 * images + 0.3 * padded[..., 1:, :-1] + 0.2 * padded[..., :-1, 1:]


def gaussian_model(schedule=None, prediction="eps", **options):
    schedule = VPSchedule() if schedule is None else schedule
    return ScoreModel(
        AnalyticGaussian(schedule, prediction, **options), schedule, prediction, (2.0, 2.0, 2.0), multiple=4
    )


def geometry(shape=(1, 8, 8), voxel_size=(2.0, 2.0, 2.0)):
    return ImageGeometry(shape, voxel_size)


def random_image(shape, seed=0, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def middle(schedule):
    return schedule.t_of_sigma(0.4)


def posterior_mean(x, sigma, c=SCALE):
    """Clean image, image units, given ``x = x_0 + c sigma z``."""
    return c * MEAN + VARIANCE / (VARIANCE + sigma**2) * (x - c * MEAN)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_closed_form(schedule, prediction):
    """Clean image, noise and score of the Gaussian, for every schedule and kind of prediction."""
    if prediction == "v" and schedule.name == "ve":
        with pytest.raises(ValueError, match="v-prediction"):
            gaussian_model(schedule, prediction)
        return
    model = gaussian_model(schedule, prediction).on(geometry(), SCALE)
    t = middle(schedule)
    gamma, nu, sigma = schedule.gamma(t), schedule.nu(t), schedule.sigma(t)
    x_t = SCALE * (gamma * MEAN + random_image((2, 1, 8, 8)))
    x0 = model.denoise(x_t, t)
    torch.testing.assert_close(x0, posterior_mean(x_t / gamma, sigma), rtol=1e-5, atol=1e-5 * SCALE)
    torch.testing.assert_close(model.denoise_at(x_t / gamma, sigma), x0, rtol=1e-5, atol=1e-5 * SCALE)
    noise, score = model.predict_noise(x_t, t), model.score(x_t, t)
    torch.testing.assert_close(gamma * x0 + SCALE * nu * noise, x_t, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close((x_t + (SCALE * nu) ** 2 * score) / gamma, x0, rtol=1e-5, atol=1e-5 * SCALE)
    # The Gaussian's own score, in image units.
    exact = -(x_t - SCALE * gamma * MEAN) / (SCALE**2 * (gamma**2 * VARIANCE + nu**2))
    torch.testing.assert_close(score, exact, rtol=1e-5, atol=1e-5 / SCALE)
    u0, eps = model.predict(x_t / SCALE, t)
    torch.testing.assert_close(gamma * u0 + nu * eps, x_t / SCALE)


def test_time_input_t_is_scaled_to_a_thousand():
    seen = []

    def network(images, times, class_labels):
        seen.append(float(times[0]))
        return images

    for schedule, t, expected in ((VPSchedule(), 0.25, 250.0), (DDPMSchedule(), 40, 40.0)):
        ScoreModel(network, schedule, "eps", time_input="t").predict(torch.zeros(1, 4, 4), t)
        assert seen[-1] == pytest.approx(expected)


def test_three_planes_are_averaged_with_their_labels():
    means = (0.5, 1.0, 3.0)
    network = AnalyticGaussian(VPSchedule(), "eps", mean=means)
    model = ScoreModel(network, VPSchedule(), "eps", multiple=4).on(geometry((4, 8, 12)), 1.0, planes="three")
    x, sigma = random_image((2, 4, 8, 12)), 0.4
    found = model.denoise_at(x, sigma)
    shrink = VARIANCE / (VARIANCE + sigma**2)
    expected = sum(mean + shrink * (x - mean) for mean in means) / 3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert [(shape, set(labels)) for shape, labels in network.calls] == [
        ((8, 1, 8, 12), {0}),
        ((16, 1, 4, 12), {1}),
        ((24, 1, 4, 8), {2}),
    ]
    assert model.counter.evaluations == 2


def test_alternating_orientations_take_turns_and_share_what_is_nobodys_turn():
    means = (0.5, 1.0, 3.0)
    network = AnalyticGaussian(VPSchedule(), "eps", mean=means)
    unbound = ScoreModel(network, VPSchedule(), "eps", multiple=4)
    model, three = (unbound.on(geometry((4, 8, 12)), 1.0, planes) for planes in ("alternating", "three"))
    u, t = model.to_latent(random_image((2, 4, 8, 12))), VPSchedule().t_of_sigma(0.4)
    shared, _ = three.predict(u, t)
    found = []
    for turn in range(4):
        network.calls.clear()
        u0, eps = model.predict(u, t, turn)
        assert {label for _, labels in network.calls for label in labels} == {turn % 3}
        torch.testing.assert_close(unbound.schedule.gamma(t) * u0 + unbound.schedule.nu(t) * eps, u)
        found.append(u0)
    assert torch.equal(found[0], found[3])
    torch.testing.assert_close(sum(found[:3]) / 3, shared)
    assert torch.equal(model.predict(u, t)[0], shared)
    assert torch.equal(three.predict(u, t, 1)[0], shared)
    assert torch.equal(model.residual(u, 0.4), three.residual(u, 0.4))
    assert model.counter.evaluations == 2 * (4 + 2)


def test_slice_orientations():
    """Rows and columns of the slices are (y, x), (z, x) and (z, y), also for volumes that need padding."""
    x = random_image((2, 5, 6, 7))
    model = ScoreModel(MeanOfNeighbours(), VPSchedule(), "x0", multiple=4).on(geometry((5, 6, 7)), 1.0, planes="three")
    pad = torch.nn.functional.pad(x, (1, 0, 1, 0, 1, 0))
    z, y, col = pad[..., :-1, 1:, 1:], pad[..., 1:, :-1, 1:], pad[..., 1:, 1:, :-1]
    planes = [0.5 * x + 0.3 * b + 0.2 * a for a, b in ((y, col), (z, col), (z, y))]
    # sigma is small, so that the schedule's attenuation gamma is nearly 1 and the network's input is nearly x.
    t = VPSchedule().t_of_sigma(0.3)
    torch.testing.assert_close(model.denoise(x, t), sum(planes) / 3)


@pytest.mark.parametrize("shape", [(1, 7, 9), (3, 8, 8), (5, 5, 12)])
def test_odd_sizes_and_plane_numbers(shape):
    """Padding changes nothing inside, for a network whose own boundary is zero as the padding is."""
    x = random_image((2, 2, *shape))
    found = ScoreModel(MeanOfNeighbours(), VPSchedule(), "x0", multiple=4).on(geometry(shape), 1.0).denoise(x, 0.1)
    exact = ScoreModel(MeanOfNeighbours(), VPSchedule(), "x0", multiple=1).on(geometry(shape), 1.0).denoise(x, 0.1)
    assert found.shape == x.shape
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("max_batch", [1, 2, 5])
def test_batches_do_not_change_the_result(max_batch):
    model = ScoreModel(MeanOfNeighbours(), VPSchedule(), "x0", multiple=4)
    x = random_image((3, 4, 8, 8))
    whole = model.on(geometry((4, 8, 8)), 1.0, planes="three")
    parts = model.on(geometry((4, 8, 8)), 1.0, planes="three", max_batch=max_batch)
    torch.testing.assert_close(parts.denoise(x, 0.2), whole.denoise(x, 0.2), rtol=0, atol=1e-12)


def test_samples_share_one_network_call():
    network = MeanOfNeighbours()
    model = ScoreModel(network, VPSchedule(), "x0").on(geometry((1, 128, 128)), 1.0)
    model.predict(torch.zeros(5, 1, 128, 128), 0.5)
    assert network.calls == 1
    assert model.counter.evaluations == 5


@pytest.mark.parametrize("planes", ["transverse", "three"])
def test_residual_is_the_gradient_through_the_resampling(planes):
    """``residual / (c sigma)^2`` is the gradient of ``-log p_sigma(P x / c)``, known for the Gaussian."""
    c, sigma = 3.0, 0.35
    model = gaussian_model().on(geometry((5, 9, 10), (3.0, 2.3, 2.3)), c, planes=planes)
    x = random_image((5, 9, 10)).requires_grad_(True)
    log_density = -((model.to_latent(x) - MEAN) ** 2).sum() / (2 * (VARIANCE + sigma**2))
    (gradient,) = torch.autograd.grad(-log_density, x)
    torch.testing.assert_close(model.residual(x.detach(), sigma) / (c * sigma) ** 2, gradient, rtol=1e-5, atol=1e-5)


def test_residual_without_resampling_is_what_denoising_takes_away():
    model = ScoreModel(MeanOfNeighbours(), VPSchedule(), "x0", multiple=4).on(geometry((1, 7, 9)), SCALE)
    x = SCALE * random_image((2, 1, 7, 9))
    torch.testing.assert_close(model.residual(x, 0.2), x - model.denoise_at(x, 0.2))


def test_binding_leaves_the_model_unbound_and_counts_anew():
    model = gaussian_model()
    bound = model.on(geometry(), 2.0)
    bound.denoise(torch.zeros(1, 8, 8), 0.5)
    assert (model.geometry, model.counter.evaluations) == (None, 0)
    assert bound.network is model.network
    assert bound.hash == model.hash
    again = bound.on(geometry((1, 4, 4)), 3.0)
    assert (again.intensity_scale, bound.intensity_scale) == (3.0, 2.0)
    assert (again.counter.evaluations, bound.counter.evaluations) == (0, 1)
    assert bound.counter.seconds > 0
    with pytest.raises(ValueError, match=r"bind it with model\.for_data"):
        model.denoise(torch.zeros(1, 8, 8), 0.5)


def test_results_are_ordinary_tensors():
    """A caller may change them in place, and differentiate what follows."""
    model = gaussian_model().on(geometry(), 1.0)
    for result in (*model.predict(torch.rand(1, 8, 8), 0.5), model.denoise(torch.rand(1, 8, 8), 0.5)):
        assert not result.is_inference()
        assert not result.requires_grad
        result.clamp_(min=0)


def test_what_cannot_work_is_refused():
    model = gaussian_model()
    bound = model.on(geometry(), 1.0)
    with pytest.raises(ValueError, match="one plane"):
        model.on(geometry(), 1.0, planes="three")
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="intensity_scale"):
            model.on(geometry(), scale)
    with pytest.raises(ValueError, match="noise"):
        bound.denoise(torch.zeros(1, 8, 8), 0.0)
    with pytest.raises(ValueError, match="sigma"):
        bound.denoise_at(torch.zeros(1, 8, 8), 100.0)
    with pytest.raises(ValueError, match="shape"):
        bound.denoise(torch.zeros(1, 8, 9), 0.5)
    with pytest.raises(ValueError, match="multiples of 4"):
        model.predict(torch.zeros(1, 6, 6), 0.5)
    with pytest.raises(ValueError, match="max_batch"):
        model.on(geometry(), 1.0, max_batch=0)
    with pytest.raises(ValueError, match="unknown keys"):
        ScoreModel(MeanOfNeighbours(), VPSchedule(), metadata={"isotope": "F-18"})
    with pytest.raises(ValueError, match="architecture"):
        model.save("never-written.safetensors")


ARCHITECTURE = NetworkConfig(channels=(4, 8), attention_levels=(False, False), norm_num_groups=4, num_head_channels=8)


def real_model(seed=0, patch_size=1):
    architecture = replace(ARCHITECTURE, patch_size=patch_size)
    network = build_network(architecture, seed=seed)
    last = dict(network.named_parameters())["out.2.conv.weight" if patch_size == 1 else "network.out.2.conv.weight"]
    torch.nn.init.normal_(last, 0, 0.1, generator=torch.Generator().manual_seed(seed))
    return ScoreModel(
        network, VPSchedule(), "v", (2.0, 2.0, 2.0), {"tracer": "FDG", "training": {"steps": 0}},
        architecture=architecture,
    )  # fmt: skip


@pytest.mark.parametrize("patch_size", [1, 2])
def test_a_saved_model_is_the_same_model(tmp_path, patch_size):
    model, path = real_model(patch_size=patch_size), tmp_path / "m.safetensors"
    digest = model.save(path)
    loaded = ScoreModel.load(path)
    assert digest == loaded.hash == model.hash
    assert real_model(seed=1, patch_size=patch_size).hash != digest
    assert loaded.multiple == 2 * patch_size
    assert (loaded.metadata, loaded.voxel_size) == (model.metadata, model.voxel_size)
    x = torch.rand(2, 3, 8, 10)
    for planes in ("transverse", "three"):
        found, expected = (m.on(geometry((3, 8, 10)), 1.0, planes=planes).denoise(x, 0.3) for m in (loaded, model))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_device_that_is_not_there_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    real_model().save(path)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="cuda"):
            ScoreModel.load(path, device="cuda")
    with pytest.raises(ValueError, match="device"):
        ScoreModel.load(path, device="abacus")


def test_bfloat16_is_inside_the_network_only(tmp_path, caplog, monkeypatch):
    path = tmp_path / "m.safetensors"
    real_model().save(path)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    grid, x = geometry((3, 8, 10)), torch.rand(2, 3, 8, 10)
    exact, rough = (ScoreModel.load(path, precision=p).on(grid, 5.0) for p in ("float32", "bfloat16"))
    assert (exact.precision, rough.precision) == ("float32", "bfloat16")
    assert rough.hash == exact.hash
    found, expected = rough.denoise(x, 0.3), exact.denoise(x, 0.3)
    assert found.dtype == torch.float32
    assert 1e-5 < (found - expected).norm() / expected.norm() < 0.1  # random weights amplify
    u = rough.to_latent(x).requires_grad_()
    rough.predict_with_gradient(u, 0.3)[0].sum().backward()
    assert u.grad.dtype == torch.float32
    assert bool(torch.isfinite(u.grad).all())
    assert not caplog.records
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    ScoreModel.load(path, precision="bfloat16")
    assert "slower than float32" in caplog.text
    with pytest.raises(ValueError, match="precision must be one of auto, float32, bfloat16, found 'half'"):
        ScoreModel.load(path, precision="half")


@pytest.mark.parametrize("channels", [(16, 32), (128,)])
def test_normalisation_that_is_slow_in_bfloat16_is_done_in_float32(channels):
    network = build_network(
        NetworkConfig(channels=channels, attention_levels=(False,) * len(channels), num_res_blocks=1)
    )
    seen = []
    for module in network.modules():
        if isinstance(module, torch.nn.GroupNorm):
            kept = "float32" if module.num_channels // module.num_groups % 16 else "bfloat16"
            module.register_forward_hook(lambda m, args, out, kept=kept: seen.append((args[0].dtype, out.dtype, kept)))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        network(torch.randn(2, 1, 16, 16), torch.zeros(2), class_labels=torch.zeros(2, dtype=torch.long))
    assert seen
    assert all((str(found), given) == (f"torch.{kept}", torch.bfloat16) for found, given, kept in seen)


@pytest.mark.parametrize("kind", ["unet", "drunet"])
def test_gradients_of_two_planes_are_right_in_bfloat16(kind):
    network = build_network(
        NetworkConfig(kind=kind, spatial_dims=3, channels=(32, 32), attention_levels=(False, False), num_res_blocks=1,
                      num_class_embeds=0)
    )  # fmt: skip
    images, time, found = torch.randn(2, 1, 4, 8, 8), torch.full((2,), 10.0), []
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    for reduced in (False, True):
        network.zero_grad()
        for size in (5_000, 20_000, 100_000):  # what memory that nobody writes to would have
            torch.full((size,), torch.nan)
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            network(images, time).float().square().sum().backward()
            assert torch.is_autocast_enabled("cpu") == reduced
        found.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
    assert float((found[1] - found[0]).norm() / found[0].norm()) < 0.05


@pytest.mark.parametrize(("instructions", "expected"), [("avx512_bf16", "bfloat16"), ("avx2", "float32")])
def test_samplers_compute_in_bfloat16_where_the_processor_has_it(tmp_path, monkeypatch, instructions, expected):
    path, grid = tmp_path / "m.safetensors", geometry((1, 8, 8))
    real_model().save(path)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instructions: True})
    model = ScoreModel.load(path)
    assert model.for_data(grid, intensity_scale=1.0, sampling=True).precision == expected
    assert {model.on(grid, 1.0).precision, model.for_data(grid, intensity_scale=1.0).precision} == {"float32"}
    exact = ScoreModel.load(path, precision="float32")
    assert exact.for_data(grid, intensity_scale=1.0, sampling=True).precision == "float32"


@pytest.mark.requires_cuda
@pytest.mark.parametrize("planes", ["transverse", "three"])
def test_cuda_gives_what_the_cpu_gives(tmp_path, planes):
    path = tmp_path / "m.safetensors"
    real_model().save(path)
    grid = geometry((4, 9, 10), (3.0, 2.3, 2.3))
    cpu, cuda = (ScoreModel.load(path, device=device).on(grid, 5.0, planes=planes) for device in ("cpu", "cuda"))
    x = torch.rand(2, 4, 9, 10)
    assert cuda.to_latent(x).device.type == "cuda"
    for name in ("denoise_at", "residual"):
        found = getattr(cuda, name)(x, 0.3)
        assert found.device == x.device
        torch.testing.assert_close(found, getattr(cpu, name)(x, 0.3), rtol=2e-3, atol=2e-3)


def test_a_network_of_one_orientation_does_not_do_three():
    config = NetworkConfig(
        channels=(4, 8), attention_levels=(False, False), norm_num_groups=4, num_head_channels=8, num_class_embeds=1
    )
    model = ScoreModel(build_network(config), VPSchedule(), "v", architecture=config)
    assert model.on(geometry((2, 8, 8)), 1.0).denoise(torch.zeros(2, 8, 8), 0.5).shape == (2, 8, 8)
    with pytest.raises(ValueError, match="three orientations"):
        model.on(geometry((2, 8, 8)), 1.0, planes="three")


def test_batches_shrink_with_the_image():
    architecture = real_model().architecture
    small, large, huge = (largest_batch(architecture, n * n, torch.device("cpu")) for n in (64, 256, 10**5))
    assert small > 16 * large / 2
    assert large >= 1
    assert huge == 1
