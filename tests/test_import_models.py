"""Foreign networks do here exactly what they did there, or are refused by name; nothing in a file is run."""

import dataclasses
import json
import logging
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from foreign_networks import ARGUMENTS, GENERATIVE, ForeignDRUNet, guided_diffusion, randomised, renamed, unet

from sirf_diffusion.cli import main
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models import (
    DDPMSchedule,
    ModelFileError,
    ScoreModel,
    VESchedule,
    VPSchedule,
    load_model,
    save_model,
)
from sirf_diffusion.models.importers import DenoiserNetwork, UnsupportedNetworkError, import_model
from sirf_diffusion.models.importers.check import check_denoising
from sirf_diffusion.models.storage import find_model

HOW = {"schedule": "ddpm", "prediction": "eps"}
SMALL = {"channels": [32, 32], "attention_levels": [False, False]}


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """Only the test of it tries the imported network on an image."""
    if "tried_on_an_image" not in request.node.name:
        monkeypatch.setattr("sirf_diffusion.models.importers.importer.check_denoising", lambda path: {})


@pytest.fixture(scope="module")
def network():
    return unet()


@pytest.fixture
def out(tmp_path):
    return tmp_path / "m.safetensors"


@pytest.fixture
def file(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "unet.pt")
    return tmp_path / "unet.pt"


def assert_same(network, path, shape=(2, 1, 16, 16), labels=None, labels_there=None):
    images, time = torch.randn(shape, generator=torch.Generator().manual_seed(1)), torch.tensor([3.0, 700.0])
    found = load_model(path)[0](images, time, class_labels=labels)
    expected = network(images, time, class_labels=labels_there)
    torch.testing.assert_close(found, expected, rtol=0, atol=0 if labels_there is None else 1e-5)


@pytest.mark.parametrize("wrapped", [False, True])
def test_monai(network, tmp_path, out, wrapped):
    weights, config = network.state_dict(), ARGUMENTS
    if wrapped:
        weights = {"epoch": 3, "model": {f"module.{name}": value for name, value in weights.items()}}
        config = {"network_def": {"_target_": "monai.networks.nets.DiffusionModelUNet", **ARGUMENTS}}
    torch.save(weights, tmp_path / "unet.pt")
    found = import_model(tmp_path / "unet.pt", out, config=config, voxel_size=(3.0, 2.0, 2.0), **HOW)
    assert_same(network, out)
    assert (found.schedule, found.prediction, found.time_input) == (DDPMSchedule(), "eps", "t")
    assert found.voxel_size == (3.0, 2.0, 2.0)
    imported = found.training["imported"]
    assert (imported["kind"], len(imported["sha256"])) == ("monai", 64)
    assert imported["training"].endswith("beta_end 0.02; predicts eps; is told its time")


def test_monai_generative_names(network, tmp_path, out):
    weights = renamed(network.state_dict(), GENERATIVE)
    assert weights.keys() != network.state_dict().keys()
    torch.save(weights, tmp_path / "unet.pt")
    import_model(tmp_path / "unet.pt", out, config=ARGUMENTS, **HOW)
    assert_same(network, out)


def test_a_network_of_volumes(tmp_path, out):
    network = unet(spatial_dims=3, **SMALL)
    torch.save(network.state_dict(), tmp_path / "unet.pt")
    found = import_model(tmp_path / "unet.pt", out, config=ARGUMENTS | SMALL | {"spatial_dims": 3}, **HOW)
    assert found.architecture.spatial_dims == 3
    assert_same(network, out, (2, 1, 8, 8, 8))


@pytest.mark.parametrize("new_order", [False, True])
def test_guided_diffusion(tmp_path, out, new_order):
    network = unet(norm_eps=1e-5)
    torch.save(guided_diffusion(network, new_order), tmp_path / "ema.pt")
    config = {"num_head_channels": 16, "use_new_attention_order": new_order}
    import_model(tmp_path / "ema.pt", out, config=config, schedule=VPSchedule(), prediction="eps")
    assert_same(network, out)


def test_guided_diffusion_with_scale_shift_is_refused(network, tmp_path, out):
    weights = guided_diffusion(network)
    for name in list(weights):
        if ".emb_layers.1." in name:
            weights[name] = torch.cat((weights[name], weights[name]))
    torch.save(weights, tmp_path / "ema.pt")
    with pytest.raises(UnsupportedNetworkError, match="scale-shift"):
        import_model(tmp_path / "ema.pt", out, config={"num_head_channels": 16}, **HOW)


