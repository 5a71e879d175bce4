"""What a user can choose: configuration, data file, prediction, fine-tuning, early stopping; and the evaluation."""

import csv
import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_file import write_training_file
from training_processes import RECIPE

import sirf_diffusion
from sirf_diffusion.cli import main
from sirf_diffusion.files.stopping import SIGNALS, Stopped
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models import DDPMSchedule, ScoreModel, VESchedule, VPSchedule, load_model, save_model
from sirf_diffusion.models.networks import NetworkConfig, build_network
from sirf_diffusion.models.storage import ModelConfig
from sirf_diffusion.training import Recipe, RunOptions, loop, train
from sirf_diffusion.training.configuration import DEFAULT, configuration, default_text, read_configuration
from sirf_diffusion.training.corruption import corrupted, draw_noise_levels
from sirf_diffusion.training.data.volume_file import VolumeFile
from sirf_diffusion.training.distributed import Processes
from sirf_diffusion.training.enhancement_recipes import ENHANCEMENT_RECIPES
from sirf_diffusion.training.evaluation.acceptance import calibration
from sirf_diffusion.training.evaluation.validation import (
    ValidationSet,
    network_denoiser,
    non_local_means,
    validation_set,
)
from sirf_diffusion.training.recipes import RECIPES
from sirf_diffusion.training.state import TrainingState

pytestmark = pytest.mark.usefixtures("undrawn", "few_levels")
CPU = torch.device("cpu")
SHORT = replace(RECIPE, cycles=(6,), validate_every=3)


@pytest.fixture(scope="module")
def short(data, tmp_path_factory):
    """The model of `SHORT`, trained without a stop."""
    return train(SHORT, tmp_path_factory.mktemp("short") / "m.safetensors", data=data)


def example(recipe, step=0, rank=0, world=1):
    images = torch.rand((recipe.batch_size, 2, 16, 16), generator=torch.Generator().manual_seed(step))
    planes = torch.arange(recipe.batch_size) % 3
    return images, corrupted(recipe, images[rank::world], planes[rank::world], step, CPU, rank, world)


def test_defaults_as_a_file_are_the_defaults(tmp_path, capsys):
    assert main(["train", "--print-config"]) == 0
    path = tmp_path / "default.toml"
    path.write_text(capsys.readouterr().out)
    assert path.read_text(encoding="utf-8") == default_text()
    assert read_configuration(path).recipe == DEFAULT
    assert read_configuration(path).options == RunOptions()


@pytest.mark.parametrize("name", [*RECIPES, *ENHANCEMENT_RECIPES])
def test_a_printed_recipe_is_that_recipe(tmp_path, capsys, name):
    assert main(["train", "--recipe", name, "--print-config"]) == 0
    (path := tmp_path / "recipe.toml").write_text(capsys.readouterr().out)
    recipe = (RECIPES | ENHANCEMENT_RECIPES)[name]
    default = ENHANCEMENT_RECIPES["latent"] if recipe.enhances else DEFAULT
    assert replace(read_configuration(path, default).recipe, phantoms=None) == replace(recipe, phantoms=None, init="")


def test_the_supervised_configuration_is_printed_too(tmp_path, capsys):
    from sirf_diffusion.training.supervised import SLICES

    header = str(Path(sirf_diffusion.__file__).parent / "data/brain2d/prompts.hs")
    given = ["train", "--supervised", "--init", "brain-fdg", "--data", "x.h5", "--scanner", header]
    assert main([*given, "--print-config"]) == 0
    (path := tmp_path / "supervised.toml").write_text(capsys.readouterr().out)
    assert read_configuration(path).recipe == SLICES


def test_what_a_configuration_leaves_out_is_of_the_kind_of_training(data, tmp_path, monkeypatch):
    from sirf_diffusion.training.supervised import SLICES

    asked, header = [], str(Path(sirf_diffusion.__file__).parent / "data/brain2d/prompts.hs")
    monkeypatch.setattr("sirf_diffusion.training.train", lambda recipe, *_, **__: asked.append(recipe))
    (path := tmp_path / "c.toml").write_text("[optimiser]\nlearning_rate = 2e-3\n")
    given = ["train", "--supervised", "--init", "brain-fdg", "--data", str(data), "--scanner", header]
    assert main([*given, "--config", str(path), "--out", str(tmp_path / "m.safetensors")]) == 0
    assert asked == [replace(SLICES, learning_rate=2e-3)]


