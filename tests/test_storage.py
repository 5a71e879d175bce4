import json
import math
import os
import re

import pytest
import torch

from sirf_diffusion.models import storage
from sirf_diffusion.models.networks import NetworkConfig, build_network
from sirf_diffusion.models.schedules import VESchedule, VPSchedule
from sirf_diffusion.models.storage import METADATA_KEY, ModelConfig, ModelFileError, load_model, read_config, save_model

ARCHITECTURE = NetworkConfig(
    channels=(4, 8), attention_levels=(False, True), norm_num_groups=4, num_head_channels=4, num_res_blocks=1
)
CONFIG = ModelConfig(ARCHITECTURE, VPSchedule(), tracer="FDG", licence="Apache-2.0", training={"steps": 3, "é": [1.5]})


@pytest.fixture(scope="module")
def network():
    network = build_network(ARCHITECTURE, seed=5)
    # MONAI starts the last convolution at zero: an untrained network would hide errors behind zeros.
    torch.nn.init.normal_(network.out[2].conv.weight, generator=torch.Generator().manual_seed(0))
    return network.eval()


@pytest.fixture
def file(network, tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(path, network.state_dict(), CONFIG)
    return path


def evaluate(network):
    image = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    with torch.no_grad():
        return network(image, torch.tensor([-30.5]), class_labels=torch.tensor([2]))


def rewrite(path, change, padding=b""):
    """Change the header of a safetensors file; the tensors' bytes stay."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    configuration = json.loads(header["__metadata__"][METADATA_KEY])
    change(header, configuration)
    if METADATA_KEY in header.get("__metadata__", {}):
        header["__metadata__"][METADATA_KEY] = json.dumps(configuration)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :] + padding)


def test_round_trip(network, file):
    loaded, config, digest = load_model(file)
    assert config == CONFIG == read_config(file)
    assert torch.equal(evaluate(loaded), evaluate(network))
    assert not loaded.training
    assert digest == load_model(file)[2]


def test_the_same_model_is_the_same_file(network, file, tmp_path):
    other = tmp_path / "other.safetensors"
    assert save_model(other, network.state_dict(), CONFIG) == load_model(file)[2]
    assert other.read_bytes() == file.read_bytes()
    channels_last = {
        name: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for name, t in network.state_dict().items()
    }
    save_model(other, channels_last, CONFIG)
    assert other.read_bytes() == file.read_bytes()


def test_half_precision_is_half_the_size_and_loads_as_float32(network, file, tmp_path):
    half = tmp_path / "half.safetensors"
    save_model(half, network.state_dict(), CONFIG, weights_dtype="float16")
    tensors, whole = (os.path.getsize(p) - int.from_bytes(p.read_bytes()[:8], "little") - 8 for p in (half, file))
    assert 2 * tensors == whole
    loaded, _, _ = load_model(half)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(evaluate(loaded), evaluate(network), rtol=0.02, atol=0.02)


def test_bfloat16_is_read(network, tmp_path):
    import safetensors.torch

    path = tmp_path / "b.safetensors"
    tensors = {name: t.to(torch.bfloat16).contiguous() for name, t in network.state_dict().items()}
    safetensors.torch.save_file(
        tensors, path, metadata={METADATA_KEY: json.dumps({"format_version": 1, **CONFIG.to_dict()})}
    )
    assert {p.dtype for p in load_model(path)[0].parameters()} == {torch.float32}


def test_saving_is_all_or_nothing(network, file, tmp_path, monkeypatch):
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_model(file, network.state_dict(), ModelConfig(ARCHITECTURE, VPSchedule(), tracer="other"))
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == [file.name]


def test_weights_that_cannot_be_stored_are_refused(network, tmp_path):
    path, weights = tmp_path / "m.safetensors", network.state_dict()
    large = weights | {"conv_in.conv.bias": torch.full((4,), 1e6)}
    with pytest.raises(ValueError, match=r"conv_in\.conv\.bias.*not finite as float16"):
        save_model(path, large, CONFIG, weights_dtype="float16")
    with pytest.raises(ValueError, match=r"architecture.*conv_in\.conv\.bias"):
        save_model(path, weights | {"conv_in.conv.bias": torch.zeros(5)}, CONFIG)
    with pytest.raises(ValueError, match="weights_dtype"):
        save_model(path, weights, CONFIG, weights_dtype="int8")
    assert not path.exists()


def first_tensor(header):
    return next(name for name in header if name != "__metadata__")


def edits():
    """Header edits and what the error must say."""

    def metadata(**changes):
        return lambda header, configuration: configuration.update(changes)

    def architecture(**changes):
        return lambda header, configuration: configuration["architecture"].update(changes)

    def rename(header, configuration):
        header["stranger"] = header.pop(first_tensor(header))

    def tensor(**changes):
        return lambda header, configuration: header[first_tensor(header)].update(changes)

    return {
        "no metadata": (lambda header, configuration: header.pop("__metadata__"), "no 'sirf_diffusion' configuration"),
        "foreign metadata": (
            lambda header, configuration: header.update(__metadata__={"format": "pt"}),
            "no 'sirf_diffusion' configuration",
        ),
        "future version": (metadata(format_version=99), "newer version.*format_version 99"),
        "version of a wrong type": (metadata(format_version=[1]), "format_version must be"),
        "missing key": (lambda header, configuration: configuration.pop("schedule"), "misses the keys.*schedule"),
        "unknown key": (metadata(hook="os.system"), "unknown keys.*hook"),
        "unknown architecture key": (architecture(init="eval"), "unknown keys.*init"),
        "huge network": (architecture(channels=[4096, 8192]), "up to 1024"),
        "many levels": (architecture(channels=[4] * 99), "1 to 6 levels"),
        "text for a number": (architecture(num_res_blocks="2"), "num_res_blocks"),
        "truth for a number": (architecture(norm_num_groups=True), "norm_num_groups"),
        "zero groups": (architecture(norm_num_groups=0), "norm_num_groups"),
        "odd heads": (architecture(num_head_channels=3), "num_head_channels"),
        "no dictionary": (metadata(architecture=[]), "architecture must be a dictionary"),
        "wrong schedule": (metadata(schedule={"name": "vp"}), "schedule 'vp'"),
        "wrong prediction": (metadata(prediction="w"), "prediction"),
        "v with VE": (metadata(schedule=VESchedule().to_config()), "variance-preserving"),
        "no voxel size": (metadata(voxel_size_mm=None), "voxel_size"),
        "voxel of nothing": (metadata(voxel_size_mm=[2, 0, 2]), "voxel_size"),
        "voxel of NaN": (metadata(voxel_size_mm=[2, math.nan, 2]), "NaN is no number"),
        "unknown scale rule": (metadata(intensity_rule="max"), "intensity_rule"),
        "other architecture": (architecture(num_res_blocks=2), "missing"),
        "other width": (architecture(channels=[4, 12]), "has shape"),
        "renamed tensor": (rename, "missing"),
        "additional tensor": (
            lambda header, configuration: header.update(more=header[first_tensor(header)]),
            "not a complete safetensors file",
        ),
        "other shape": (tensor(shape=[7, 7]), "not a complete safetensors file"),
        "shape of text": (tensor(shape="big"), "not a complete safetensors file"),
        "other type": (tensor(dtype="I64"), "not a complete safetensors file"),
        "offsets beyond the file": (tensor(data_offsets=[0, 10**12]), "not a complete safetensors file"),
        "negative offsets": (tensor(data_offsets=[-4, 0]), "not a complete safetensors file"),
    }


def test_whole_numbers_are_no_weights(file):
    import safetensors.torch

    tensors, metadata = (
        safetensors.torch.load_file(file),
        {METADATA_KEY: json.dumps({"format_version": 1, **read_config(file).to_dict()})},
    )
    name = min(tensors)
    safetensors.torch.save_file({**tensors, name: tensors[name].long()}, file, metadata)
    with pytest.raises(ModelFileError, match=rf"{re.escape(name)}' has type torch.int64"):
        load_model(file)


@pytest.mark.parametrize(("change", "message"), edits().values(), ids=edits())
def test_hostile_headers_are_refused_by_name(file, change, message):
    rewrite(file, change)
    with pytest.raises(ModelFileError, match=message) as error:
        load_model(file)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("keep", [0, 5, 8, 100, 0.5, 0.999, 1.5])
def test_truncated_and_overlong_files_are_refused(file, keep):
    content = file.read_bytes()
    size = keep if isinstance(keep, int) else int(keep * len(content))
    file.write_bytes(content[:size].ljust(size, b"\0"))
    with pytest.raises(ModelFileError, match=r"safetensors|truncated"):
        load_model(file)


@pytest.mark.parametrize("content", [
    b"\x80\x04\x95this is a pickle, not a model", b"PK\x03\x04" + bytes(100), (2).to_bytes(8, "little") + b"[]",
    (4).to_bytes(8, "little") + b"\xff\xfe\x00\x00", (90_000).to_bytes(8, "little") + b"[" * 90_000,
    (2**62).to_bytes(8, "little") + b"{}",
], ids=["pickle", "zip", "list", "binary", "deep", "huge header"])  # fmt: skip
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=str(path)):
        load_model(path)


def test_a_deep_configuration_is_refused(file):
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"][METADATA_KEY] = "[" * 90_000
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    with pytest.raises(ModelFileError, match="not valid"):
        load_model(file)


def test_weights_that_are_not_finite_are_refused(network, tmp_path):
    import safetensors.torch

    path = tmp_path / "nan.safetensors"
    tensors = {name: t.clone() for name, t in network.state_dict().items()}
    tensors["conv_in.conv.bias"][1] = math.nan
    safetensors.torch.save_file(
        tensors, path, metadata={METADATA_KEY: json.dumps({"format_version": 1, **CONFIG.to_dict()})}
    )
    with pytest.raises(ModelFileError, match=r"conv_in\.conv\.bias.*not finite"):
        load_model(path)


def test_models_are_found_by_name_or_path(file, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "BUNDLED", tmp_path)
    assert storage.list_models() == ["model"]
    assert storage.find_model("model") == file
    assert storage.find_model(str(file)) == file
    with pytest.raises(ModelFileError, match=r"'brain' is neither.*bundled models: model"):
        storage.find_model("brain")
    with pytest.raises(ModelFileError, match="neither"):
        storage.find_model(tmp_path)


def test_building_a_network_is_reproducible_and_leaves_the_generator_alone():
    state = torch.random.get_rng_state()
    first, second, other = (build_network(ARCHITECTURE, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv_in.conv.weight"], other["conv_in.conv.weight"])
    assert float(evaluate(build_network(ARCHITECTURE).eval()).abs().max()) == 0  # predicts zero until trained
