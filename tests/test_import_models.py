"""Foreign networks do here exactly what they did there, or are refused by name; nothing in a file is run."""

from __future__ import annotations

import json
import pickle
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

from sirf_diffusion.cli import main
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models import DDPMSchedule, ScoreModel, VESchedule, VPSchedule, load_model
from sirf_diffusion.models.importers import DenoiserNetwork, UnsupportedNetworkError, import_model

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

ARGUMENTS = {
    "use_flash_attention": True,  # as networks are built here: the same bits
    "spatial_dims": 2, "in_channels": 1, "out_channels": 1, "num_res_blocks": [1, 1], "channels": [32, 64],
    "attention_levels": [False, True], "norm_num_groups": 32, "num_head_channels": 16,
}  # fmt: skip

# MONAI's names -> those of the others, one line for each kind of layer, written from their sources by hand.
DIFFUSERS = (
    ("conv_in.conv.", "conv_in."), ("time_embed.0.", "time_embedding.linear_1."),
    ("time_embed.2.", "time_embedding.linear_2."), ("out.0.", "conv_norm_out."), ("out.2.conv.", "conv_out."),
    ("middle_block.resnet_1.", "mid_block.resnets.0."), ("middle_block.resnet_2.", "mid_block.resnets.1."),
    ("middle_block.attention.", "mid_block.attentions.0."), (".conv1.conv.", ".conv1."), (".conv2.conv.", ".conv2."),
    (".skip_connection.conv.", ".conv_shortcut."), (".downsampler.op.conv.", ".downsamplers.0.conv."),
    (".upsampler.postconv.conv.", ".upsamplers.0.conv."), (".0.norm.", ".0.group_norm."),
    (".1.norm.", ".1.group_norm."), (".attn.to_q.", ".to_q."), (".attn.to_k.", ".to_k."), (".attn.to_v.", ".to_v."),
    (".attn.out_proj.", ".to_out.0."),
)  # fmt: skip
GUIDED = (
    ("conv_in.conv.", "input_blocks.0.0."), ("down_blocks.0.resnets.0.", "input_blocks.1.0."),
    ("down_blocks.0.downsampler.op.conv.", "input_blocks.2.0.op."), ("down_blocks.1.resnets.0.", "input_blocks.3.0."),
    ("down_blocks.1.attentions.0.", "input_blocks.3.1."), ("middle_block.resnet_1.", "middle_block.0."),
    ("middle_block.attention.", "middle_block.1."), ("middle_block.resnet_2.", "middle_block.2."),
    ("up_blocks.0.resnets.0.", "output_blocks.0.0."), ("up_blocks.0.attentions.0.", "output_blocks.0.1."),
    ("up_blocks.0.resnets.1.", "output_blocks.1.0."), ("up_blocks.0.attentions.1.", "output_blocks.1.1."),
    ("up_blocks.0.upsampler.postconv.conv.", "output_blocks.1.2.conv."),
    ("up_blocks.1.resnets.0.", "output_blocks.2.0."), ("up_blocks.1.resnets.1.", "output_blocks.3.0."),
    (".norm1.", ".in_layers.0."), (".conv1.conv.", ".in_layers.2."), (".time_emb_proj.", ".emb_layers.1."),
    (".norm2.", ".out_layers.0."), (".conv2.conv.", ".out_layers.3."), (".skip_connection.conv.", ".skip_connection."),
    ("out.2.conv.", "out.2."),
)  # fmt: skip


