"""Supervised training: an h-transform learns to use the data of scans that are simulated as it goes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..engines.embedded.acquisition import default_geometry
from ..engines.embedded.scans import Scans
from ..environment import faster_precision
from ..files.interfile import read_projection_data_geometry
from ..files.outputs import jsonable
from ..geometry.checks import check_count
from ..geometry.images import ImageGeometry
from ..geometry.projdata import ProjDataGeometry
from ..models.h_transform import (
    NUM_INPUTS,
    HTransformConfig,
    correction_size,
    counts_per_voxel,
    inputs,
    save_h_transform,
)
from ..models.intensity import intensity_scale
from ..models.networks import NetworkConfig, memory_format, network_time
from ..models.schedules import denoised_and_noise
from ..models.score_model import ScoreModel
from .corruption import Example, draw_noise_levels, over_images
from .data.augmentation import Augmentation
from .data.scans import ScanOptions, ScanSimulator
from .data.slice_stream import SliceStream
from .data.volume_file import VolumeFile
from .log import Curves
from .loop import TrainingLoop
from .recipes import Recipe

#: The recipe of `train --supervised` for slices. The noise levels are about evenly spread in the schedule's time, with
#: an eighth of them at its end, where every chain starts.
SLICES = Recipe(
    name="deft",
    architecture=NetworkConfig(
        channels=(16, 32, 64), attention_levels=(False, False, False), num_head_channels=32, num_class_embeds=0,
        in_channels=NUM_INPUTS, patch_size=2,
    ),
    crops=(128,), planes=(0,), batch_size=8, cycles=(3000,), learning_rate=1e-3, warmup_steps=50, ema_decay=0.99,
    decay="cosine", log_sigma_mean=0.6,
    log_sigma_sd=1.6, uniform_share=0.0, augmentation=Augmentation(shift=0.05), validate_every=100,
)  # fmt: skip
#: Of the water that stands for the attenuation of what has no attenuation map, 1/cm; and where there is some.
_WATER, _AIR = 0.096, 0.05
_COUNT_LEVELS, _VALIDATION_SLICES = 5, 12
#: The object and this many pixels around it are what the networks are shown.
_MARGIN = 2
#: A slice with more than this times its intensity scale anywhere is not learnt from: another is drawn, so often.
_MOST_CONTRAST, _ATTEMPTS = 8.0, 20


@dataclass(frozen=True)
class Supervision:
    """What a supervised training has beside its recipe.

    Parameters
    ----------
    base
        Score model that is steered, a bundled name or a file.
    scanner
        Header of projection data (``.hs``), whose layout all scans have.
    scans
        What is drawn of each scan.
    pool
        Slices with their noise that come again and again, each time with another scan: the score model is asked once
        about each, and half of the time is saved. 0: all are new.
    """

    base: str
    scanner: str | os.PathLike[str]
    scans: ScanOptions = field(default_factory=ScanOptions)
    pool: int = 0

    def __post_init__(self) -> None:
        check_count("pool", self.pool, 0)

    @cached_property
    def model(self) -> ScoreModel:
        """The score model."""
        model = ScoreModel.load(self.base)
        if model.spatial_dims != 2 or model.in_channels != 1:
            raise ValueError(f"{self.base}: supervised training needs an unconditional score model of slices")
        return model

    @cached_property
    def layout(self) -> ProjDataGeometry:
        """Layout of the projection data."""
        layout = read_projection_data_geometry(self.scanner)
        if layout.shape[0] != 1:
            raise ValueError(
                f"{self.scanner} has {layout.shape[0]} sinograms: a supervised training is for one slice, so give "
                "a template of one direct sinogram"
            )
        return layout

    def checked(self, recipe: Recipe) -> Recipe:
        """The recipe, with the schedule and what the network is told as the score model has them."""
        if recipe.architecture.in_channels != NUM_INPUTS or len(recipe.crops) != 1 or recipe.planes != (0,):
            raise ValueError(
                f"a supervised training needs in_channels = {NUM_INPUTS}, one crop and planes = [0]; found "
                f"{recipe.architecture.in_channels}, {list(recipe.crops)} and {list(recipe.planes)}"
            )
        return replace(
            recipe, schedule=self.model.schedule, prediction=self.model.prediction, time_input=self.model.time_input
        )

    def provenance(self) -> dict[str, Any]:
        """What decides the result beside recipe and volumes."""
        return {
            "base": {"name": str(self.base), "sha256": self.model.hash},
            "scanner": {"name": self.layout.scanner.name, "shape": list(self.layout.shape)},
            "scans": jsonable(asdict(self.scans)),
            "pool": self.pool,
        }

    def network(self, recipe: Recipe) -> nn.Module | None:
        """What is trained; None for a network of the recipe's architecture."""
        return None

    def loop(self, *arguments: Any) -> SupervisedLoop:
        """The loop around the training, of the arguments of `TrainingLoop`."""
        return SupervisedLoop(self, *arguments)

    def geometry(self, crop: int) -> ImageGeometry:
        """The image grid of a scan."""
        spacing = default_geometry(self.layout).voxel_size[0]
        return ImageGeometry((1, crop, crop), (spacing, *self.model.voxel_size[1:]))


