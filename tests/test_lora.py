"""Adapters: nothing at the start, nothing left behind, and only for the model that they were made for."""

from dataclasses import asdict

import pytest
import torch
from tiny_model import tiny_model
from torch import nn
from torch.nn.utils import parametrize

from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models import ScoreModel, VPSchedule
from sirf_diffusion.models.lora import _FORMAT, Adapter, AdapterConfig, AdapterFileError

GEOMETRY = ImageGeometry((2, 8, 12), (2.0, 2.0, 2.0))
CONFIGS = [AdapterConfig(rank=3), AdapterConfig(rank=2, biases=False, scale=0.5), AdapterConfig(rank=None)]
each_config = pytest.mark.parametrize("config", CONFIGS, ids=["low-rank", "no-biases", "all"])


@pytest.fixture
def model():
    return tiny_model().on(GEOMETRY, 3.0)


def noisy(seed=1):
    return torch.randn(2, *GEOMETRY.shape, generator=torch.Generator().manual_seed(seed))


def output(model):
    return model.predict(noisy(), 0.4)[0]


def disturb(adapter, seed=2):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def weights(model):
    return {name: value.clone() for name, value in model.network.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@each_config
def test_the_output_is_unchanged_at_the_start_and_the_base_always(model, config, untouched_random_state):
    before, kept = output(model), weights(model)
    adapter = Adapter(model, config)
    assert torch.equal(output(adapter.model), before)
    disturb(adapter)
    assert not torch.allclose(output(adapter.model), before, rtol=1e-3)
    assert torch.equal(output(model), before)
    assert same(weights(model), kept)
    assert not any(parameter.requires_grad for parameter in model.network.parameters())
    assert not any(parametrize.is_parametrized(layer) for layer in model.network.modules())


def test_channels_last_weights_give_the_same_bits(model):
    model.network = model.network.to(memory_format=torch.channels_last)
    assert torch.equal(output(Adapter(model).model), output(model))


@each_config
def test_merged_is_an_ordinary_model(model, config, tmp_path):
    adapter = Adapter(model, config)
    disturb(adapter)
    adapted = output(adapter.model)
    merged = adapter.merge()
    assert torch.equal(output(merged), adapted)
    assert torch.equal(output(adapter.model), adapted)
    assert merged.hash != model.hash
    merged.save(tmp_path / "merged.safetensors")
    loaded = ScoreModel.load(tmp_path / "merged.safetensors").on(GEOMETRY, 3.0)
    assert torch.allclose(output(loaded), adapted, rtol=1e-5, atol=1e-6)


@each_config
def test_saved_and_loaded(model, config, tmp_path):
    adapter = Adapter(model, config)
    disturb(adapter)
    path = adapter.save(tmp_path / "patient.safetensors", {"tracer": "florbetapir"})
    loaded = Adapter.load(path, model)
    assert loaded.config == config
    assert loaded.hash == adapter.hash != Adapter(model, config).hash
    assert torch.equal(output(loaded.model), output(adapter.model))
    assert [p.name for p in tmp_path.iterdir()] == ["patient.safetensors"]


def test_a_low_rank_adapter_is_small(model, tmp_path):
    path = Adapter(model, AdapterConfig(rank=1, biases=False)).save(tmp_path / "a.safetensors")
    model.save(tmp_path / "model.safetensors")
    assert path.stat().st_size < 0.7 * (tmp_path / "model.safetensors").stat().st_size


def test_refused_for_another_base_and_where_damaged(model, tmp_path):
    path = Adapter(model).save(tmp_path / "a.safetensors")
    with pytest.raises(AdapterFileError, match="made for another model"):
        Adapter.load(path, tiny_model(seed=5).on(GEOMETRY, 3.0))
    with pytest.raises(FileNotFoundError, match="missing"):
        Adapter.load(tmp_path / "missing.safetensors", model)
    model.save(tmp_path / "model.safetensors")
    with pytest.raises(AdapterFileError, match=r"model\.safetensors is not an adapter"):
        Adapter.load(tmp_path / "model.safetensors", model)
    content = path.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"\x00" * 99):
        path.write_bytes(damaged)
        with pytest.raises(AdapterFileError, match=r"a\.safetensors"):
            Adapter.load(path, model)
    with pytest.raises(FileNotFoundError, match="folder"):
        Adapter(model).save(tmp_path / "nowhere" / "a.safetensors")


@pytest.mark.parametrize(("change", "message"), [
    ({"rank": 4096}, "ranks"), ({"rank": 2, "targets": "("}, "regular expression"), ({"hook": 1}, "hook"),
    (None, "valid"),
])  # fmt: skip
def test_hostile_configurations_of_adapters_are_refused(model, tmp_path, change, message):
    adapter = Adapter(model, AdapterConfig(rank=2))
    document = {"base": model.hash, "config": change if change is None else asdict(adapter.config) | change}
    _FORMAT.write(tmp_path / "a.safetensors", adapter.tensors(), document)
    with pytest.raises(AdapterFileError, match=rf"a\.safetensors.*{message}"):
        Adapter.load(tmp_path / "a.safetensors", model)


