"""Distillation: a student learns its teacher's output, starts from its weights, and is resumed to the same bits."""

import csv
from dataclasses import replace

import pytest
import torch
from tiny_model import tiny_model
from training_file import write_training_file

from sirf_diffusion.cli import main
from sirf_diffusion.models import DDPMSchedule, ScoreModel
from sirf_diffusion.models.h_transform import HTransformConfig, save_h_transform
from sirf_diffusion.models.networks import NetworkConfig, build_network
from sirf_diffusion.training import RunOptions, train
from sirf_diffusion.training.corruption import corrupted
from sirf_diffusion.training.distillation import Distillation, DistillationLoop
from sirf_diffusion.training.distributed import Processes
from sirf_diffusion.training.fine_tuning import smaller, thinned
from sirf_diffusion.training.state import TrainingState
from sirf_diffusion.training.trainer import training_stream

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("undrawn", "few_levels")


def saved(path, in_channels=1, **metadata):
    """A teacher's file, of the voxels of `write_training_file`."""
    model = tiny_model(in_channels=in_channels)
    model.voxel_size = (4.0, 4.0, 4.0)
    model.metadata |= {"tracer": "[18F]teacher", "licence": "CC-BY-4.0"} | metadata
    model.save(path)
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distillation")
    saved(folder / "plain.safetensors")
    saved(folder / "guided.safetensors", in_channels=2)
    write_training_file(folder / "train.h5")
    return folder


def pupil(files, name="plain", **changes):
    distillation = Distillation(str(files / f"{name}.safetensors"))
    usual = {"crops": (16, 24), "batch_size": 4, "cycles": (4,), "warmup_steps": 0, "validate_every": 2}
    return distillation, distillation.checked(replace(distillation.recipe, **usual | changes))


def loop_of(files, folder, name="plain", **changes):
    distillation, recipe = pupil(files, name, **changes)
    state = TrainingState(recipe, {}, CPU, Processes(), distillation.start(recipe))
    return DistillationLoop(distillation, state, training_stream(files / "train.h5", recipe), folder, RunOptions())