def test_a_model_of_another_training_is_not_replaced_unless_asked(data, tmp_path):
    (out := tmp_path / "m.safetensors").write_bytes(b"an older model")
    with pytest.raises(ValueError, match=r"exists, and .* no checkpoint"):
        train(SHORT, out, data=data, max_steps=1)
    assert out.read_bytes() == b"an older model"
    with pytest.raises(ValueError, match="grow needs a model"):
        train(replace(SHORT, grow=True), tmp_path / "g.safetensors", data=data, max_steps=1)
    train(SHORT, out, data=data, max_steps=1, resume=False)
    train(SHORT, out, data=data, max_steps=2)


@pytest.mark.parametrize("fast", [True, False])
def test_the_precision_follows_the_device_and_a_training_keeps_its_own(data, tmp_path, monkeypatch, caplog, fast):
    """Without instructions for it, bfloat16 is several times slower."""
    recipe, file = replace(SHORT, precision="auto"), tmp_path / "m.safetensors"

    def precision(fast, **options):
        monkeypatch.setattr("sirf_diffusion.environment.fast_in_bfloat16", lambda device: fast)
        train(recipe, file, data=data, device="cpu", **options)
        return load_model(file)[1].training["precision"]

    begun = precision(fast, max_steps=2)
    assert begun == ("bfloat16" if fast else "float32")
    assert precision(not fast) == begun
    assert ("has no instructions for bfloat16" in caplog.text) == fast


@pytest.mark.parametrize(("text", "message"), [
    ("speed = 3", "unknown keys .'speed'"),
    ("[optimiser]\nbatch_size = 2.5", "batch_size must be of type int, found 2.5"),
    ("[optimizer]\nbatch_size = 2", "unknown tables .'optimizer'"),
    ("[schedule]\nname = 'cosine'", "vp, ve, ddpm, found 'cosine'"),
    ("[schedule]\nname = 've'", "'v' needs a variance-preserving schedule"), ("[data]\ncrops = [90]", "multiples of 8"),
    ("[network]\nchannels = [32, 30, 64]", "multiples of norm_num_groups"),
    ("[augmentation]\nrotation = 300.0", "rotation must be a number in"),
    ("[noise]\nprediction = 'w'", "prediction must be one of"), ("a = [", "configuration .*c.toml"),
])  # fmt: skip
def test_a_wrong_configuration_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_configuration(path)
    assert str(path) in str(error.value)


def test_edm_is_the_v_prediction_with_karras_weights():
    recipe = configuration({"noise": {"prediction": "edm", "sigma_data": 0.7}}).recipe
    assert (recipe.prediction, recipe.weighting, recipe.log_sigma_mean, recipe.sigma_data) == ("v", "edm", -1.2, 0.7)
    recipe = replace(recipe, batch_size=64, crops=(16,))
    images, one = example(recipe)
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003)
    sigma = draw_noise_levels(recipe, generator)
    # A network that predicts v = 0 denoises to gamma u_t: Karras' loss of that image, computed from his definition.
    t = recipe.schedule.t_of_sigma(sigma)
    denoised = recipe.schedule.gamma(t)[:, None, None, None] * one.images
    karras = (sigma**2 + 0.7**2) / (0.7 * sigma) ** 2
    expected = ((denoised - images[:, :1]).square() * karras[:, None, None, None]).mean()
    assert float(one.loss(torch.zeros_like(one.target))) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [
        (schedule, prediction)
        for schedule in (VPSchedule(), VESchedule(), DDPMSchedule())
        for prediction in ("eps", "x0", "v", "score")
        if schedule.variance_preserving or prediction != "v"
    ],
)
def test_the_target_is_what_the_score_model_takes_it_for(schedule, prediction):
    """A network that outputs the training target makes `ScoreModel` find the clean image."""
    recipe = replace(
        RECIPE, schedule=schedule, prediction=prediction, batch_size=1, crops=(16,), time_input="log_sigma",
        architecture=replace(RECIPE.architecture, in_channels=1),
    )  # fmt: skip
    images, one = example(recipe)
    sigma = math.exp(float(one.time) / 250)

    def network(shown, time, class_labels=None):
        assert torch.allclose(shown, one.images, atol=1e-5)
        assert torch.allclose(time, one.time, rtol=1e-4)
        return one.target

    model = ScoreModel(network, schedule, prediction).on(ImageGeometry((1, 16, 16), (2.0,) * 3), 1.0)
    t = schedule.t_of_sigma(sigma)
    gamma, nu = schedule.gamma(t), schedule.nu(t)
    u0, _ = model.predict(one.images[0] * math.sqrt(gamma * gamma + nu * nu), t)
    assert torch.allclose(u0, images[0, :1], atol=2e-4 * max(1.0, sigma))