def test_patterns_of_a_file_are_not_searched_for(model, tmp_path):
    adapter = Adapter(model, AdapterConfig(rank=2))
    endless = asdict(adapter.config) | {"targets": r"((\w|\.)+)+!", "exclude": r"((\w|\.)+)+!"}
    _FORMAT.write(tmp_path / "a.safetensors", adapter.tensors(), {"base": model.hash, "config": endless})
    assert Adapter.load(tmp_path / "a.safetensors", model).hash == adapter.hash


def test_tensors_that_do_not_fit_are_refused(model):
    adapter = Adapter(model)
    tensors = {name: tensor.clone() for name, tensor in adapter.tensors().items()}
    first = next(iter(tensors))
    with pytest.raises(ValueError, match=first):
        adapter.load_tensors({name: tensor for name, tensor in tensors.items() if name != first})
    tensors[first][...] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        adapter.load_tensors(tensors)


def test_what_may_change():
    model = tiny_model()
    names = set(Adapter(model).tensors())
    assert not [name for name in names if "time_emb" in name or "class_emb" in name]
    assert any(name.endswith("norm1.bias") for name in names)
    assert any("attn.to_q.weight.up" in name for name in names)
    attention = set(Adapter(model, AdapterConfig(targets="attn", biases=False)).tensors())
    assert attention
    assert all("attn" in name and name.endswith((".up", ".down")) for name in attention)
    everything = Adapter(model, AdapterConfig(rank=None, exclude=""))
    assert everything.num_parameters == sum(p.numel() for p in model.network.parameters())
    assert Adapter(model, AdapterConfig(rank=0)).num_parameters == 0
    with pytest.raises(ValueError, match="no layer"):
        Adapter(model, AdapterConfig(targets="nothing of this name", biases=False))
    with pytest.raises(ValueError, match=r"torch\.nn\.Module"):
        Adapter(ScoreModel(lambda images, time, class_labels=None: images, VPSchedule()))
    for wrong in ({"rank": -1}, {"rank": 1.5}, {"scale": float("inf")}, {"targets": "("}, {"biases": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            AdapterConfig(**wrong)


class AllKinds(nn.Module):
    """One layer of each kind, applied to slices."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.one, self.two = nn.Conv1d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1, groups=3)
            self.three, self.linear = nn.Conv3d(3, 2, 3, padding=1), nn.Linear(2, 1)

    def forward(self, images, time, class_labels=None):
        number, _, height, width = images.shape
        x = self.one(images.reshape(number, 1, height * width)).reshape(number, 3, height, width)
        x = self.three(self.two(x)[:, :, None])[:, :, 0]
        return self.linear(x.movedim(1, -1)).movedim(-1, 1)


def test_every_kind_of_layer_takes_part():
    model = ScoreModel(AllKinds().requires_grad_(False), VPSchedule()).on(GEOMETRY, 1.0)
    before = output(model)
    adapter = Adapter(model, AdapterConfig(rank=2, biases=False))
    assert {name.split(".")[0] for name in adapter.tensors()} == {"one", "two", "three", "linear"}
    assert torch.equal(output(adapter.model), before)
    for name, tensor in adapter.tensors().items():
        if name.endswith("up"):
            tensor += 0.1
            assert not torch.equal(output(adapter.model), before)
            tensor -= tensor
            assert torch.equal(output(adapter.model), before)


@pytest.mark.parametrize("planes", ["transverse", "three"])
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_gradients_do_not_depend_on_how_slices_are_grouped(planes, batch):
    model = tiny_model(dtype=torch.float64).on(GEOMETRY, 1.0, planes)
    adapter = Adapter(model, AdapterConfig(rank=2))
    u = noisy().double()
    gradients = []
    for adapter.model.gradient_batch in (batch, 2):
        with adapter.adapting():
            u0, eps = adapter.model.predict_with_gradient(u, 0.3)
            loss = (u0 * u).sum() + eps.square().sum()
            gradients.append(torch.autograd.grad(loss, adapter.parameters(), allow_unused=True))
        assert torch.allclose(u0.detach(), adapter.model.predict(u, 0.3)[0], rtol=1e-12)
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_a_prediction_without_gradients_leaves_no_graph(model):
    adapter = Adapter(model)
    u0, eps = adapter.model.predict(noisy(), 0.4)
    assert not u0.requires_grad
    assert not eps.requires_grad
    assert not u0.is_inference()