class ScanStream(SliceStream):
    """Slices of emission and attenuation; water where there is activity of volumes that have no attenuation map."""

    def _channels(self, index: int) -> list[Tensor]:
        emission = self.file.volume(index)
        try:
            return [emission, self.file.volume(index, "mu")]
        except KeyError:
            return [emission, _WATER * (emission > _AIR)]


class SupervisedLoop(TrainingLoop):
    """A training loop whose examples come from simulated scans, validated by error against count level."""

    curves = Curves("prompts", "prompts", "score_model", "score model alone")

    def __init__(self, supervision: Supervision, *arguments: Any) -> None:
        self.supervision, state = supervision, arguments[0]
        self.base = supervision.model.network.to(state.device)
        self.simulator = ScanSimulator(
            supervision.geometry(state.recipe.crops[0]), supervision.layout, supervision.scans, state.device
        )
        self._views: dict[int, View] = {}
        self.faster = faster_precision(state.device) == "bfloat16"
        super().__init__(*arguments)

    def _example(self, step: int) -> Example:
        recipe, pool = self.recipe, self.supervision.pool
        numbers = range(step * recipe.batch_size + self.peers.rank, (step + 1) * recipe.batch_size, self.peers.world)
        rngs = [np.random.default_rng([31, recipe.seed, number]) for number in numbers]
        views = [self._kept(number % pool) if pool else self._view(number) for number in numbers]
        return self._shown(views, self.simulator.scans(*_images(views), rngs))

    def _kept(self, number: int) -> View:
        if number not in self._views:
            self._views[number] = self._view(number)
        return self._views[number]

    def _view(self, number: int) -> View:
        """A slice, its noise and what the score model makes of it: a pure function of its number."""
        recipe, attempt = self.recipe, 0
        images = self.source.batch(number, 1)[0]
        while _is_odd(images[0, :1], self.simulator.geometry) and attempt < _ATTEMPTS:
            attempt += 1
            images = self.source.batch(number + attempt * 2**32, 1)[0]
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + number)
        sigma = draw_noise_levels(replace(recipe, batch_size=1, accumulation=1), generator)
        factor = 0.85 + 0.3 * float(torch.rand(1, generator=generator))
        return self._seen(images[0], recipe.schedule.t_of_sigma(sigma), generator, factor)

    def _seen(self, images: Tensor, t: Tensor, generator: torch.Generator, factor: float = 1.0) -> View:
        """Emission ``[2, y, x]``, scaled to about 1, and attenuation, with noise, and the score model's clean image."""
        recipe, geometry = self.recipe, self.simulator.geometry
        emission, attenuation = images[:1].float().clamp(min=0), images[1:].float().clamp(min=0)
        truth = emission / (factor * intensity_scale(emission, geometry))
        gamma, nu = recipe.schedule.gamma(t), recipe.schedule.nu(t)
        u = gamma * truth + nu * torch.randn(truth.shape, generator=generator)
        cut, device = Window.around(truth[None], self.supervision.model.multiple), self.state.device
        told = network_time(recipe.time_input, recipe.schedule, t).to(device)
        seen, planes = cut(u[None]).to(device), torch.zeros(1, dtype=torch.long, device=device)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=self.faster):
            output = self.base(seen / torch.sqrt(gamma * gamma + nu * nu).to(device), told, class_labels=planes).float()
        v = denoised_and_noise(recipe.prediction, output, seen, float(gamma), float(nu))[0]
        return View(truth, attenuation, u, cut.back(v.cpu())[0], t)

    def _shown(self, views: Sequence[View], scans: Scans) -> Example:
        """Example, cut to the objects."""
        recipe, device = self.recipe, self.state.device
        parts = zip(*((view.truth, view.u, view.v, view.t[0]) for view in views), strict=True)
        truth, u, v, t = (torch.stack(part) for part in parts)
        cut = Window.around(truth, recipe.architecture.multiple)
        gamma, nu = (over_images(f(t), truth).to(device) for f in (recipe.schedule.gamma, recipe.schedule.nu))
        total = torch.sqrt(gamma * gamma + nu * nu)
        increment, counts = cut(scans.increment(v.to(device))), cut(scans.sensitivity)
        truth, u, v = (cut(images).to(device) for images in (truth, u, v))
        shown = inputs(u / total, v, increment, counts)[:, :, 0]
        shown = shown.contiguous(memory_format=memory_format(recipe.architecture))
        told = network_time(recipe.time_input, recipe.schedule, t).to(device)
        planes = torch.zeros(len(u), dtype=torch.long, device=device)
        return Example(shown.float(), told, planes, (v - truth) / correction_size(nu / gamma), None)

    @cached_property
    def _validation_examples(self) -> dict[float, Example]:
        """Slices of the validation volumes at the start of a chain, scanned at each count level."""
        low, high = np.log(self.supervision.scans.counts)
        t, generator = torch.tensor([float(self.recipe.schedule.t_max)]), torch.Generator().manual_seed(5)
        views = [self._seen(images, t, generator) for images in self._some_slices("validation")]
        found = {}
        for k, counts in enumerate(np.exp(np.linspace(low, high, _COUNT_LEVELS))):
            rngs = [np.random.default_rng([32, k, i]) for i in range(len(views))]
            scans = self.simulator.scans(*_images(views), rngs, float(counts))
            found[float(f"{counts:.2g}")] = self._shown(views, scans)
        return found

    def _errors(self, network: nn.Module | None) -> dict[float, float]:
        """Root mean squared error of a chain's first clean image, by prompts; the score model's without a network."""
        errors, schedule = {}, self.recipe.schedule
        factor = correction_size(schedule.sigma(float(schedule.t_max)))
        for counts, example in self._validation_examples.items():
            with torch.inference_mode():
                v, missing = example.images[:, 1:2], factor * example.target
                found = factor * network(example.images, example.time, class_labels=example.planes) if network else 0.0
                errors[counts] = float(((v - found).clamp(min=0) - (v - missing)).square().mean().sqrt())
        return errors

    def _some_slices(self, split: str) -> Tensor:
        file = VolumeFile(self.source.file.path, split)
        stream = ScanStream(file, self.source.crops, 0, planes=(0,), augmentation=_UNCHANGED)
        return stream.batch(0, _VALIDATION_SLICES)[0]

    def _validation_set(self) -> Any:
        splits = {info.split for info in VolumeFile(self.source.file.path).infos}
        return self if "validation" in splits else None

    def gaussian_errors(self) -> dict[float, float]:
        """What the curves are relative to: the error of the score model alone."""
        return self._errors(None)

    def network_errors(self, network: nn.Module, *_: Any) -> dict[float, float]:
        """Error of the first estimate of a chain against count level."""
        return self._errors(network)

    def _save_model(self, path: Path) -> None:
        recipe, supervision = self.recipe, self.supervision
        config = HTransformConfig(
            recipe.architecture, Path(supervision.base).stem, supervision.model.hash, self._counts,
            scanner=supervision.layout.scanner.name, voxel_size=self.simulator.geometry.voxel_size,
            tracer=recipe.tracer or self.source.file.tracer, licence=self._licence,
            training=self._provenance() | supervision.provenance(),
        )  # fmt: skip
        save_h_transform(path, self.state.average.module.state_dict(), config)

    @cached_property
    def _counts(self) -> tuple[float, float]:
        """Counts per voxel of the faintest and the strongest scans, the mean over some slices."""
        images, ends = self._some_slices("train"), []
        for counts in self.supervision.scans.counts:
            rngs = [np.random.default_rng([33, i]) for i in range(len(images))]
            truth = torch.stack([x[:1] / intensity_scale(x[:1], self.simulator.geometry) for x in images])
            scans = self.simulator.scans(truth, images[:, 1:], rngs, counts)
            ends.append(sum(map(counts_per_voxel, scans.sensitivity.cpu(), truth)) / len(truth))
        return ends[0], ends[1]

    def _draw_samples(self) -> None:
        raise ValueError("a supervised training draws no samples of the prior: leave --samples-every out")


