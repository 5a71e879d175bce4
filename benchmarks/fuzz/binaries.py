"""Readers of weights: models, adapters, checkpoints, training volumes, foreign networks."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import torch

from sirf_diffusion.files.weights import WeightsFileError
from sirf_diffusion.geometry.projdata import ProjDataGeometry
from sirf_diffusion.models import NetworkConfig, ScoreModel, VPSchedule, build_network
from sirf_diffusion.models.doses import DoseSchedule
from sirf_diffusion.models.enhancement import EnhancementModel, EnhancementModelConfig, LowDoseConfig
from sirf_diffusion.models.h_transform import HTransform, HTransformConfig, HTransformFileError
from sirf_diffusion.models.importers.reading import UnsupportedNetworkError
from sirf_diffusion.models.latent import EnhancementConfig
from sirf_diffusion.models.lora import Adapter, AdapterFileError
from sirf_diffusion.models.storage import ModelFileError
from sirf_diffusion.training.data.volume_file import VolumeFileError

from .mutations import any_value, changed_bytes, changed_json, changed_weights, json_text, several
from .reader import Reader, promise

TINY = NetworkConfig(
    channels=(4,), attention_levels=(False,), norm_num_groups=2, num_head_channels=4, num_class_embeds=0
)
_DRUNET = NetworkConfig(
    channels=(2, 2), attention_levels=(False, False), norm_num_groups=1, num_head_channels=1, num_class_embeds=0,
    kind="drunet",
)  # fmt: skip


def tiny_model(config: NetworkConfig = TINY) -> ScoreModel:
    """A score model with random weights."""
    prediction, schedule = ("v", VPSchedule()) if config.kind == "unet" else ("eps", VPSchedule())
    about = {"tracer": "none", "licence": "none", "training": {"note": [1, {"a": 2.5}]}}
    return ScoreModel(build_network(config), schedule, prediction, (4.0, 4.0, 4.0), about, architecture=config)


class _Weights(Reader):
    """Header and weights; ``key`` is that of the document in the header."""

    key: ClassVar[str]

    def content(self, rng: Random) -> bytes:
        """Mostly the document in the header changed, else header or bytes."""
        sample = rng.choice(self.samples)
        return changed_bytes(rng, sample) if rng.random() < 0.25 else changed_weights(rng, sample, self.key)


class Model(_Weights):
    """Score models."""

    name, file, errors, key = "model file", "model.safetensors", (ModelFileError,), "sirf_diffusion"

    def prepare(self) -> list[bytes]:
        """Two networks."""
        models = [tiny_model(), tiny_model(_DRUNET)]
        for k, model in enumerate(models):
            model.save(self.folder / f"{k}.safetensors")
        return [(self.folder / f"{k}.safetensors").read_bytes() for k in range(len(models))]

    def read(self) -> None:
        """The model, whose weights are finite and whose schedule has noise levels."""
        model = ScoreModel.load(self.path)
        promise(all(bool(t.isfinite().all()) for t in model.network.state_dict().values()), "weights not finite")
        promise(all(1e-5 < v < 1e6 for v in model.voxel_size), f"voxels of {model.voxel_size}")
        low, high = (float(model.schedule.sigma(t)) for t in (model.schedule.t_min, model.schedule.t_max))
        promise(0 <= low < high < 1e30, f"noise levels from {low} to {high}")
        json.dumps(model.metadata, allow_nan=False)


def tiny_enhancer() -> EnhancementModel:
    """An enhancement model with random weights."""
    config = EnhancementConfig(TINY, ct="both", noise="binomial", compression=1, patch=8)
    about = EnhancementModelConfig(config, DoseSchedule(), LowDoseConfig(), noise_by_dose=((1.0, 0.1), (0.1, 0.3)))
    return EnhancementModel(about)


class EnhancementFile(_Weights):
    """Enhancement models."""

    name, file, errors = "enhancement model", "enhancement.safetensors", (ModelFileError,)
    key = "sirf_diffusion_enhancement"

    def prepare(self) -> list[bytes]:
        """One without an autoencoder."""
        tiny_enhancer().save(self.path)
        return [self.path.read_bytes()]

    def read(self) -> None:
        """The model, whose weights are finite and whose doses fall."""
        model = EnhancementModel.load(self.path, "cpu")
        promise(all(bool(t.isfinite().all()) for t in model.state_dict().values()), "weights not finite")
        promise(bool((model.config.schedule.doses.diff() < 0).all()), "doses that rise")
        json.dumps(model.config.to_dict(), allow_nan=False)


class AdapterFile(_Weights):
    """Adapters of a model."""

    name, file, errors, key = "adapter", "adapter.safetensors", (AdapterFileError,), "sirf_diffusion_adapter"

    def prepare(self) -> list[bytes]:
        """One for a tiny model."""
        self.model = tiny_model()
        Adapter(self.model).save(self.path, {"note": 1})
        return [self.path.read_bytes()]

    def read(self) -> None:
        """The adapter, whose weights are finite."""
        adapter = Adapter.load(self.path, self.model)
        promise(all(bool(t.isfinite().all()) for t in adapter.tensors().values()), "weights not finite")
        promise(abs(adapter.config.scale) < 1e30, f"a scale of {adapter.config.scale}")


class HTransformFile(_Weights):
    """H-transforms of a model."""

    name, file, errors, key = "h-transform", "h.safetensors", (HTransformFileError,), "sirf_diffusion_h_transform"

    def prepare(self) -> list[bytes]:
        """One for a tiny model."""
        self.model = tiny_model()
        config = HTransformConfig(replace(TINY, in_channels=5), "tiny", self.model.hash, (1.0, 2.0))
        HTransform(build_network(config.architecture), self.model, config).save(self.path)
        return [self.path.read_bytes()]

    def read(self) -> None:
        """The network, whose weights are finite, of this model, and its ranges in order."""
        h = HTransform.load(self.path, self.model)
        promise(all(bool(t.isfinite().all()) for t in h.network.state_dict().values()), "weights not finite")
        low, high = h.config.counts
        promise(0 < low <= high <= 1e12 and h.config.base_sha256 == self.model.hash, f"counts from {low} to {high}")
        json.dumps(h.config.to_dict(), allow_nan=False)


class TrainingCheckpoint(Reader):
    """Checkpoints of a training."""

    name, file, errors = "checkpoint of a training", "checkpoint.safetensors", (WeightsFileError,)

    def prepare(self) -> list[bytes]:
        """One step of a tiny network."""
        from sirf_diffusion.training.configuration import DEFAULT
        from sirf_diffusion.training.distributed import Processes
        from sirf_diffusion.training.state import TrainingState

        recipe = replace(DEFAULT, architecture=_DRUNET, crops=(8,))
        self.state = TrainingState(recipe, {"data": "x"}, torch.device("cpu"), Processes())
        for parameter in self.state.network.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.state.optimiser.step()
        self.state.step, self.state.notes = 1, {"history": [[1, 0.5]], "best": {"step": 1}}
        self.state.save(self.folder)
        return [self.path.read_bytes()]

    def content(self, rng: Random) -> bytes:
        """A changed header with a checksum that fits, or changed bytes."""
        if rng.random() < 0.25:
            return changed_bytes(rng, self.samples[0])
        return changed_weights(rng, self.samples[0], seal=_sealed)

    def read(self) -> None:
        """The state that a training would go on from."""
        (self.folder / "checkpoint.previous.safetensors").unlink(missing_ok=True)
        self.state.load(self.folder)
        promise(0 <= self.state.step <= self.state.recipe.num_steps, f"step {self.state.step}")
        weights = (t for net in (self.state.network, self.state.average) for t in net.state_dict().values())
        promise(all(bool(t.isfinite().all()) for t in weights), "weights not finite")


def _sealed(header: dict[str, Any], data: bytes) -> None:
    """Put the checksum of a training checkpoint into its header."""
    import safetensors.torch

    from sirf_diffusion.training.checkpoint import digest

    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        return
    metadata.pop("sha256", None)
    text = json_text({k: v for k, v in header.items() if k != "__metadata__"}).encode("utf-8", "surrogatepass")
    try:
        tensors = safetensors.torch.load(len(text).to_bytes(8, "little") + text + data)
        metadata["sha256"] = digest(tensors, metadata)
    except Exception:  # not a file that the library reads: the checksum does not matter
        return


class RunCheckpoint(Reader):
    """Checkpoints of a reconstruction, and the run that goes on from one."""

    name, file, errors = "checkpoint of a run", "run.safetensors", (WeightsFileError, FloatingPointError)

    def prepare(self) -> list[bytes]:
        """Two of three epochs of OSEM, two of three steps of a sampler."""
        from sirf_diffusion.engines.embedded.acquisition import Acquisition
        from sirf_diffusion.reconstructors.checkpoint import CheckpointCallback
        from sirf_diffusion.reconstructors.diffusion.dds import DDSReconstructor
        from sirf_diffusion.reconstructors.em.osem import OSEM

        from .texts import GRID, SCANNER

        layout = ProjDataGeometry.from_scanner(SCANNER, span=1, max_ring_difference=0, num_tangential_positions=9)
        objective = Acquisition(
            torch.full(layout.shape, 5.0), layout, GRID, additive=torch.ones(layout.shape)
        ).objective()
        model = tiny_model(_DRUNET)
        self.makers: list[Callable[..., Any]] = [
            lambda **more: OSEM(objective, 3, **more),
            lambda **more: DDSReconstructor(objective, model, num_steps=3, num_inner=1, num_samples=2, **more),
        ]
        samples = []
        for maker in self.makers:

            def stop(step: Any) -> None:
                if step.step == 2:
                    raise StopIteration

            run = maker(callbacks=[CheckpointCallback(self.path), stop])
            run.set_up()
            run.process()
            samples.append(self.path.read_bytes())
        return samples

    def content(self, rng: Random) -> bytes:
        """Mostly the document in the header changed, else header or bytes."""
        sample = self.samples[0] if rng.random() < 0.8 else self.samples[1]
        if rng.random() < 0.25:
            return changed_bytes(rng, sample)
        return changed_weights(rng, sample, "sirf_diffusion_checkpoint")

    def read(self) -> None:
        """Go on with the run that the checkpoint says it is of."""
        from sirf_diffusion.reconstructors.checkpoint import Checkpoint

        tensors = Checkpoint.load(self.path).tensors
        run = self.makers["u" in tensors]()
        run.resume_from = self.path
        run.set_up()
        run.process()
        promise(bool(run.get_output().isfinite().all()), "an image that is not finite")
        json.dumps(run.record, default=str)


class ForeignNetwork(Reader):
    """Networks for ``models import``: archives of PyTorch and safetensors, and their configurations."""

    name, file, errors = "models import", "network.pt", (UnsupportedNetworkError, ValueError)

    def prepare(self) -> list[Any]:
        """A UNet in both kinds of file."""
        import safetensors.torch

        weights = build_network(TINY).state_dict()
        self.config = {
            "network_def": {
                "_target_": "monai.networks.nets.DiffusionModelUNet", "spatial_dims": 2, "in_channels": 1,
                "out_channels": 1, "channels": [4], "attention_levels": [False], "num_res_blocks": 1,
                "norm_num_groups": 2, "num_head_channels": 4,
            },
            "scheduler": {"_target_": "monai.networks.schedulers.DDPMScheduler", "num_train_timesteps": 100},
        }  # fmt: skip
        self.plain = safetensors.torch.save(weights)
        self.weights = weights
        self.archives = [_archive(weights), _archive({"state_dict": weights, "epoch": 3})]
        return [self.archives[0]]

    def content(self, rng: Random) -> bytes:
        """Configuration, then weights, each perhaps changed: kind of file and length of the configuration first."""
        config, kind = json.dumps(self.config).encode(), rng.randrange(4)
        if kind == 0 or rng.random() < 0.5:
            config = changed_json(rng, self.config)
        if kind == 3:
            weights, suffix = changed_weights(rng, self.plain) if rng.random() < 0.6 else self.plain, b"s"
        else:
            weights, suffix = self.variant(rng) if kind == 1 else rng.choice(self.archives), b"p"
            weights = changed_bytes(rng, weights) if kind == 2 else weights
        return suffix + struct.pack("<I", len(config)) + config + weights

    def whole(self) -> bytes:
        """The configuration and weights as they are."""
        config = json.dumps(self.config).encode()
        return b"p" + struct.pack("<I", len(config)) + config + self.archives[0]

    def made(self, rng: Random) -> bytes:
        """An archive with other weights."""
        return _archive(several(rng, lambda t: _changed_weights(rng, t))(dict(self.weights)))

    def read(self) -> None:
        """Import, with what a configuration leaves out given, but for the trial on an image, which takes long."""
        from sirf_diffusion.models.importers import import_model, importer

        raw = self.path.read_bytes()
        length = struct.unpack("<I", raw[1:5])[0]
        source = self.folder / ("source.safetensors" if raw[:1] == b"s" else "source.pt")
        source.write_bytes(raw[5 + length :])
        (self.folder / "config.json").write_bytes(raw[5 : 5 + length])
        out = self.folder / "out.safetensors"
        given = {} if raw[1] % 2 else {"schedule": "ddpm", "prediction": "eps"}
        with patch.object(importer, "check_denoising", ScoreModel.load):
            import_model(source, out, kind="monai", config=self.folder / "config.json", overwrite=True, **given)
        promise(ScoreModel.load(out).metadata["training"]["imported"], "no word of where it is from")


def _archive(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _changed_weights(rng: Random, weights: dict[str, Any]) -> Any:
    name = rng.choice(list(weights))
    kind = rng.randrange(6)
    if kind == 0:
        weights[name] = any_value(rng)
    elif kind == 1:
        weights[name] = torch.full((2, 2), rng.choice((float("nan"), 1e30)), dtype=torch.float64)
    elif kind == 2:
        weights[name] = torch.zeros(1).expand(rng.choice((10, 10**6, 10**9)))
    elif kind == 3:
        weights.pop(name)
    elif kind == 4:
        weights[name] = torch.ones(rng.choice(((0,), (3, 1), (1,) * 12)), dtype=rng.choice((torch.int64, torch.bool)))
    else:
        weights[rng.choice((1, None, "", "x" * 300, f"module.{name}"))] = weights[name]
    return weights if len(weights) > 1 else dict(weights, a=torch.zeros(1))


class TrainingVolumes(Reader):
    """Training volumes in HDF5."""

    name, file, errors = "training volumes", "train.h5", (VolumeFileError,)

    def prepare(self) -> list[bytes]:
        """Two small subjects."""
        return [_volumes(None)]

    def made(self, rng: Random) -> bytes:
        """Another structure."""
        return _volumes(rng)

    def content(self, rng: Random) -> bytes:
        """Structures changed with h5py, and bytes."""
        base = self.samples[0] if rng.random() < 0.3 else self.variant(rng)
        return base if rng.random() < 0.05 else changed_bytes(rng, base)

    def read(self) -> None:
        """Everything that the file has."""
        from sirf_diffusion.training.data.volume_file import VolumeFile, rejected_inputs

        file = VolumeFile(self.path)
        try:
            promise(all(0.1 <= v <= 100 for v in file.voxel_size), f"voxels of {file.voxel_size}")
            for index, info in enumerate(file.infos):
                promise(0 < info.intensity_scale < 1e300, f"a scale of {info.intensity_scale}")
                for name in ("emission", "mask", *(["anatomy"] if info.has_anatomy else [])):
                    values = file.volume(index, name)
                    promise(tuple(values.shape) == info.shape, "another shape than told")
                    promise(bool((values.float() >= 0).all() & values.float().isfinite().all()), "values out of range")
            if "rejected" in file._open():
                rejected_inputs(self.path)
        finally:
            file.close()


def _volumes(rng: Random | None) -> bytes:
    """A file of volumes; with a generator, one whose structure is changed."""
    import h5py

    from sirf_diffusion.training.data.volumes import Volume, root_attributes, write_group

    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.attrs.update(root_attributes("images", (4.0, 4.0, 4.0)) | {"settings": '{"kind": "images"}'})
        volumes = file.create_group("volumes")
        for k, split in enumerate(("train", "validation")):
            z, y, x = np.meshgrid(*[np.linspace(-1, 1, 12)] * 3, indexing="ij")
            image = np.exp(-3 * (z**2 + (y - 0.1 * k) ** 2 + 2 * x**2)).astype(np.float32)
            volume = Volume.from_image(image, (4.0, 4.0, 4.0), subject=f"s{k}", source="s", split=split, tracer="t")
            volume.add_anatomy(image**2, "MR")
            write_group(volumes.create_group(f"{k:05d}"), volume)
        table = file.create_group("rejected")
        table["number"] = np.asarray([1], np.int64)
        for name in ("source", "reason"):
            table.create_dataset(name, (1,), h5py.string_dtype(), data=["x"])
        for _ in range(0 if rng is None else rng.choice((1, 1, 2))):
            try:
                _change_structure(rng, file)
            except (TypeError, ValueError, OSError, RuntimeError, KeyError, OverflowError, UnicodeError):
                continue  # what HDF5 does not write
    return content.getvalue()


def _change_structure(rng: Random, file: Any) -> None:
    import h5py

    owner = file
    while isinstance(owner, h5py.Group) and len(owner) and rng.random() < 0.7:
        owner = owner[rng.choice(sorted(owner))]
    kind = rng.randrange(6)
    if kind < 3 and len(owner.attrs):
        name = rng.choice(sorted(owner.attrs))
        if rng.random() < 0.2:
            del owner.attrs[name]
        else:
            other = rng.choice((np.zeros((2, 2)), np.float16(3), b"x", [1.0, -1.0, 2.0]))
            owner.attrs[name] = rng.choice((any_value(rng), any_value(rng, "x"), other))
    elif isinstance(owner, h5py.Group) and len(owner):
        name = rng.choice(sorted(owner))
        if kind == 3:
            owner[f"{name}x" if rng.random() < 0.5 else "labels"] = owner[name]
        else:
            del owner[name]
            shape = rng.choice(((), (0,), (3,), (12, 12, 12), (12, 12, 1), (10**6, 10**6, 2), (1000, 1000, 1000)))
            if rng.random() < 0.2:
                owner[name] = h5py.SoftLink(rng.choice(("/", "/volumes", "/nothing", f"/volumes/{name}")))
            else:
                dtype = rng.choice(("f2", "f4", "i8", "u1", "S3", h5py.string_dtype()))
                owner.create_dataset(name, shape, dtype, chunks=True if 0 not in shape and shape else None)
