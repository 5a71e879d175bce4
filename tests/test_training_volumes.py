"""Networks of volumes and networks for each plane: trained, resumed, saved and used like those of slices."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_processes import RECIPE

from sirf_diffusion.cli import main
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models import ScoreModel, VPSchedule, load_model
from sirf_diffusion.models.coverage import in_blocks, largest_block
from sirf_diffusion.models.denoiser import Denoiser
from sirf_diffusion.models.networks import NetworkConfig, build_network, shuffled, unshuffled
from sirf_diffusion.priors import ScorePenalty
from sirf_diffusion.training import train
from sirf_diffusion.training.configuration import configuration, read_configuration
from sirf_diffusion.training.corruption import corrupted
from sirf_diffusion.training.data.augmentation import Augmentation
from sirf_diffusion.training.data.slice_stream import SliceStream
from sirf_diffusion.training.data.volume_file import VolumeFile
from sirf_diffusion.training.distributed import Processes
from sirf_diffusion.training.state import TrainingState
from sirf_diffusion.training.trainer import training_stream

pytestmark = pytest.mark.usefixtures("undrawn", "few_levels")
VOLUMES = replace(
    RECIPE, crops=(16,), cycles=(4,), batch_size=2, validate_every=2, learning_rate=5e-3, warmup_steps=0,
    architecture=NetworkConfig(
        channels=(8, 8), attention_levels=(False, False), num_head_channels=8, patch_size=2, in_channels=2,
        spatial_dims=3, num_class_embeds=0,
    ),
)  # fmt: skip
PLANES = replace(
    RECIPE, crops=(16,), cycles=(4,), validate_every=4,
    architecture=replace(RECIPE.architecture, num_networks=3, num_class_embeds=0),
)  # fmt: skip
EXAMPLES = Path(__file__).parents[1] / "examples" / "training"
STILL = Augmentation(0, 0, 0, 0, 0, intensity=(1, 1), anatomy_intensity=(1, 1))


def randomised(architecture, seed=0):
    """MONAI's networks start at zero output; these do not."""
    network = build_network(architecture, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network.eval().requires_grad_(False)


def test_a_network_of_volumes_learns_a_batch(data):
    recipe = replace(VOLUMES, cycles=(100,), batch_size=4)
    images, planes = training_stream(data, recipe).batch(0, 4)
    assert images.shape == (4, 2, 16, 16, 16)
    example = corrupted(recipe, images, planes, 0, torch.device("cpu"))
    state = TrainingState(recipe, {}, torch.device("cpu"), Processes())
    losses = [float(state.advance(example)) for _ in range(30)]
    assert losses[-1] < 0.85 * losses[0]


# After one step of one slice, two of the three networks have no state of the optimiser yet.
@pytest.mark.parametrize(
    "recipe", [VOLUMES, PLANES, replace(PLANES, batch_size=1)], ids=["volumes", "planes", "planes without slices yet"]
)
def test_resumed_training_equals_uninterrupted(data, tmp_path, recipe):
    whole = train(recipe, tmp_path / "a.safetensors", data=data)
    for steps in (1, None):
        train(recipe, tmp_path / "b.safetensors", data=data, max_steps=steps)
    assert whole.read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    untrained = build_network(recipe.architecture, seed=recipe.seed).state_dict()
    changed = {name for name, value in load_model(whole)[0].state_dict().items() if not value.equal(untrained[name])}
    assert changed
    if recipe is PLANES:
        assert {name.split(".")[1] for name in changed} == {"0", "1", "2"}


def test_each_slice_goes_to_the_network_of_its_plane():
    network = randomised(PLANES.architecture)
    generator = torch.Generator().manual_seed(1)
    images, time = torch.randn((5, 2, 16, 16), generator=generator), torch.arange(5.0)
    planes = torch.tensor([2, 0, 1, 0, 2])
    found = network(images, time, class_labels=planes)
    for k, plane in enumerate(planes.tolist()):
        alone = network.networks[plane](images[k : k + 1], time[k : k + 1])
        torch.testing.assert_close(found[k : k + 1], alone)
    assert not torch.allclose(found[:1], network.networks[0](images[:1], time[:1]))


def test_three_networks_are_averaged_over_a_volume(data, tmp_path):
    path = train(replace(PLANES, cycles=(2,)), tmp_path / "m.safetensors", data=data)
    model = ScoreModel.load(path)
    assert model.architecture.num_networks == 3
    grid = ImageGeometry((16, 16, 16), model.voxel_size)
    u = torch.randn(grid.shape, generator=torch.Generator().manual_seed(0))
    found, _ = model.on(grid, 1.0, "three", guidance=-1).predict(u, 0.3)
    time = 250 * torch.log(torch.tensor([VPSchedule().sigma(0.3)])).expand(16)
    outputs = []
    for axis, network in enumerate(model.network.networks):
        stack = u.movedim(axis, 0)[:, None]
        outputs.append(network(torch.cat((stack, 0 * stack), 1), time)[:, 0].movedim(0, axis))
    gamma, nu = VPSchedule().gamma(0.3), VPSchedule().nu(0.3)
    torch.testing.assert_close(found, gamma * u - nu * sum(outputs) / 3, rtol=1e-4, atol=1e-4)


def test_a_saved_network_of_volumes_denoises_the_same(data, tmp_path):
    path = train(replace(VOLUMES, cycles=(2,)), tmp_path / "m.safetensors", data=data)
    model = ScoreModel.load(path)
    grid = ImageGeometry((13, 20, 18), model.voxel_size)
    bound = model.on(grid, 2.0, guidance=-1)
    assert (bound.planes, bound.latent_shape, model.planes_for(grid)) == ("volume", (16, 20, 20), "volume")
    x = torch.rand(grid.shape, generator=torch.Generator().manual_seed(0))
    first = bound.denoise(x, 0.3)
    digest = model.save(tmp_path / "again.safetensors", "float16")
    assert digest == model.hash
    assert torch.equal(
        ScoreModel.load(tmp_path / "again.safetensors").on(grid, 2.0, guidance=-1).denoise(x, 0.3), first
    )


def test_what_does_not_suit_the_dimensions_is_refused():
    volumes = ScoreModel(lambda images, time, class_labels=None: images, VPSchedule(), spatial_dims=3, multiple=4)
    slices = ScoreModel(lambda images, time, class_labels=None: images, VPSchedule(), multiple=4)
    with pytest.raises(ValueError, match="network of volumes: use 'volume'"):
        volumes.on(ImageGeometry((8, 8, 8), (2.0,) * 3), 1.0, "three")
    with pytest.raises(ValueError, match="network of slices: use 'three'"):
        slices.on(ImageGeometry((8, 8, 8), (2.0,) * 3), 1.0, "volume")
    with pytest.raises(ValueError, match="needs a volume"):
        volumes.on(ImageGeometry((1, 8, 8), (2.0,) * 3), 1.0)
    with pytest.raises(ValueError, match="block must be at least 8"):
        volumes.on(ImageGeometry((8, 8, 8), (2.0,) * 3), 1.0, block=4)
    with pytest.raises(ValueError, match="num_class_embeds 0"):
        replace(VOLUMES.architecture, num_class_embeds=3)
    with pytest.raises(ValueError, match="num_networks must be 1, or 3"):
        replace(PLANES.architecture, num_networks=2)
    with pytest.raises(ValueError, match="untrained"):
        replace(PLANES, planes=(0, 1))


def test_enhancement_and_priors_show_the_network_the_volume():
    shapes = []

    def network(images, time, class_labels=None):
        shapes.append(tuple(images.shape))
        return images / 2

    model = ScoreModel(network, VPSchedule(), "x0", spatial_dims=3, multiple=4)
    grid = ImageGeometry((6, 8, 10), (2.0,) * 3)
    x = torch.rand(grid.shape, generator=torch.Generator().manual_seed(0))
    Denoiser(model, 0.5, intensity_scale=1.0)(x, grid)
    prior = ScorePenalty(model, 0.5, intensity_scale=1.0)
    prior.set_up(grid)
    prior.gradient(x)
    assert set(shapes) == {(1, 1, 8, 8, 12)}


class Local(torch.nn.Module):
    """Looks two voxels far."""

    def __init__(self):
        super().__init__()
        self.calls = []
        generator = torch.Generator().manual_seed(3)
        self.kernel = torch.randn((1, 1, 5, 5, 5), generator=generator) / 10

    def forward(self, images, time, class_labels=None):
        self.calls.append(tuple(images.shape[2:]))
        return torch.tanh(torch.nn.functional.conv3d(images, self.kernel.to(images), padding=2))


@pytest.mark.parametrize("shape", [(40, 36, 60), (32, 48, 100), (16, 16, 16)])
def test_blocks_of_a_local_denoiser_are_the_whole(shape):
    network = Local()
    model = ScoreModel(network, VPSchedule(), "x0", spatial_dims=3, multiple=4)
    grid = ImageGeometry(shape, (2.0,) * 3)
    u = torch.randn((2, *shape), generator=torch.Generator().manual_seed(0))
    whole, _ = model.on(grid, 1.0).predict(u, 0.3)
    assert set(network.calls) == {shape}
    network.calls.clear()
    parts, _ = model.on(grid, 1.0, block=32).predict(u, 0.3)
    assert set(network.calls) == {tuple(min(32, size) for size in shape)}
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


def test_gradients_pass_through_the_blocks():
    model = ScoreModel(Local(), VPSchedule(), "x0", spatial_dims=3, multiple=4)
    grid = ImageGeometry((8, 8, 48), (2.0,) * 3)
    u = torch.randn(grid.shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    gradients = []
    for block in (None, 32):
        u0, _ = model.on(grid, 1.0, block=block).predict_with_gradient(u, 0.3)
        gradients += torch.autograd.grad(u0.square().sum(), u)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)


def test_blocks_start_on_the_strides_of_the_network():
    """A network with strides sees the grid that it sees in the whole volume."""

    def network(images):
        return torch.nn.functional.interpolate(torch.nn.functional.avg_pool3d(images, 4), scale_factor=4)

    u = torch.randn((1, 1, 36, 60, 44), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(in_blocks(network, u, 20, 4), network(u))
    with pytest.raises(ValueError, match="at least 8"):
        in_blocks(network, u, 7, 4)


def test_blends_are_smooth_between_blocks():
    """A denoiser that differs from block to block by a constant leaves no edge."""
    count = iter(range(100))

    def network(images):
        return torch.full_like(images, float(next(count) % 2))

    result = in_blocks(network, torch.zeros((1, 1, 8, 8, 200)), (8, 8, 64), 4)[0, 0, 0, 0]
    assert float(result.diff().abs().max()) < 0.25
    assert float(result.max()) == 1


def test_larger_volumes_get_blocks_that_fit(monkeypatch):
    architecture = replace(VOLUMES.architecture, channels=(32, 64), num_head_channels=32)
    small = largest_block(architecture, (32, 32, 32), 4, torch.device("cpu"))
    large = largest_block(architecture, (512, 512, 512), 4, torch.device("cpu"))
    assert small == 32
    assert 32 <= large < 512
    assert large % 4 == 0
    assert largest_block(architecture, (512, 512, 512), 4, torch.device("cpu"), 0.1) < large


def test_voxels_of_a_block_become_channels_and_come_back():
    images = torch.arange(2 * 2 * 4 * 6 * 8.0).reshape(2, 2, 4, 6, 8)
    patches = unshuffled(images, 2)
    assert patches.shape == (2, 16, 2, 3, 4)
    assert torch.equal(patches[1, 8:, 1, 2, 3], images[1, 1, 2:, 4:, 6:].flatten())
    assert torch.equal(shuffled(patches, 2), images)


def test_cubes_are_turned_with_what_lies_around_them(data):
    file = VolumeFile(data, "train")
    plain = SliceStream(file, (16,), 0, anatomy=True, augmentation=STILL, cubes=True).batch(3, 6)[0]
    turning = replace(STILL, rotation=40.0, scale=0.2)
    turned = SliceStream(file, (16,), 0, anatomy=True, augmentation=turning, cubes=True).batch(3, 6)[0]
    assert plain.shape == turned.shape == (6, 2, 16, 16, 16)
    # The middle stays, and the anatomical image, a function of the emission image, moves with it.
    middle = (slice(None), slice(None), slice(7, 9), slice(7, 9), slice(7, 9))
    torch.testing.assert_close(plain[middle].mean((2, 3, 4)), turned[middle].mean((2, 3, 4)), rtol=0.05, atol=0.02)
    assert not torch.allclose(plain, turned, atol=0.05)
    a, b = turned[0, 0].flatten(), turned[0, 1].flatten()
    assert float((b / b.max() - (a / a.max()) ** 2).abs().max()) < 0.05
    # No corner of a cube reaches beyond the margin.
    change = replace(STILL, rotation=90.0, scale=0.5)
    ones = torch.ones((1, *(16 + 2 * change.margin(16),) * 3))
    assert all(float(change.cubes(np.random.default_rng(k), ones, 16, (2, 2, 2)).min()) > 0.999 for k in range(20))


def test_configuration_of_volumes_and_planes():
    volumes = configuration({"network": {"spatial_dims": 3}, "data": {"crops": [32]}}).recipe
    assert (volumes.architecture.spatial_dims, volumes.architecture.num_class_embeds) == (3, 0)
    planes = configuration({"network": {"num_networks": 3}}).recipe
    assert (planes.architecture.num_networks, planes.architecture.num_class_embeds) == (3, 0)
    with pytest.raises(ValueError, match=r"table .network. has unknown keys .'depth'"):
        configuration({"network": {"depth": 3}})


@pytest.mark.parametrize("name", ["first", "body", "volumes"])
def test_example_configurations_describe_networks(name):
    recipe = read_configuration(EXAMPLES / f"{name}.toml").recipe
    assert recipe.name == name
    assert build_network(recipe.architecture, device="meta").training
    assert f"examples/training/{name}.toml" in (EXAMPLES.parents[1] / "docs" / "training.md").read_text(
        encoding="utf-8"
    )


def test_files_of_slices_say_what_they_said():
    """Older releases refuse unknown keys: networks that they can use must not have any."""
    assert set(NetworkConfig().to_dict()) == {
        "channels", "attention_levels", "num_res_blocks", "norm_num_groups", "num_head_channels", "num_class_embeds",
        "in_channels", "out_channels", "patch_size",
    }  # fmt: skip
    assert NetworkConfig.from_dict(VOLUMES.architecture.to_dict()) == VOLUMES.architecture


def test_a_network_of_volumes_is_judged_on_cubes(data, tmp_path):
    recipe = replace(VOLUMES, cycles=(2,), architecture=replace(VOLUMES.architecture, in_channels=1))
    train(recipe, tmp_path / "m.safetensors", data=data)
    assert main(["models", "evaluate", str(tmp_path / "m.safetensors"), "--data", str(data), "--out",
                 str(tmp_path / "card")]) == 0  # fmt: skip
    report = json.loads((tmp_path / "card" / "report.json").read_text(encoding="utf-8"))
    assert report["about"]["architecture"]["spatial_dims"] == 3
    assert "2 cubes of the validation volumes" in (tmp_path / "card" / "README.md").read_text(encoding="utf-8")


def test_fine_tuning_adds_the_anatomical_image_to_all_networks(data, tmp_path):
    recipe = replace(PLANES, architecture=replace(PLANES.architecture, in_channels=1), cycles=(2,))
    train(recipe, tmp_path / "a.safetensors", data=data)
    train(PLANES, tmp_path / "b.safetensors", data=data, init=tmp_path / "a.safetensors", max_steps=0)
    first, second = (load_model(tmp_path / f"{name}.safetensors")[0] for name in "ab")
    images, time = torch.randn((3, 2, 16, 16), generator=torch.Generator().manual_seed(0)), torch.ones(3)
    planes = torch.arange(3)
    torch.testing.assert_close(
        second(images, time, class_labels=planes), first(images[:, :1], time, class_labels=planes)
    )
