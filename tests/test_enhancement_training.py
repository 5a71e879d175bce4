"""Training of enhancement models: both stages, resumed to the bit, and what a configuration says."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from test_enhancement_model import EXACT, LATENT

from sirf_diffusion.models.doses import DoseSchedule
from sirf_diffusion.models.enhancement import EnhancementModel, LowDoseConfig
from sirf_diffusion.simulation import FIRST_HELD_OUT_SUBJECT
from sirf_diffusion.training import train
from sirf_diffusion.training.configuration import configuration, default_text
from sirf_diffusion.training.data.augmentation import Augmentation
from sirf_diffusion.training.data.slice_stream import with_neighbours
from sirf_diffusion.training.enhancement import EnhancementStage
from sirf_diffusion.training.enhancement_recipes import ENHANCEMENT_RECIPES, EnhancementRecipe
from sirf_diffusion.training.loop import RunOptions
from sirf_diffusion.training.trainer import training_stream

CPU = torch.device("cpu")
STILL = Augmentation(0, 0, 0, 0, 0, intensity=(1, 1), anatomy_intensity=(1, 1), shift=0)
pytestmark = pytest.mark.usefixtures("undrawn", "few_levels")
SLICES = EnhancementRecipe(
    "small", enhancement=EXACT, doses=DoseSchedule(), crops=(32,), batch_size=4, cycles=(6,), warmup_steps=2,
    learning_rate=2e-3, precision="float32", validate_every=3, scan=LowDoseConfig(num_iterations=1),
)  # fmt: skip
NEIGHBOURS = replace(SLICES, enhancement=replace(EXACT, neighbours=1))
VOLUMES = replace(SLICES, enhancement=LATENT, crops=(16,), batch_size=2, autoencoder_steps=4)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The model of a recipe, trained without a stop."""

    @cache
    def trained(recipe):
        path = tmp_path_factory.mktemp("whole") / "whole.safetensors"
        train(recipe, path, data=data, device="cpu")
        return path

    return trained


@pytest.mark.parametrize("recipe", [SLICES, NEIGHBOURS, VOLUMES], ids=["exact", "neighbours", "latent"])
def test_a_training_goes_on_to_the_same_bits(whole, data, tmp_path, recipe):
    files = whole(recipe), tmp_path / "parts.safetensors"
    for steps in (2, 7) if recipe is VOLUMES else (3,):
        train(recipe, files[1], data=data, device="cpu", max_steps=steps, options=RunOptions(checkpoint_every=2))
    train(recipe, files[1], data=data, device="cpu")
    model, parts = (EnhancementModel.load(path, "cpu") for path in files)
    for name, value in model.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    assert model.config.training["steps"] == 6
    assert model.config.voxel_size == (4.0, 4.0, 4.0)
    assert (model.autoencoder is None) == (recipe is not VOLUMES)
    doses, noises = zip(*model.config.noise_by_dose, strict=True)
    assert (doses[0], sorted(noises)) == (1, list(noises))
    log = (files[0].with_name("whole.safetensors.training") / "log.csv").read_text().splitlines()
    assert log[0].endswith("rmse_dose_0.05,rmse_dose_0.02")
    if recipe is VOLUMES:
        assert model.config.latent_scale != 1
        assert (files[0].with_name("whole.safetensors.training") / "autoencoder/autoencoder.safetensors").exists()


@pytest.mark.parametrize("recipe", [SLICES, VOLUMES], ids=["exact", "latent"])
def test_a_training_starts_from_a_model(whole, data, tmp_path, recipe):
    """Its autoencoder stays; a later run goes on, and another start is refused."""
    first, second = whole(recipe), tmp_path / "second.safetensors"
    train(recipe, second, data=data, device="cpu", init=first, max_steps=0)
    begun, model = (EnhancementModel.load(path, "cpu") for path in (first, second))
    for name, value in begun.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert model.config.latent_scale == begun.config.latent_scale
    assert model.config.training["init"] == {"sha256": begun.hash}
    train(recipe, second, data=data, device="cpu", init=first)
    assert not torch.equal(begun.network.unet.out[2].conv.weight, model_weight(second))
    with pytest.raises(ValueError, match="another training"):
        train(recipe, second, data=data, device="cpu", init=second)


def model_weight(path):
    return EnhancementModel.load(path, "cpu").network.unet.out[2].conv.weight


def test_training_makes_both_stages_better(data, tmp_path):
    """Loss of the last ten steps below that of the first, of the autoencoder and of the network."""
    recipe = replace(VOLUMES, cycles=(20,), autoencoder_steps=20, validate_every=10)
    train(recipe, tmp_path / "m.safetensors", data=data, device="cpu")
    for folder in ("", "autoencoder"):
        rows = (tmp_path / "m.safetensors.training" / folder / "log.csv").read_text().splitlines()[1:]
        losses = [float(row.split(",")[2]) for row in rows]
        assert losses[-1] < losses[0], folder