def randomised(build):
    """A module with weights of its own everywhere (MONAI's start at zero output)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build().eval()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return network.requires_grad_(False)


@pytest.fixture(scope="module")
def network():
    return randomised(lambda: DiffusionModelUNet(**ARGUMENTS))


def renamed(weights, names):
    result = {}
    for name, value in weights.items():
        for old, new in names:
            name = name.replace(old, new)
        result[name] = value.clone()
    return result


def assert_same(network, path):
    generator = torch.Generator().manual_seed(1)
    images, time = torch.randn((2, 1, 16, 16), generator=generator), torch.tensor([3.0, 700.0])
    imported = load_model(path)[0]
    assert torch.equal(imported(images, time), network(images, time))


def guided_diffusion(network, new_order=False):
    weights = renamed(network.state_dict(), GUIDED)
    for place in {name.rsplit(".attn.", 1)[0] for name in weights if ".attn." in name}:
        for kind in ("weight", "bias"):
            parts = [weights.pop(f"{place}.attn.to_{letter}.{kind}") for letter in "qkv"]
            # The original order: for each head its queries, keys and values.
            heads = [torch.cat([part.split(16)[h] for part in parts]) for h in range(4)]
            qkv = torch.cat(parts if new_order else heads)
            out = weights.pop(f"{place}.attn.out_proj.{kind}")
            weights[f"{place}.qkv.{kind}"] = qkv[..., None] if kind == "weight" else qkv
            weights[f"{place}.proj_out.{kind}"] = out[..., None] if kind == "weight" else out
    return weights


@pytest.mark.parametrize("wrapped", [False, True])
def test_monai(network, tmp_path, wrapped):
    weights, config = network.state_dict(), ARGUMENTS
    if wrapped:
        weights = {"epoch": 3, "model": {f"module.{name}": value for name, value in weights.items()}}
        config = {"network_def": {"_target_": "monai.networks.nets.DiffusionModelUNet", **ARGUMENTS}}
    torch.save(weights, tmp_path / "unet.pt")
    found = import_model(tmp_path / "unet.pt", tmp_path / "m.safetensors", config=config, voxel_size=(3.0, 2.0, 2.0))
    assert_same(network, tmp_path / "m.safetensors")
    assert (found.schedule, found.prediction, found.time_input) == (DDPMSchedule(), "eps", "t")
    assert found.voxel_size == (3.0, 2.0, 2.0)
    assert found.training["imported"]["kind"] == "monai"
    assert len(found.training["imported"]["sha256"]) == 64


def test_monai_generative_names(network, tmp_path):
    weights = renamed(
        network.state_dict(),
        ((".attn.to_", ".to_"), (".attn.out_proj.", ".proj_attn."), ("upsampler.postconv.", "upsampler.conv.")),
    )
    assert weights.keys() != network.state_dict().keys()
    torch.save(weights, tmp_path / "unet.pt")
    import_model(tmp_path / "unet.pt", tmp_path / "m.safetensors", config=ARGUMENTS)
    assert_same(network, tmp_path / "m.safetensors")


@pytest.mark.parametrize("sines_first", [False, True])
def test_diffusers_folder(network, tmp_path, sines_first):
    from safetensors.torch import save_file

    weights = renamed(network.state_dict(), DIFFUSERS)
    if sines_first:
        first = weights["time_embedding.linear_1.weight"]
        weights["time_embedding.linear_1.weight"] = torch.cat((first[:, 16:], first[:, :16]), 1)
    # Their default for the normalisation is not MONAI's.
    network = randomised(lambda: DiffusionModelUNet(**ARGUMENTS, norm_eps=1e-5))
    for folder in ("unet", "scheduler"):
        (tmp_path / folder).mkdir()
    save_file(weights, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    config = {
        "_class_name": "UNet2DModel", "in_channels": 1, "out_channels": 1, "block_out_channels": [32, 64],
        "layers_per_block": 1, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "attention_head_dim": 16, "norm_num_groups": 32,
        "flip_sin_to_cos": not sines_first,
    }  # fmt: skip
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    scheduler = {"num_train_timesteps": 500, "beta_schedule": "linear", "prediction_type": "v_prediction"}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    found = import_model(tmp_path, tmp_path / "m.safetensors")
    assert (found.schedule, found.prediction) == (DDPMSchedule(500), "v")
    assert_same(network, tmp_path / "m.safetensors")
    for key, value in (("resnet_time_scale_shift", "scale_shift"), ("freq_shift", 1), ("add_attention", False)):
        (tmp_path / "unet" / "config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(UnsupportedNetworkError, match=key):
            import_model(tmp_path, tmp_path / "m.safetensors")


@pytest.mark.parametrize("new_order", [False, True])
def test_guided_diffusion(tmp_path, new_order):
    network = randomised(lambda: DiffusionModelUNet(**ARGUMENTS, norm_eps=1e-5))
    torch.save(guided_diffusion(network, new_order), tmp_path / "ema.pt")
    config = {"num_head_channels": 16, "use_new_attention_order": new_order}
    import_model(tmp_path / "ema.pt", tmp_path / "m.safetensors", config=config, schedule=VPSchedule())
    assert_same(network, tmp_path / "m.safetensors")


def test_guided_diffusion_with_scale_shift_is_refused(network, tmp_path):
    weights = guided_diffusion(network)
    for name in list(weights):
        if ".emb_layers.1." in name:
            weights[name] = torch.cat((weights[name], weights[name]))
    torch.save(weights, tmp_path / "ema.pt")
    with pytest.raises(UnsupportedNetworkError, match="scale-shift"):
        import_model(tmp_path / "ema.pt", tmp_path / "m.safetensors", config={"num_head_channels": 16})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spatial_dims": 1}, "spatial_dims = 1"),
        ({"spatial_dims": 3}, "do not fit"),
        ({"out_channels": 2}, "out_channels = 2"),
        ({"with_conditioning": True}, "with_conditioning"),
        ({"resblock_updown": True}, "resblock_updown"),
        ({"num_res_blocks": [1, 2]}, "differs between levels"),
        ({"colour": 1}, "unknown arguments .'colour'"),
        ({"in_channels": "@channels"}, "refers to something else"),
        ({"in_channels": 3}, "3 images"),
        ({"channels": [32, 32]}, "do not fit"),
        ({"attention_levels": [True, True]}, "do not fit"),
    ],
)
def test_what_does_not_fit_is_named(network, tmp_path, change, message):
    torch.save(network.state_dict(), tmp_path / "unet.pt")
    with pytest.raises(ValueError, match=message):
        import_model(tmp_path / "unet.pt", tmp_path / "m.safetensors", config=ARGUMENTS | change)
    assert not (tmp_path / "m.safetensors").exists()


class Trap:
    """An object whose unpickling writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (Path(self.path), "caught")


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_nothing_is_unpickled(tmp_path, protocol):
    trap = {"model": Trap(str(tmp_path / "caught"))}
    if protocol == "torch":
        torch.save(trap, tmp_path / "evil.pt")
    else:
        (tmp_path / "evil.pt").write_bytes(pickle.dumps(trap))
    with pytest.raises(UnsupportedNetworkError, match="never loaded"):
        import_model(tmp_path / "evil.pt", tmp_path / "m.safetensors", config=ARGUMENTS)
    assert not (tmp_path / "caught").exists()