def test_the_anatomical_image_is_hidden_as_often_as_asked():
    recipe = replace(RECIPE, batch_size=400, condition_dropout=0.25)
    hidden = (example(recipe)[1].images[:, 1] == 0).all((1, 2)).float().mean()
    assert abs(float(hidden) - 0.25) < 0.07
    assert not (example(replace(recipe, condition_dropout=0.0))[1].images[:, 1] == 0).all((1, 2)).any()


def test_accumulated_parts_make_the_same_step():
    states = []
    for parts in (1, 4):
        recipe = replace(RECIPE, accumulation=parts, crops=(16,))
        state = TrainingState(recipe, {}, CPU, Processes())
        losses = [float(state.advance(example(recipe, step)[1])) for step in range(3)]
        states.append((losses, state.network.state_dict()))
    assert states[0][0] == pytest.approx(states[1][0], rel=1e-4)
    # Adam divides small gradients by themselves: rounding shows more than in the losses.
    assert all(torch.allclose(a, states[1][1][name], atol=1e-3) for name, a in states[0][1].items())


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_learning_rate_rises_falls_and_starts_again(decay):
    recipe = replace(RECIPE, cycles=(100, 60), decay=decay, warmup_steps=10)
    rates = [recipe.rate(step) for step in range(160)]
    assert max(rates) <= recipe.learning_rate
    for first, last in ((0, 99), (100, 159)):
        assert rates[first] == pytest.approx(recipe.learning_rate / 10)
        assert rates[last] < 0.1 * recipe.learning_rate
        assert rates[first + 10] > 0.9 * recipe.learning_rate


def test_the_provenance_of_old_recipes_is_as_it_was():
    old = Recipe("old", "t")
    assert set(old.to_dict()) == {
        "name", "tracer", "architecture", "schedule", "crops", "batch_size", "cycles", "learning_rate", "warmup_steps",
        "ema_decay", "log_sigma_mean", "log_sigma_sd", "seed",
    }  # fmt: skip
    assert replace(old, decay="cosine").to_dict()["decay"] == "cosine"


