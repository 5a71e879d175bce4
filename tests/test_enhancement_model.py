"""Doses and noise of enhancement, its networks, and their files."""

import math
from dataclasses import replace

import pytest
import torch

from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models import ModelFileError, NetworkConfig, ScoreModel
from sirf_diffusion.models.doses import DoseSchedule, thinned, with_more_dose
from sirf_diffusion.models.enhancement import EnhancementModel, EnhancementModelConfig, LowDoseConfig, noise_measure
from sirf_diffusion.models.latent import CTGuidedAttention, EnhancementConfig, EnhancementNetwork, told_time
from sirf_diffusion.reconstructors.low_dose import LowDose

SLICES = NetworkConfig(
    channels=(8, 16), attention_levels=(False, True), num_res_blocks=1, num_head_channels=8, num_class_embeds=0,
    patch_size=2,
)  # fmt: skip
VOLUMES = replace(SLICES, spatial_dims=3, patch_size=1)
EXACT = EnhancementConfig(SLICES, ct="both", noise="binomial", compression=1, patch=16)
LATENT = EnhancementConfig(VOLUMES, ct="attention", compression=2, autoencoder_channels=8, patch=16)
SIZE = (4.0, 4.0, 4.0)


def seeded(number=0):
    return torch.Generator().manual_seed(number)


@pytest.mark.parametrize("law", ["log", "poisson"])
def test_the_start_step_inverts_the_dose_schedule(law):
    schedule = DoseSchedule(law=law)
    doses = schedule.doses
    assert (len(doses), float(doses[0])) == (401, 1.0)
    assert float(doses[-1]) == pytest.approx(0.02)
    assert bool((doses.diff() < 0).all())
    assert [schedule.step_of(schedule.dose(t)) for t in range(401)] == list(range(401))
    assert schedule.step_of(1e-3) == 400


def test_the_poisson_law_adds_variance_in_proportion_to_the_step():
    steps = (1 / DoseSchedule(num_steps=10, law="poisson").doses).diff()
    torch.testing.assert_close(steps / steps[0], torch.arange(1.0, 11.0, dtype=torch.float64))


@pytest.mark.parametrize("shares", [(0.1,), (0.5, 0.4, 0.5)])
def test_thinned_poisson_counts_are_poisson_counts_of_the_lower_dose(shares):
    """Chi-square of 1e5 bins, and mean and variance, however many steps it took."""
    mean, bins = 8.0, 100_000
    counts = torch.poisson(torch.full((bins,), mean), generator=seeded())
    for k, share in enumerate(shares):
        counts = thinned(counts, share, seeded(k + 1))
    rate = mean * math.prod(shares)
    assert float(counts.mean()) == pytest.approx(rate, abs=4 * math.sqrt(rate / bins))
    assert float(counts.var()) == pytest.approx(rate, rel=0.03)
    expected = [bins * math.exp(-rate) * rate**k / math.factorial(k) for k in range(6)]
    expected.append(bins - sum(expected))
    found = [int((counts == k).sum()) for k in range(6)]
    found.append(bins - sum(found))
    chi_square = sum((f - e) ** 2 / e for f, e in zip(found, expected, strict=True))
    assert chi_square < 22.5  # 6 degrees of freedom: exceeded once in 1000


def test_counts_that_were_thinned_away_come_back():
    """The reverse step: d x + (d' - d) x' has mean and variance of counts of dose d'."""
    rate, low, high = 50.0, 0.2, 0.6
    now = torch.poisson(torch.full((100_000,), rate * low), generator=seeded(1)) / low
    more = torch.poisson(torch.full((100_000,), rate * (high - low)), generator=seeded(2)) / (high - low)
    after = with_more_dose(now, low, more, high)
    assert float(after.mean()) == pytest.approx(rate, rel=1e-3)
    assert float(after.var()) == pytest.approx(rate / high, rel=0.02)


@pytest.fixture(scope="module")
def disk():
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 32)] * 2, indexing="ij")
    image = torch.sigmoid(15 * (0.5 - y**2 - x**2)) + 1.5 * torch.exp(-20 * ((y - 0.2) ** 2 + x**2))
    return image[None, None].repeat(6, 1, 1, 1)