_UNCHANGED = Augmentation(0.0, 0.0, 0.0, 0.0, 0.0, intensity=(1.0, 1.0), anatomy_intensity=(1.0, 1.0), shift=0.0)


def _is_odd(emission: Tensor, geometry: ImageGeometry) -> bool:
    """Whether a slice has little but a hot spot: what its intensity scale is hangs on chance."""
    return float(emission.max()) > _MOST_CONTRAST * intensity_scale(emission, geometry)


@dataclass(frozen=True)
class View:
    """A clean image ``[1, y, x]``, network units, its attenuation, the noisy one, the score model's ``v``, the time."""

    truth: Tensor
    attenuation: Tensor
    u: Tensor
    v: Tensor
    t: Tensor


def _images(views: Sequence[View]) -> tuple[Tensor, Tensor]:
    return torch.stack([o.truth for o in views]), torch.stack([o.attenuation for o in views])


@dataclass(frozen=True)
class Window:
    """Cuts images ``[B, 1, y, x]`` to windows of one size, each from its own first row and column."""

    full: tuple[int, int]
    size: tuple[int, int]
    places: tuple[tuple[int, int], ...]

    @classmethod
    def around(cls, images: Tensor, multiple: int) -> Window:
        """Around the objects, of a size that is a multiple."""
        full, size, firsts = images.shape[-2:], [], []
        emitting = images[:, 0] > _AIR
        for axis, length in enumerate(full):
            found = [image.any(1 - axis).nonzero() for image in emitting]
            ends = [(int(f.min()), int(f.max()) + 1) if len(f) else (0, length) for f in found]
            longest = max(high - low for low, high in ends) + 2 * _MARGIN
            size.append(min(-(-longest // multiple) * multiple, length))
            firsts.append([min(max((low + high - size[-1]) // 2, 0), length - size[-1]) for low, high in ends])
        return cls((full[0], full[1]), (size[0], size[1]), tuple(zip(*firsts, strict=True)))

    def __call__(self, images: Tensor) -> Tensor:
        """The windows."""
        return torch.stack([image[self._part(place)] for image, place in zip(images, self.places, strict=True)])

    def back(self, windows: Tensor) -> Tensor:
        """Images with the windows in their places, zero elsewhere."""
        images = windows.new_zeros((*windows.shape[:-2], *self.full))
        for k, (window, place) in enumerate(zip(windows, self.places, strict=True)):
            images[(k, *self._part(place))] = window
        return images

    def _part(self, place: tuple[int, int]) -> tuple[Any, slice, slice]:
        (y, x), (height, width) = place, self.size
        return ..., slice(y, y + height), slice(x, x + width)