def test_an_unconditional_model_becomes_a_conditional_one(data, tmp_path, caplog):
    architecture = replace(RECIPE.architecture, in_channels=1)
    network = build_network(architecture, seed=3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    begun = ModelConfig(architecture, VPSchedule(), "eps", voxel_size=(5.0, 5.0, 5.0), tracer="[11C]A", licence="L")
    save_model(tmp_path / "a.safetensors", network.state_dict(), begun)
    train(SHORT, tmp_path / "b.safetensors", data=data, init=tmp_path / "a.safetensors", max_steps=0)
    assert "voxels of (4.0, 4.0, 4.0) mm, the model that the training starts from (5.0, 5.0, 5.0)" in caplog.text
    extended, config, _ = load_model(tmp_path / "b.safetensors")
    assert (config.architecture.in_channels, config.prediction) == (2, "eps")
    assert (config.tracer, config.licence) == (VolumeFile(data).tracer or "[11C]A", "L")
    assert config.training["init"]["sha256"] == ScoreModel.load(tmp_path / "a.safetensors").hash
    noisy, anatomy = torch.randn((2, 3, 1, 16, 16), generator=torch.Generator().manual_seed(2))
    time, planes = torch.tensor([1.0, 2.0, 3.0]), torch.arange(3)
    expected = network(noisy, time, class_labels=planes)
    found = extended(torch.cat((noisy, anatomy), 1), time, class_labels=planes)
    assert torch.allclose(found, expected, atol=2e-2 * float(expected.detach().abs().max()))
    with pytest.raises(ValueError, match="in_channels = 2"):
        train(
            replace(SHORT, architecture=architecture), tmp_path / "c.safetensors", data=data,
            init=tmp_path / "b.safetensors",
        )  # fmt: skip


def test_a_network_grows_by_a_level_and_attention(data, tmp_path):
    small = replace(RECIPE.architecture, in_channels=1)
    deepest = small.channels[-1]
    large = replace(
        small, channels=(*small.channels, deepest), attention_levels=(*small.attention_levels[:-1], True, True),
        in_channels=2,
    )  # fmt: skip
    network = build_network(small, seed=3)
    save_model(tmp_path / "a.safetensors", network.state_dict(), ModelConfig(small, VPSchedule()))
    recipe = replace(SHORT, architecture=large, crops=(32,), grow=True)
    train(recipe, tmp_path / "b.safetensors", data=data, init=tmp_path / "a.safetensors", max_steps=0)
    grown, config, _ = load_model(tmp_path / "b.safetensors")
    assert config.architecture == large
    old, new = load_model(tmp_path / "a.safetensors")[0].state_dict(), grown.state_dict()
    for name, value in old.items():
        # The blocks on the way up are counted from the deepest level, which is a new one.
        moved = name.replace("up_blocks.1.", "up_blocks.2.").replace("up_blocks.0.", "up_blocks.1.")
        if "conv_in" not in name:
            assert torch.allclose(new[moved], value, atol=1e-3), name  # files have half precision
    added = [name for name in new if "attentions" in name and "out_proj" in name and "middle" not in name]
    assert added
    assert all(not new[name].any() for name in added if name not in old)
    for other in (replace(large, channels=(16, *large.channels[1:])), replace(large, num_res_blocks=2)):
        with pytest.raises(ValueError, match="grow"):
            train(
                replace(recipe, architecture=other), tmp_path / "c.safetensors", data=data,
                init=tmp_path / "a.safetensors",
            )  # fmt: skip


def test_early_stopping_keeps_the_best_and_stops(data, tmp_path, monkeypatch):
    scores = iter([0.9, 0.7, 0.8, 0.75, 0.6])
    monkeypatch.setattr(loop, "relative_error", lambda errors, reference: next(scores))
    recipe = replace(RECIPE, patience=2, validate_every=2, cycles=(40,))
    out = train(recipe, tmp_path / "m.safetensors", data=data)
    assert load_model(out)[1].training["steps"] == 4
    with (tmp_path / "m.safetensors.training" / "log.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["2", "4", "6", "8"]


@pytest.mark.parametrize("number", SIGNALS)
def test_asked_to_stop_it_finishes_the_step_and_writes_a_checkpoint(short, data, tmp_path, monkeypatch, number):
    advance, earlier = TrainingState.advance, signal.signal(number, signal.default_int_handler)

    def interrupted(self, one):
        if self.step == 2:
            os.kill(os.getpid(), number)
        return advance(self, one)

    monkeypatch.setattr(TrainingState, "advance", interrupted)
    with pytest.raises(Stopped, match=signal.Signals(number).name):
        train(SHORT, tmp_path / "m.safetensors", data=data)
    signal.signal(number, earlier)
    monkeypatch.undo()
    train(SHORT, tmp_path / "m.safetensors", data=data)
    assert (tmp_path / "m.safetensors").read_bytes() == short.read_bytes()


def test_other_data_do_not_continue_a_training(data, tmp_path):
    train(SHORT, tmp_path / "m.safetensors", data=data, max_steps=1)
    other = write_training_file(tmp_path / "other.h5", ("train", "validation"))
    with pytest.raises(ValueError, match=r"another training: data.* differ"):
        train(SHORT, tmp_path / "m.safetensors", data=other)


def test_data_that_do_not_suit_are_refused(data, tmp_path):
    plain = write_training_file(tmp_path / "plain.h5", ("train",), anatomy=False)
    with pytest.raises(ValueError, match="anatomical"):
        train(SHORT, tmp_path / "m.safetensors", data=plain)
    unconditional = replace(SHORT, architecture=replace(RECIPE.architecture, in_channels=1), patience=1)
    with pytest.raises(ValueError, match="validation subjects"):
        train(unconditional, tmp_path / "m.safetensors", data=plain)
    with pytest.raises(ValueError, match="give a data file"):
        train(SHORT, tmp_path / "m.safetensors")


def test_a_posterior_mean_is_calibrated():
    """White Gaussian images: the posterior mean is known, and both ratios are 1; a lazy one is neither."""
    generator = torch.Generator().manual_seed(0)
    slices = ValidationSet([torch.randn((1, 64, 64), generator=generator) for _ in range(8)], [0] * 8, VPSchedule())
    best = calibration(slices, lambda w, sigma, *_: w / (1 + sigma**2), 0.8)
    assert best == pytest.approx((1.0, 1.0), abs=0.05)
    balance, predicted = calibration(slices, lambda w, *_: 0.3 * w, 0.8)
    assert balance > 1.1
    assert predicted < 0.9


def test_non_local_means_keeps_edges_that_a_mean_blurs():
    clean = torch.zeros((1, 1, 48, 48))
    clean[..., 24:] = 1.0
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    denoised = non_local_means(noisy, 0.1, (0.7,))[0]
    assert float((denoised - clean).square().mean().sqrt()) < 0.03
    assert float((denoised[..., 25:28] - 1).abs().mean()) < 0.05


def test_evaluation_makes_a_card_of_what_it_measured(short, data, tmp_path, capsys):
    card = ["models", "evaluate", str(short), "--data", str(data), "--out", str(tmp_path / "card")]
    assert main([*card, "--size", "16"]) == 0
    assert "validation" in (tmp_path / "card" / "README.md").read_text(encoding="utf-8")
    report = json.loads((tmp_path / "card" / "report.json").read_text(encoding="utf-8"))
    assert {p.name for p in (tmp_path / "card").glob("*.png")} == {
        "denoising.png", "samples.png", "scales.png", "calibration.png"
    }  # fmt: skip
    network, config, _ = load_model(short)
    slices = validation_set(data, SHORT)
    error = slices.error(network_denoiser(network, config.schedule, "v"), 0.4)
    assert report["network"]["0.4"] == pytest.approx(error, rel=1e-5)
    assert report["unconditional"]["0.4"] != report["network"]["0.4"]
    assert report["scales"]["0.4"]["1"] == pytest.approx(error, rel=1e-5)
    assert len(report["checks"]) == 4
    assert "FAILED" in capsys.readouterr().out
    assert main(card) == 2
    assert "holds another result: size differ" in capsys.readouterr().err
    assert main(["models", "evaluate", "brain-fdg", "--data", str(data), "--out", str(tmp_path / "other")]) == 2
    assert "--voxel-size" in capsys.readouterr().err


@pytest.mark.draws
def test_sample_sheets_and_networks_without_orientation(data, tmp_path):
    recipe = replace(
        SHORT, planes=(0,), architecture=NetworkConfig(
            channels=(8,), attention_levels=(False,), num_head_channels=8, num_class_embeds=0
        ),
    )  # fmt: skip
    train(recipe, tmp_path / "m.safetensors", data=data, options=RunOptions(samples_every=6))
    assert (tmp_path / "m.safetensors.training" / "samples-0000006.png").exists()
    assert (tmp_path / "m.safetensors.training" / "validation.png").exists()