@pytest.mark.parametrize("noise", ["binomial", "sinogram", "gaussian"])
def test_noise_grows_as_the_dose_falls_and_keeps_the_activity(disk, noise):
    low_dose = LowDose(LowDoseConfig(counts_per_ml=3e4), noise, SIZE)
    images = [low_dose(disk, torch.full((6,), dose), seeded()) for dose in (1.0, 0.25)]
    errors = [float((image - disk).square().mean().sqrt()) for image in images]
    assert 1.5 < errors[1] / errors[0] < 2.5
    for image in images:
        assert float(image.sum() / disk.sum()) == pytest.approx(1, abs=0.05)
    again = low_dose(disk, torch.full((6,), 0.25), seeded())
    assert torch.equal(again, images[1])


def test_noise_of_volumes_reaches_their_corners(disk):
    volume = torch.ones(1, 2, 4, 16, 16)
    noisy = LowDose(LowDoseConfig(), "sinogram", SIZE)(volume, torch.tensor([0.1]), seeded())
    assert noisy.shape == volume.shape
    assert bool((noisy[..., 0, 0] != 1).all())


def test_smoothed_images_are_less_noisy(disk):
    low_dose, dose = LowDose(LowDoseConfig(), "binomial", SIZE), torch.full((6,), 0.1)
    grid = ImageGeometry((6, 32, 32), SIZE)
    plain, smooth = (
        noise_measure(low_dose(disk, dose, seeded(), torch.full((6,), width))[:, 0], grid) for width in (0.0, 8.0)
    )
    assert smooth < 0.7 * plain


@pytest.mark.parametrize(("ct", "config"), [
    ("none", EXACT), ("attention", EXACT), ("channel", EXACT), ("both", EXACT), ("attention", LATENT), ("both", LATENT),
])  # fmt: skip
def test_an_untrained_network_gives_back_what_it_gets(ct, config):
    config = replace(config, ct=ct)
    model = EnhancementModel(EnhancementModelConfig(config, DoseSchedule(), LowDoseConfig()))
    size = (16,) * config.spatial_dims
    images, image = torch.rand(2, 1, *size), torch.rand(2, 1, *size)
    latents = model.to_latent(images)
    assert latents.shape[1:] == ((1, *size) if config.compression == 1 else (3, *(n // 2 for n in size)))
    assert torch.equal(model.clean(latents, 0.1, image), latents)
    assert model.to_image(latents).shape == images.shape


def test_where_to_look_is_the_cts_choice_and_what_is_seen_there_is_pet():
    """softmax(Q_CT K_CT^T / sqrt(d) + B) V_PET, written out."""
    layer = CTGuidedAttention(2, 8)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=seeded())
    pet, ct = torch.randn(1, 8, 3, 4, generator=seeded(1)), torch.randn(1, 32, 3, 4, generator=seeded(2))
    q, k, v = (t.flatten(2)[0].T for t in (layer.query(ct), layer.key(ct), layer.value(layer.norm(pet))))
    places = [(y, x) for y in range(3) for x in range(4)]
    bias = torch.tensor([[layer.bias[0, a[0] - b[0] + 32] + layer.bias[1, a[1] - b[1] + 32] for b in places]
                         for a in places])  # fmt: skip
    seen = torch.softmax(q @ k.T / math.sqrt(8) + bias, -1) @ v
    torch.testing.assert_close(layer(pet, ct), pet + layer.out(seen.T.reshape(1, 8, 3, 4)), rtol=1e-4, atol=1e-4)


def test_a_trained_network_looks_at_dose_and_ct():
    network = EnhancementNetwork(EXACT)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=seeded()))
    image, ct = torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16)
    with torch.no_grad():
        results = [network(image, told_time(torch.tensor([d])), c) for d, c in ((0.1, ct), (0.5, ct), (0.1, None))]
    assert not torch.allclose(results[0], results[1])
    assert not torch.allclose(results[0], results[2])