@pytest.mark.parametrize("name", ["plain", "guided"])
def test_what_is_learnt_is_the_output_of_the_teacher(files, tmp_path, name):
    loop = loop_of(files, tmp_path, name, precision="float32")
    images, planes = loop.source.batch(3, 4)
    usual, found = corrupted(loop.recipe, images, planes, 3, CPU), loop._example(3)
    assert torch.equal(found.images, usual.images)
    teacher = ScoreModel.load(files / f"{name}.safetensors")
    assert torch.equal(found.target, teacher.network(usual.images, usual.time, class_labels=planes))
    assert not torch.allclose(found.target, usual.target, atol=0.1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_student_with_the_teachers_network_starts_without_error(files, tmp_path, precision):
    network = ScoreModel.load(files / "plain.safetensors").architecture
    loop = loop_of(files, tmp_path, architecture=network, precision=precision)
    assert float(loop.state.advance(loop._example(0))) == 0
    errors, best = loop.validation.network_errors(loop.teacher), loop.validation.gaussian_errors()
    levels = [level for level in errors if not isinstance(level, str)]
    assert all(errors[level] == best[level] == best[f"teacher_{level:g}"] for level in levels)
    assert {errors[f"teacher_{level:g}"] for level in levels} == {0.0}
    smaller_one = loop_of(files, tmp_path)
    assert float(smaller_one.state.advance(smaller_one._example(0))) > 0


def test_interrupted_it_gives_the_same_file_which_tells_the_teacher(files, tmp_path):
    def trained(name, *stops):
        distillation, recipe = pupil(files)
        for stop in stops:
            train(
                recipe, tmp_path / name, data=files / "train.h5", distillation=distillation, max_steps=stop,
                threads=1, device="cpu",
            )  # fmt: skip
        return (tmp_path / name).read_bytes()

    assert trained("a.safetensors", None) == trained("b.safetensors", 1, None)
    student, teacher = (ScoreModel.load(p) for p in (tmp_path / "a.safetensors", files / "plain.safetensors"))
    told = student.metadata
    assert told["training"]["teacher"] == {"name": str(files / "plain.safetensors"), "sha256": teacher.hash}
    assert (told["tracer"], told["licence"]) == ("[18F]teacher", "CC-BY-4.0")
    assert student.schedule == teacher.schedule
    assert (student.prediction, student.time_input, student.voxel_size) == ("v", "log_sigma", (4.0, 4.0, 4.0))
    assert student.architecture.channels == (4, 4)
    with (tmp_path / "b.safetensors.training" / "log.csv").open(newline="") as file:
        columns, *rows = csv.reader(file)
    assert [row[0] for row in rows] == ["1", "2", "4"]
    assert {"rmse_sigma_0.4", "rmse_sigma_teacher_0.4"} <= set(columns)
    with pytest.raises(ValueError, match="another training"):
        train(pupil(files)[1], tmp_path / "b.safetensors", data=files / "train.h5")


def test_a_thinned_network_does_what_a_wide_one_does_with_every_channel_twice():
    narrow = NetworkConfig((8, 16), (False, True), num_res_blocks=1, norm_num_groups=4, num_head_channels=8)
    wide = replace(narrow, channels=(16, 32))
    small, large = build_network(narrow, seed=1), build_network(wide, seed=2)
    assert smaller(replace(wide, num_res_blocks=1)) == narrow
    torch.nn.init.normal_(large.out[2].conv.weight, 0, 0.1, torch.Generator().manual_seed(0))
    weights = large.state_dict()
    small.load_state_dict(thinned(weights, small.state_dict(), 1, 1))
    for name, value in small.state_dict().items():
        steps = [slice(None, None, a // b) for a, b in zip(weights[name].shape, value.shape, strict=True)]
        assert torch.equal(value, weights[name][tuple(steps)]), name
    # The deepest level alone has attention; of four blocks the first and the last stay, of three on the way up too.
    deep = smaller(replace(wide, channels=(16, 32, 64), attention_levels=(True,) * 3, num_res_blocks=2))
    assert (deep.channels, deep.attention_levels, deep.num_res_blocks) == ((16, 32, 32), (False, False, True), 1)
    taught = build_network(replace(wide, num_res_blocks=2)).state_dict()
    found = thinned(taught, build_network(wide).state_dict(), 2, 1)
    last = "up_blocks.1.resnets.{}.conv1.conv.weight"
    assert torch.equal(found[last.format(1)], taught[last.format(2)])


@pytest.mark.parametrize(("changes", "words"), [
    ({"schedule": DDPMSchedule()}, "schedule of a student"), ({"prediction": "eps"}, "prediction of a student"),
    ({"time_input": "t"}, "time_input of a student"), ({"rank": 2}, "rank of a student"),
    ({"tracer": "another"}, "tracer of a student"), ({"planes": (0,)}, "planes of a student"),
    ({"architecture": replace(tiny_model(in_channels=2).architecture)}, "in_channels of a student"),
])  # fmt: skip
def test_what_is_the_teachers_cannot_be_changed(files, changes, words):
    with pytest.raises(ValueError, match=words):
        pupil(files, **changes)


def other_voxels(folder):
    tiny_model().save(folder / "t.safetensors")
    return str(folder / "t.safetensors"), "--voxel-size"


def personal(folder):
    return saved(folder / "t.safetensors", training={"personalised": {"mr_sha256": "0"}}), "made for one patient"


def steering(folder):
    network = NetworkConfig((8, 8), (False, False), num_head_channels=8, num_class_embeds=0, in_channels=5)
    config = HTransformConfig(network, "brain-fdg", "0" * 64, (1.0, 2.0))
    save_h_transform(folder / "t.safetensors", build_network(network).state_dict(), config)
    return str(folder / "t.safetensors"), "h-transform"


def latent(_):
    return "body-fdg-enhance", "enhance"


@pytest.mark.parametrize("teacher", [other_voxels, personal, steering, latent])
def test_teachers_that_cannot_teach_are_refused(files, tmp_path, capsys, teacher):
    name, words = teacher(tmp_path)
    line = ["--distil", name, "--data", str(files / "train.h5"), "--out", str(tmp_path / "s.safetensors")]
    assert main(["train", *line, "--max-steps", "0"]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--latent"], ["--supervised"], ["--init", "brain"], ["--recipe", "brain"]])
def test_options_that_do_not_fit_are_told(files, tmp_path, capsys, option):
    line = ["--distil", "brain", "--data", str(files / "train.h5"), "--out", str(tmp_path / "s.safetensors")]
    assert main(["train", *line, *option]) == 2
    assert "--distil MODEL takes no" in capsys.readouterr().err


def test_the_configuration_is_that_of_the_teacher(files, capsys):
    assert main(["train", "--distil", str(files / "guided.safetensors"), "--print-config"]) == 0
    text = capsys.readouterr().out
    assert "channels = [4, 4]" in text
    assert "in_channels = 2" in text