@pytest.mark.parametrize(("change", "message"), [
    ({"spatial_dims": 1}, "spatial_dims = 1"), ({"spatial_dims": 3}, "do not fit"),
    ({"out_channels": 2}, "out_channels = 2"), ({"with_conditioning": True}, "with_conditioning"),
    ({"resblock_updown": True}, "resblock_updown"), ({"num_res_blocks": [1, 2]}, "differs between levels"),
    ({"colour": 1}, "unknown arguments .'colour'"), ({"in_channels": "@channels"}, "refers to something else"),
    ({"in_channels": 3}, "3 images"), ({"channels": [32, 32]}, "do not fit"),
    ({"attention_levels": [True, True]}, "do not fit"), ({"attention_levels": 7}, "not a complete monai network"),
    ({"num_res_blocks": []}, "differs between levels"),
])  # fmt: skip
def test_what_does_not_fit_is_named(file, out, change, message):
    with pytest.raises(ModelFileError, match=message):
        import_model(file, out, config=ARGUMENTS | change, **HOW)
    assert not out.exists()


@pytest.mark.parametrize(("how", "message"), [
    ({}, "give schedule and prediction"), ({"prediction": "eps"}, "give schedule"),
    ({"schedule": "cosine"}, "give prediction"),
    ({"schedule": "scaled_linear", "prediction": "eps"}, "JSON with all constants"),
    ({"schedule": {"name": "scaled_linear", "num_train_steps": 1000}, "prediction": "eps"}, "has the constants"),
    ({"schedule": "flow", "prediction": "v"}, "x0-eps or eps-x0"),
    ({"schedule": "ddpm", "prediction": "x0-eps"}, "eps, x0, v, score"),
    ({"schedule": {"name": "flow", "num_train_steps": "many"}, "prediction": "x0-eps"}, "many"),
    ({"schedule": {"name": "edm"}, "prediction": "eps"}, "has the constants"),
    ({**HOW, "classes": "1"}, "no class labels"),
])  # fmt: skip
def test_what_the_file_does_not_say_must_be_given(file, out, how, message):
    with pytest.raises(ValueError, match=message):
        import_model(file, out, config=ARGUMENTS, **how)
    assert not out.exists()


@pytest.mark.parametrize("guided", [False, True])
def test_class_labels_mean_what_the_caller_says(tmp_path, out, guided):
    network = unet(num_class_embeds=3, norm_eps=1e-5)
    torch.save(guided_diffusion(network) if guided else network.state_dict(), tmp_path / "c.pt")
    config = {"num_head_channels": 16} if guided else ARGUMENTS | {"num_class_embeds": 3, "norm_eps": 1e-5}
    for wrong in (None, "3", "-1", "coronal", "coronal,coronal,sagittal"):
        with pytest.raises(ValueError, match=r"3 class labels.*--classes.*three orientations"):
            import_model(tmp_path / "c.pt", out, config=config, classes=wrong, **HOW)
    labels = torch.tensor([2, 0])
    found = import_model(tmp_path / "c.pt", out, config=config, classes="coronal, sagittal, transverse", **HOW)
    assert found.architecture.num_class_embeds == 3
    assert_same(network, out, labels=(labels + 1) % 3, labels_there=labels)
    with pytest.raises(ValueError, match="exists: give another name"):
        import_model(tmp_path / "c.pt", out, config=config, classes=1, **HOW)
    found = import_model(tmp_path / "c.pt", out, config=config, classes=1, overwrite=True, **HOW)
    assert found.architecture.num_class_embeds == 0
    assert "class label 1" in found.training["imported"]["training"]
    assert_same(network, out, labels_there=torch.tensor([1, 1]))