def test_examples_are_patches_around_activity_of_doses_of_their_own(data):
    source = training_stream(data, SLICES)
    stage = EnhancementStage(SLICES, source, data, data)
    images, _ = source.batch(3, 4)
    example, again = (stage.example(images, 3, CPU, 0, 1) for _ in range(2))
    assert example.noisy.shape == example.clean.shape == (4, 1, 16, 16) == example.ct.shape
    assert len(set(example.time.tolist())) == 4
    assert float(example.clean.mean()) > float(images[:, :1].mean())
    for name in ("noisy", "time", "ct", "clean", "weight"):
        assert torch.equal(getattr(example, name), getattr(again, name))
    for part in (example.part(k, 2) for k in range(2)):
        assert len(part.clean) == 2


def test_slices_come_with_their_neighbours_and_the_middle_one_is_the_target(data):
    """At the ends of a volume they are mirrored."""
    alone, source = (training_stream(data, replace(r, augmentation=STILL)) for r in (SLICES, NEIGHBOURS))
    images, single = source.batch(0, 64)[0], alone.batch(0, 64)[0]
    assert torch.equal(images[:, :, 1], single)
    assert not torch.equal(images[:, :, 0], images[:, :, 2])
    stage = EnhancementStage(NEIGHBOURS, source, data, data)
    example = stage.example(images[:4], 3, CPU, 0, 1)
    assert (example.noisy.shape[1], example.clean.shape[1], example.ct.shape[1]) == (3, 1, 1)
    assert float((example.noisy[:, 1:2] - example.clean).abs().mean()) < float(example.clean.mean())
    volume = torch.arange(5.0)[:, None, None].expand(5, 2, 2)
    for place, expected in ((0, [1, 0, 1]), (2, [1, 2, 3]), (4, [3, 4, 3])):
        assert with_neighbours(volume, 0, place, 1)[:, 0, 0].tolist() == expected
    assert with_neighbours(volume[:1], 0, 0, 2)[:, 0, 0].tolist() == [0] * 5


def test_the_ct_is_hidden_in_some_images(data):
    recipe = replace(SLICES, condition_dropout=0.5)
    source = training_stream(data, recipe)
    stage = EnhancementStage(recipe, source, data, data)
    cts = [stage.example(source.batch(k, 4)[0], k, CPU, 0, 1).ct for k in range(20)]
    shown = torch.cat(cts).flatten(1).sum(1) > 0
    assert 0.3 < float(shown.float().mean()) < 0.7


@pytest.mark.parametrize(("options", "words"), [
    ({"init": "brain"}, "not an enhancement model"), ({"init": "body-fdg-enhance"}, "another network"),
    ({"recipe": "nothing"}, "body-fdg-enhance"), ({"options": RunOptions(samples_every=5)}, "leave --samples-every"),
])  # fmt: skip
def test_what_does_not_suit_says_so(data, tmp_path, options, words):
    arguments = {"recipe": SLICES, "data": data} | options
    with pytest.raises(ValueError, match=words):
        train(arguments.pop("recipe"), tmp_path / "m.safetensors", **arguments)


@pytest.mark.parametrize(("changes", "words"), [
    ({"crops": (8,)}, "at least patch"), ({"crops": (34,)}, "multiples of 4"), ({"patience": 3}, "patience"),
])  # fmt: skip
def test_a_recipe_out_of_range_says_so(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(SLICES, **changes)


def test_recipes_leave_the_held_out_subjects_alone_and_the_published_one_is_the_papers():
    for recipe in ENHANCEMENT_RECIPES.values():
        if recipe.phantoms is not None:
            assert recipe.phantoms.first + recipe.phantoms.subjects <= FIRST_HELD_OUT_SUBJECT
    latent = ENHANCEMENT_RECIPES["latent"]
    assert (latent.enhancement.ct, latent.enhancement.noise, latent.enhancement.patch) == ("attention", "sinogram", 96)
    assert (latent.doses.num_steps, latent.doses.law, latent.architecture.spatial_dims) == (400, "poisson", 3)


def test_a_configuration_of_an_enhancement():
    import tomllib

    default = ENHANCEMENT_RECIPES["latent"]
    assert configuration(tomllib.loads(default_text(default)), default).recipe == default
    changed = configuration(
        {"enhancement": {"noise": "binomial", "compression": 1, "patch": 32}, "data": {"crops": [64]},
         "network": {"channels": [8, 16], "attention_levels": [False, True], "num_head_channels": 8}}, default
    ).recipe  # fmt: skip
    assert (changed.enhancement.noise, changed.architecture.channels) == ("binomial", (8, 16))


@pytest.mark.parametrize(("content", "words"), [
    ({"enhancement": {"network": 1}}, "unknown keys"), ({"noise": {"prediction": "x0"}}, "unknown keys"),
    ({"schedule": {}}, "unknown tables"), ({"scan": {"background": "x"}}, "type float"),
])  # fmt: skip
def test_a_configuration_that_means_nothing_is_refused(content, words):
    with pytest.raises(ValueError, match=words):
        configuration(content, ENHANCEMENT_RECIPES["latent"])