@pytest.mark.parametrize(("changes", "words"), [
    ({"noise": "binomial", "compression": 2}, "no counts to thin"), ({"compression": 3}, "1, 2, 4 or 8"),
    ({"patch": 18}, "multiple of"), ({"ct": "mr"}, "ct must be"), ({"autoencoder_channels": 12}, "multiple of 8"),
    ({"patch": 512}, "attend to each other"), ({"network": replace(SLICES, num_class_embeds=3)}, "orientations"),
])  # fmt: skip
def test_a_configuration_out_of_range_says_so(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(EXACT, **changes)


@pytest.fixture(params=[EXACT, LATENT], ids=["exact", "latent"])
def model(request):
    torch.manual_seed(0)
    table = ((1.0, 0.05), (0.25, 0.1), (0.02, 0.3))
    config = EnhancementModelConfig(request.param, DoseSchedule(), LowDoseConfig(), noise_by_dose=table, tracer="test")
    return EnhancementModel(config).eval()


def test_a_file_keeps_everything(model, tmp_path):
    path = tmp_path / "a.safetensors"
    digest = model.save(path, "float32")
    loaded = EnhancementModel.load(path, "cpu")
    assert (loaded.config, loaded.hash) == (model.config, digest)
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    assert EnhancementModel.is_one(path)
    assert not EnhancementModel.is_one("brain")
    with pytest.raises(ModelFileError, match=r"enhancement model.*sirf-diffusion enhance"):
        ScoreModel.load(path)
    with pytest.raises(ModelFileError, match="not an enhancement model"):
        EnhancementModel.load("brain")


@pytest.mark.parametrize(("key", "value"), [
    ("architecture", {}), ("schedule", []), ("schedule", {"num_steps": 10**12}), ("scan", {"counts_per_ml": -1}),
    ("noise_by_dose", [[1, 2], [0.5, 1]]), ("noise_by_dose", [[2, 1]]), ("noise_by_dose", "x"),
    ("voxel_size", [0, 1, 1]), ("latent_scale", 0), ("training", []), ("tracer", 3), ("version", 99), ("more", 1),
])  # fmt: skip
def test_a_file_that_says_nonsense_is_refused(model, tmp_path, key, value):
    from sirf_diffusion.models.enhancement import _FORMAT

    path = tmp_path / "a.safetensors"
    _FORMAT.write(path, model.state_dict(), model.config.to_dict() | {key: value})
    with pytest.raises(ModelFileError, match=str(path)):
        EnhancementModel.load(path, "cpu")


def test_weights_that_are_not_finite_or_do_not_fit_are_refused(model, tmp_path):
    from sirf_diffusion.models.enhancement import _FORMAT

    weights = {name: value.clone() for name, value in model.state_dict().items()}
    first = next(iter(weights))
    for changed in (weights | {first: weights[first] * math.nan}, {k: v for k, v in weights.items() if k != first}):
        _FORMAT.write(tmp_path / "a.safetensors", changed, model.config.to_dict())
        with pytest.raises(ModelFileError, match=first):
            EnhancementModel.load(tmp_path / "a.safetensors", "cpu")


def test_the_dose_of_an_image_is_found_from_its_noise(disk, caplog):
    """Within a factor of 1.5, of images that are not those of the table."""
    grid, low_dose = ImageGeometry((6, 32, 32), SIZE), LowDose(LowDoseConfig(), "binomial", SIZE)

    def measure(dose, seed):
        return noise_measure(low_dose(disk, torch.full((6,), dose), seeded(seed))[:, 0], grid)

    table = tuple((dose, measure(dose, 0)) for dose in (1.0, 0.5, 0.25, 0.12, 0.06, 0.03))
    model = EnhancementModel(EnhancementModelConfig(EXACT, DoseSchedule(), LowDoseConfig(), noise_by_dose=table))
    for dose in (0.8, 0.3, 0.1):
        image = low_dose(disk, torch.full((6,), dose), seeded(5))[:, 0]
        assert dose / 1.5 < model.estimated_dose(image, grid) < dose * 1.5
    assert model.estimated_dose(disk[:, 0], grid) == 1
    assert "less than those of the standard dose" in caplog.text