class Trap:
    """An object whose unpickling writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (Path(self.path), "caught")


def archives(folder):
    """Hostile, damaged and odd files by name, and what the refusal says."""
    trap = {"model": Trap(str(folder / "caught"))}
    torch.save(trap, folder / "trap.pt")
    (folder / "pickle.pt").write_bytes(pickle.dumps(trap))
    torch.save({"conv_in.conv.weight": torch.zeros(1).expand(10**6, 10**6)}, folder / "expanded.pt")
    torch.save({"conv_in.conv.weight": torch.eye(3).to_sparse()}, folder / "sparse.pt")
    torch.save([torch.zeros(2)], folder / "list.pt")
    torch.save({"state_dict": {}}, folder / "nothing.pt")
    torch.save({"something": torch.zeros(2)}, folder / "other.pt")
    torch.save({"in_conv.weight": torch.zeros(2)}, folder / "dncnn.pt")
    torch.save({"conv_in.conv.weight": torch.zeros(2)}, folder / "part.pt")
    whole = (folder / "other.pt").read_bytes()
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.pt").write_bytes(b"")
    with zipfile.ZipFile(folder / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"")
        for k in range(5):
            with archive.open(f"archive/data/{k}", "w", force_zip64=True) as entry:
                entry.write(b"")
    with zipfile.ZipFile(folder / "script.pt", "w") as archive:
        archive.writestr("script/constants.pkl", b"")
    with zipfile.ZipFile(folder / "program.pt2", "w") as archive:
        archive.writestr("program/models/model.json", b"{}")
    (folder / "header.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{}")
    entry = {"conv_in.conv.weight": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}}
    text = json.dumps(entry).encode()
    (folder / "huge.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    return {
        "trap.pt": "never loaded", "pickle.pt": "never loaded", "expanded.pt": "not a plain array",
        "sparse.pt": "not a plain array", "list.pt": "no state dictionary", "nothing.pt": "no state dictionary",
        "other.pt": "no known kind", "dncnn.pt": "DnCNN.*DenoiserNetwork", "part.pt": "do not fit",
        "cut.pt": "damaged", "empty.pt": "damaged", "bomb.pt": "damaged", "script.pt": "program, which is never loaded",
        "program.pt2": "program, which is never loaded", "header.safetensors": "header of",
        "huge.safetensors": "not a complete safetensors file",
    }  # fmt: skip


def test_hostile_and_odd_files_end_in_one_error(tmp_path, out, monkeypatch):
    found = archives(tmp_path)
    for name, message in found.items():
        with pytest.raises(UnsupportedNetworkError, match=message):
            import_model(tmp_path / name, out, config=ARGUMENTS, **HOW)
    assert not (tmp_path / "caught").exists()
    assert not out.exists()
    monkeypatch.setattr("sirf_diffusion.models.importers.reading.MAX_FILE_BYTES", 100)
    with pytest.raises(UnsupportedNetworkError, match="more than the 100 bytes"):
        import_model(tmp_path / "other.pt", out, config=ARGUMENTS, **HOW)
    content = bytearray((tmp_path / "other.pt").read_bytes())
    end = content.rindex(b"PK\5\6")
    content[end:end] = b"PK\6\7" + bytes(12) + (2).to_bytes(4, "little")  # parts on two disks
    (tmp_path / "disks.pt").write_bytes(content)
    monkeypatch.undo()
    with pytest.raises(UnsupportedNetworkError, match="damaged archive"):
        import_model(tmp_path / "disks.pt", out, config=ARGUMENTS, **HOW)
    for content in ("[1]", "{", "[" * 10**5):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UnsupportedNetworkError, match=r"config\.json"):
            import_model(tmp_path / "other.pt", out, config=tmp_path / "config.json", **HOW)


@pytest.fixture(scope="module")
def drunet():
    return randomised(ForeignDRUNet)


def assert_denoises_like(model, drunet):
    w = 3 * torch.rand((2, 16, 24), generator=torch.Generator().manual_seed(1))
    bound = model.on(ImageGeometry((2, 16, 24), (2.0,) * 3), 10.0)
    for sigma in (0.05, 0.7):
        expected = 10 * drunet(w[:, None], sigma)[:, 0]
        tolerance = 1e-5 * float(expected.abs().max())
        torch.testing.assert_close(bound.denoise_at(10 * w, sigma), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("blocks", [1, 2])
def test_deepinv_drunet(tmp_path, out, blocks):
    drunet = randomised(lambda: ForeignDRUNet(blocks=blocks))
    torch.save(drunet.state_dict(), tmp_path / "drunet.pth")
    found = import_model(tmp_path / "drunet.pth", out, config={"act_mode": "R"})
    assert (found.schedule, found.prediction, found.time_input) == (VESchedule(), "x0", "log_sigma")
    assert (found.architecture.kind, found.architecture.channels) == ("drunet", (4, 6, 8, 10))
    assert_denoises_like(ScoreModel.load(out), drunet)


def test_other_drunets_are_refused(drunet, tmp_path, out):
    torch.save(drunet.state_dict(), tmp_path / "drunet.pth")
    for config, message in (
        ({}, r"which activation.*--config.*act_mode"), ({"act_mode": "E"}, "act_mode"),
        ({"act_mode": "R", "upsample_mode": "upconv"}, "upsample_mode"),
    ):  # fmt: skip
        with pytest.raises(UnsupportedNetworkError, match=message):
            import_model(tmp_path / "drunet.pth", out, config=config)
    with pytest.raises(ValueError, match="must be 'x0'"):
        import_model(tmp_path / "drunet.pth", out, config={"act_mode": "R"}, prediction="eps")
    colour = drunet.state_dict() | {"m_head.weight": torch.zeros(4, 4, 3, 3), "m_tail.weight": torch.zeros(3, 4, 3, 3)}
    torch.save(colour, tmp_path / "colour.pth")
    with pytest.raises(UnsupportedNetworkError, match="3 images"):
        import_model(tmp_path / "colour.pth", out, config={"act_mode": "R"})


def test_any_denoiser_in_python(drunet):
    """Brightness changes nothing for a scale-equivariant denoiser, and is undone for any other."""
    for brightness in (1.0, 0.2):
        network = DenoiserNetwork(drunet, brightness=brightness)
        assert_denoises_like(ScoreModel(network, VESchedule(), "x0", multiple=8), drunet)
    other = ScoreModel(DenoiserNetwork(randomised(torch.nn.Identity)), VESchedule(), "x0", multiple=8)
    assert other.hash != ScoreModel(DenoiserNetwork(drunet), VESchedule(), "x0", multiple=8).hash
    network = DenoiserNetwork(lambda w, sigma: w.clamp(max=1) + sigma, brightness=0.25)
    model = ScoreModel(network, VESchedule(), "x0").on(ImageGeometry((1, 1, 2), (2.0,) * 3), 1.0)
    found = model.denoise_at(torch.tensor([[[2.0, 8.0]]]), 0.5)
    torch.testing.assert_close(found, torch.tensor([[[2.5, 4.5]]]), rtol=1e-5, atol=1e-5)


def test_the_import_is_tried_on_an_image(file, out, caplog):
    with caplog.at_level(logging.INFO, "sirf_diffusion"):
        import_model(file, out, config=ARGUMENTS, **HOW)
    assert "far worse than a Gaussian filter" in caplog.text
    assert "taken to be trained with ddpm, num_train_steps 1000" in caplog.text


@pytest.mark.parametrize(("change", "said"), [({}, False), ({"prediction": "eps"}, True), ({"time_input": "t"}, True)])
def test_the_trial_tells_right_from_wrong(out, caplog, change, said):
    network, config, _ = load_model(find_model("brain-fdg"))
    save_model(out, network.state_dict(), dataclasses.replace(config, **change))
    errors = check_denoising(out)
    assert list(errors) == [0.1, 0.3, 1.0]
    assert ("far worse than a Gaussian filter" in caplog.text) == said
    assert said or all(its < filtered for its, filtered in errors.values())


def test_command(file, tmp_path, out, capsys):
    (tmp_path / "unet.json").write_text(json.dumps(ARGUMENTS))
    command = ["models", "import", str(file), "--out", str(out)]
    assert main(command) == 2
    assert "config" in capsys.readouterr().err
    command += ["--config", str(tmp_path / "unet.json")]
    assert main(command) == 2
    assert "--schedule and --prediction" in capsys.readouterr().err
    assert main([*command, "--schedule", "{", "--prediction", "eps"]) == 2
    assert "--schedule '{' is not JSON" in capsys.readouterr().err
    options = ["--schedule", '{"name": "vp", "beta_min": 0.1, "beta_max": 20}', "--prediction", "eps",
               "--time-input", "log_sigma", "--voxel-size", "3"]  # fmt: skip
    assert main([*command, *options]) == 0
    assert "taken to be trained with vp, beta_min 0.1, beta_max 20; predicts eps" in capsys.readouterr().out
    config = load_model(out)[1]
    assert config.schedule == VPSchedule(0.1, 20)
    assert config.voxel_size == (3.0, 3.0, 3.0)
    assert main(["models", str(out)]) == 0
    assert '"imported"' in capsys.readouterr().out