def test_a_network_of_volumes(tmp_path):
    arguments = ARGUMENTS | {"spatial_dims": 3, "channels": [32, 32], "attention_levels": [False, False]}
    network = randomised(lambda: DiffusionModelUNet(**arguments))
    torch.save(network.state_dict(), tmp_path / "unet.pt")
    found = import_model(tmp_path / "unet.pt", tmp_path / "m.safetensors", config=arguments)
    assert found.architecture.spatial_dims == 3
    images = torch.randn((1, 1, 8, 8, 8), generator=torch.Generator().manual_seed(1))
    time = torch.tensor([3.0])
    assert torch.equal(load_model(tmp_path / "m.safetensors")[0](images, time), network(images, time))


class Residual(torch.nn.Module):
    """A block of the foreign denoiser below."""

    def __init__(self, width):
        super().__init__()
        convolutions = (torch.nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.res = torch.nn.Sequential(next(convolutions), torch.nn.ReLU(), next(convolutions))

    def forward(self, x):
        return x + self.res(x)


class ForeignDRUNet(torch.nn.Module):
    """deepinv's DRUNet, written down from its description: layers, names and the noise level as last image."""

    def __init__(self, channels=(4, 6, 8, 10), blocks=2):
        super().__init__()
        self.m_head = torch.nn.Conv2d(2, channels[0], 3, padding=1, bias=False)
        for k, (a, b) in enumerate(pairwise(channels), 1):
            residuals = [[Residual(a) for _ in range(blocks)] for _ in range(2)]
            down, up = torch.nn.Conv2d(a, b, 2, 2, bias=False), torch.nn.ConvTranspose2d(b, a, 2, 2, bias=False)
            setattr(self, f"m_down{k}", torch.nn.Sequential(*residuals[0], down))
            setattr(self, f"m_up{k}", torch.nn.Sequential(up, *residuals[1]))
        self.m_body = torch.nn.Sequential(*(Residual(channels[-1]) for _ in range(blocks)))
        self.m_tail = torch.nn.Conv2d(channels[0], 1, 3, padding=1, bias=False)

    def forward(self, x, sigma: float):
        x1 = self.m_head(torch.cat((x, torch.ones_like(x) * sigma), 1))
        x2 = self.m_down1(x1)
        x3 = self.m_down2(x2)
        x4 = self.m_down3(x3)
        x = self.m_up3(self.m_body(x4) + x4)
        return self.m_tail(self.m_up1(self.m_up2(x + x3) + x2) + x1)


@pytest.fixture(scope="module")
def drunet():
    return randomised(ForeignDRUNet)


def assert_denoises_like(model, drunet):
    w = 3 * torch.rand((2, 16, 24), generator=torch.Generator().manual_seed(1))
    bound = model.on(ImageGeometry((2, 16, 24), (2.0,) * 3), 10.0)
    for sigma in (0.05, 0.7):
        expected = 10 * drunet(w[:, None], sigma)[:, 0]
        torch.testing.assert_close(bound.denoise_at(10 * w, sigma), expected, rtol=1e-4, atol=1e-4)


def test_deepinv_drunet(drunet, tmp_path):
    torch.save(drunet.state_dict(), tmp_path / "drunet.pth")
    found = import_model(tmp_path / "drunet.pth", tmp_path / "m.safetensors")
    assert (found.schedule, found.prediction, found.time_input) == (VESchedule(), "x0", "log_sigma")
    assert (found.architecture.kind, found.architecture.channels) == ("drunet", (4, 6, 8, 10))
    assert_denoises_like(ScoreModel.load(tmp_path / "m.safetensors"), drunet)
    for change, message in (({"act_mode": "E"}, "act_mode"), ({"upsample_mode": "upconv"}, "upsample_mode")):
        with pytest.raises(UnsupportedNetworkError, match=message):
            import_model(tmp_path / "drunet.pth", tmp_path / "m.safetensors", config=change)
    with pytest.raises(ValueError, match="must be 'x0'"):
        import_model(tmp_path / "drunet.pth", tmp_path / "m.safetensors", prediction="eps")
    colour = drunet.state_dict() | {"m_head.weight": torch.zeros(4, 4, 3, 3), "m_tail.weight": torch.zeros(3, 4, 3, 3)}
    torch.save(colour, tmp_path / "colour.pth")
    with pytest.raises(UnsupportedNetworkError, match="3 images"):
        import_model(tmp_path / "colour.pth", tmp_path / "m.safetensors")


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


@pytest.mark.parametrize("kind", ["scripted", "traced", "exported"])
def test_weights_are_taken_out_of_programs(drunet, tmp_path, kind):
    path, example = tmp_path / f"{kind}.pt", (torch.zeros(1, 1, 16, 16), torch.tensor(0.1))
    if kind == "exported":
        torch.export.save(torch.export.export(drunet, example), path)
    elif kind == "traced":
        torch.jit.trace(drunet, example).save(str(path))
    else:
        torch.jit.script(drunet).save(str(path))
    found = import_model(path, tmp_path / "m.safetensors")
    assert found.training["imported"]["file"] == path.name
    assert_denoises_like(ScoreModel.load(tmp_path / "m.safetensors"), drunet)


def test_weights_of_a_program_keep_their_layout(tmp_path):
    """A transposed weight, and one that is part of a larger array."""
    from sirf_diffusion.models.importers.archives import read_archive

    linear = torch.nn.Linear(2, 3)
    linear.weight.data = torch.arange(12.0).reshape(4, 3)[1:3].t()
    example = (torch.zeros(1, 2),)
    torch.jit.trace(linear, example).save(str(tmp_path / "a.pt"))
    torch.export.save(torch.export.export(linear, example), tmp_path / "a.pt2")
    for name in ("a.pt", "a.pt2"):
        assert torch.equal(read_archive(tmp_path / name)[1]["weight"], linear.weight)


def repacked(source, target, changes):
    """An archive with other contents under some names."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            change = next((change for end, change in changes.items() if name.endswith(end)), None)
            content = old.read(name)
            new.writestr(name, content if change is None else change(content))


def test_hostile_programs_run_nothing(drunet, tmp_path):
    example = (torch.zeros(1, 1, 16, 16), torch.tensor(0.1))
    torch.jit.trace(drunet, example).save(str(tmp_path / "good.pt"))
    torch.export.save(torch.export.export(drunet, example), tmp_path / "good.pt2")
    trap = pickle.dumps(Trap(str(tmp_path / "caught")), 2)

    def pickled(content):
        config = json.loads(content)
        for entry in config["config"].values():
            entry["use_pickle"] = True
        return json.dumps(config).encode()

    def too_long(content):
        return content.replace(b'"sizes": [{"as_int": 4}', b'"sizes": [{"as_int": 4000}')

    for source, changes, message in (
        ("good.pt", {"data.pkl": lambda _: trap}, "refers to"),
        ("good.pt", {"data.pkl": lambda content: content[:200]}, "cannot be read"),
        ("good.pt", {"data/0": lambda content: content[:4]}, "longer than its numbers"),
        ("good.pt2", {"weights_config.json": pickled}, "is pickled"),
        ("good.pt2", {"weights_config.json": too_long}, "longer than its numbers"),
    ):
        repacked(tmp_path / source, tmp_path / "evil.pt", changes)
        with pytest.raises(UnsupportedNetworkError, match=message):
            import_model(tmp_path / "evil.pt", tmp_path / "m.safetensors")
        assert not (tmp_path / "caught").exists()
        assert not (tmp_path / "m.safetensors").exists()
    # What is not read is not run: the program itself, constants and sample inputs.
    rest = {
        "constants.pkl": lambda _: trap,
        ".py": lambda _: b"open('caught', 'w')",
        "sample_inputs/model.pt": lambda _: trap,
    }
    for source in ("good.pt", "good.pt2"):
        repacked(tmp_path / source, tmp_path / "odd.pt", rest)
        import_model(tmp_path / "odd.pt", tmp_path / "m.safetensors")
        assert not (tmp_path / "caught").exists()


def test_unknown_networks_are_refused_by_name(tmp_path):
    linear = torch.nn.Linear(2, 2)
    torch.jit.trace(linear, torch.zeros(1, 2)).save(str(tmp_path / "script.pt"))
    torch.save({"in_conv.weight": torch.zeros(2)}, tmp_path / "dncnn.pt")
    torch.save({"something": torch.zeros(2)}, tmp_path / "other.pt")
    for name, message in (
        ("script.pt", "no known kind"), ("dncnn.pt", "DnCNN.*DenoiserNetwork"), ("other.pt", "no known kind"),
    ):  # fmt: skip
        with pytest.raises(UnsupportedNetworkError, match=message):
            import_model(tmp_path / name, tmp_path / "m.safetensors", config=ARGUMENTS)


def test_command(network, tmp_path, capsys):
    torch.save(network.state_dict(), tmp_path / "unet.pt")
    (tmp_path / "unet.json").write_text(json.dumps(ARGUMENTS))
    command = ["models", "import", str(tmp_path / "unet.pt"), "--out", str(tmp_path / "m.safetensors")]
    assert main(command) == 2
    assert "config" in capsys.readouterr().err
    options = ["--config", str(tmp_path / "unet.json"), "--schedule", '{"name": "vp", "beta_min": 0.1, "beta_max": 20}',
               "--time-input", "log_sigma", "--voxel-size", "3"]  # fmt: skip
    assert main([*command, *options]) == 0
    config = load_model(tmp_path / "m.safetensors")[1]
    assert config.schedule == VPSchedule(0.1, 20)
    assert config.voxel_size == (3.0, 3.0, 3.0)
    assert main(["models", str(tmp_path / "m.safetensors")]) == 0
    assert '"imported"' in capsys.readouterr().out
