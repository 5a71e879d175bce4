"""Supervised training: an h-transform learns to use the data of scans that are simulated as it goes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property, partial
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
    INCREMENTS,
    NUM_INPUTS,
    HTransform,
    HTransformConfig,
    correction_size,
    counts_per_voxel,
    inputs,
    num_inputs,
    save_h_transform,
)
from ..models.intensity import intensity_scale
from ..models.networks import NetworkConfig, build_network, memory_format, network_time
from ..models.schedules import denoised_and_noise
from ..models.score_model import ScoreModel
from .corruption import Example, draw_noise_levels, over_images
from .data.augmentation import Augmentation
from .data.scan_stream import ScanStream
from .data.scans import ScanOptions, ScanSimulator
from .data.volume_file import VolumeFile
from .log import Curves
from .loop import TrainingLoop
from .recipes import Recipe
from .views import AIR, View, Window, check_pixels, ordinary, scanned

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
#: Updates of ordered subsets between the increments of volumes.
_UPDATES = 7
#: The same for volumes: the slices of a step are of one volume.
VOLUMES = replace(SLICES, name="deft-3d", architecture=replace(SLICES.architecture, in_channels=num_inputs(True)))
#: Of so many volumes, the score model looks at one in all orientations, as a chain does at its last noise level.
_ALL_ORIENTATIONS = 4
_COUNT_LEVELS, _VALIDATION_SLICES, _VALIDATION_VOLUMES = 5, 12, 3


@dataclass(frozen=True)
class Supervision:
    """What a supervised training has beside its recipe.

    Parameters
    ----------
    base
        Score model that is steered, a bundled name or a file.
    scanner
        Header of projection data (``.hs``), whose layout all scans have: one direct sinogram for slices, more for
        volumes.
    scans
        What is drawn of each scan.
    pool
        Slices, or volumes, with their noise that come again and again, each time with another scan: the score model is
        asked once about each, and half of the time is saved, or more. They stay in memory. 0: all are new.
    start
        H-transform to start from, a bundled name or a file; it decides the network but for the orientations.
    """

    base: str
    scanner: str | os.PathLike[str]
    scans: ScanOptions = field(default_factory=ScanOptions)
    pool: int = 0
    start: str = ""

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
        return read_projection_data_geometry(self.scanner)

    @property
    def planes(self) -> int:
        """Planes of an image: 1 for slices."""
        return default_geometry(self.layout).shape[0]

    @property
    def recipe(self) -> Recipe:
        """What to train by if nothing else is said."""
        return SLICES if self.planes == 1 else VOLUMES

    @cached_property
    def _beginning(self) -> HTransform | None:
        return HTransform.load(self.start, self.model) if self.start else None

    def checked(self, recipe: Recipe) -> Recipe:
        """The recipe, with the schedule and what the network is told as the score model has them."""
        needs, found = self.recipe.architecture.in_channels, recipe.architecture.in_channels
        if found != needs or len(recipe.crops) != 1 or recipe.planes != (0,):
            raise ValueError(
                f"{self.scanner}: a supervised training needs in_channels = {needs}, one crop and planes = [0], found "
                f"{found}, {list(recipe.crops)} and {list(recipe.planes)}"
            )
        if self._beginning is not None:
            begun, wanted = self._beginning.config.architecture, recipe.architecture
            known = replace(begun, in_channels=wanted.in_channels)
            if begun.in_channels > wanted.in_channels or wanted not in (self.recipe.architecture, known):
                raise ValueError(f"{self.start} cannot start this network ([network], slices or volumes): {begun}")
            recipe = replace(recipe, architecture=known)
        return replace(
            recipe, schedule=self.model.schedule, prediction=self.model.prediction, time_input=self.model.time_input
        )

    def provenance(self) -> dict[str, Any]:
        """What decides the result beside recipe and volumes."""
        return {
            "base": {"name": str(self.base), "sha256": self.model.hash},
            "scanner": {"name": self.layout.scanner.name, "layout": repr(self.layout)},
            "scans": jsonable(asdict(self.scans)),
            "pool": self.pool,
        } | ({"start": {"name": self.start, "sha256": self._beginning.sha256}} if self._beginning else {})

    def network(self, recipe: Recipe) -> nn.Module | None:
        """What is trained; None for an untrained network of the recipe's architecture."""
        if self._beginning is None:
            return None
        network, known = build_network(recipe.architecture, seed=recipe.seed), self._beginning.network.state_dict()
        weights = network.state_dict()
        for name, value in weights.items():  # images that it was not shown have no effect at first
            value.zero_()[tuple(map(slice, known[name].shape))] = known[name]
        network.load_state_dict(weights)
        return network

    @property
    def stream(self) -> Callable[..., ScanStream]:
        """What makes the images that are scanned, called as `SliceStream` is."""
        spacing = default_geometry(self.layout).voxel_size[0]
        return ScanStream if self.planes == 1 else partial(ScanStream, depth=self.planes, spacing=spacing)

    def loop(self, *arguments: Any) -> SupervisedLoop:
        """The loop around the training, of the arguments of `TrainingLoop`."""
        return SupervisedLoop(self, *arguments)

    def geometry(self, crop: int) -> ImageGeometry:
        """The image grid of a scan."""
        spacing = default_geometry(self.layout).voxel_size[0]
        return ImageGeometry((self.planes, crop, crop), (spacing, *self.model.voxel_size[1:]))


class SupervisedLoop(TrainingLoop):
    """A training loop whose examples come from simulated scans, validated by error against count level."""

    curves = Curves("prompts", "prompts", "score_model", "score model alone")
    draws_samples = False

    def __init__(self, supervision: Supervision, *arguments: Any) -> None:
        self.supervision, state = supervision, arguments[0]
        self.volumes, geometry = supervision.planes > 1, supervision.geometry(state.recipe.crops[0])
        check_pixels(arguments[1].file, geometry)
        supervision.model.network.to(state.device)
        #: The score model on the grid of the scans.
        self.base = supervision.model.on(geometry, 1.0, "alternating" if self.volumes else "transverse")
        self.base.precision = faster_precision(state.device)
        self.simulator = ScanSimulator(geometry, supervision.layout, supervision.scans, state.device)
        self.num_updates = _UPDATES if self.volumes else 0
        self._kept = cache(self._view)
        super().__init__(*arguments)

    @property
    def _inherited(self) -> dict[str, Any]:
        begun = self.supervision._beginning
        return {} if begun is None else {"tracer": begun.config.tracer, "licence": begun.config.licence}

    def _example(self, step: int) -> Example:
        recipe, pool, peers = self.recipe, self.supervision.pool, self.peers
        first, chosen = step * recipe.batch_size, None
        numbers = [*range(first + peers.rank, first + recipe.batch_size, peers.world)]
        if self.volumes:  # processes share the slices of one
            numbers, chosen = [step], np.random.default_rng([34, recipe.seed, step])
        rngs = [np.random.default_rng([31, recipe.seed, number]) for number in numbers]
        views = [self._kept(number % pool) if pool else self._view(number) for number in numbers]
        return self._shown(views, self.simulator.scans(*scanned(views), rngs), chosen)

    def _view(self, number: int) -> View:
        """An image, its noise and what the score model makes of it: a pure function of its number."""
        recipe, images = self.recipe, self._ordinary(self.source, number)
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + number)
        sigma = draw_noise_levels(replace(recipe, batch_size=1, accumulation=1), generator)
        factor = 0.85 + 0.3 * float(torch.rand(1, generator=generator))
        turn = number % 3 if number % _ALL_ORIENTATIONS else None
        return self._seen(images, recipe.schedule.t_of_sigma(sigma), generator, factor, turn)

    def _drawn(self, source: Any, step: int, number: int = 1) -> Tensor:
        """Emission and attenuation ``[number, 2, z, y, x]``."""
        return source.batch(step, number)[0].reshape(number, 2, *self.simulator.geometry.shape)

    def _ordinary(self, source: Any, number: int) -> Tensor:
        """The image of a number, or the first of others that is not odd."""
        return ordinary(lambda attempt: self._drawn(source, number + attempt * 2**32)[0], self.simulator.geometry)

    def _seen(
        self, images: Tensor, t: Tensor, generator: torch.Generator, factor: float = 1.0, turn: int | None = None
    ) -> View:
        """Emission (and attenuation, ``[2, z, y, x]``) scaled to about 1, with noise, and the score model's image.

        ``turn`` is as of `ScoreModel.predict`.
        """
        recipe, base, (emission, attenuation) = self.recipe, self.base, images.float().clamp(min=0)
        truth = emission / (factor * intensity_scale(emission, self.simulator.geometry))
        gamma, nu, clean = recipe.schedule.gamma(t), recipe.schedule.nu(t), base.to_latent(truth).cpu()
        u = gamma * clean + nu * torch.randn(clean.shape, generator=generator)
        cut = Window.around(clean[None], base.multiple)
        told, seen = float(network_time(recipe.time_input, recipe.schedule, t)), cut(u[None]).to(self.state.device)
        shown = (seen / torch.sqrt(gamma * gamma + nu * nu).to(seen))[:, None]
        output = base.seen_by(base.network, base.architecture, shown, told, turn)
        v = denoised_and_noise(recipe.prediction, output, seen, float(gamma), float(nu))[0]
        return View(truth, attenuation, u, cut.back(v.cpu())[0], t)

    def _shown(self, views: Sequence[View], scans: Scans, chosen: np.random.Generator | None = None) -> Example:
        """Example of views, cut to the objects: all their slices, or a choice of active ones."""
        recipe, device, base = self.recipe, self.state.device, self.base
        parts = zip(*((view.truth, view.u, view.v, view.t[0]) for view in views), strict=True)
        truth, u, v, t = (torch.stack(part) for part in parts)
        truth, v = base.to_latent(truth), v.to(device)
        cut = Window.around(truth, recipe.architecture.multiple)
        gamma, nu = (over_images(f(t), truth).to(device) for f in (recipe.schedule.gamma, recipe.schedule.nu))
        increments = [cut(base.to_latent(x)) for x in scans.increments(base.to_image(v), self.num_updates, INCREMENTS)]
        counts = cut(HTransform.counts(base, scans.sensitivity))
        truth, u, v = cut(truth), cut(u).to(device), cut(v)
        shown = inputs(u / torch.sqrt(gamma * gamma + nu * nu), v, increments, counts)
        # The slices of all views after each other.
        shown, target, truth = (
            x.movedim(-3, 1).flatten(0, 1) for x in (shown, (v - truth) / correction_size(nu / gamma), truth)
        )
        told = network_time(recipe.time_input, recipe.schedule, t).to(device).repeat_interleave(len(shown) // len(t))
        planes = torch.zeros(len(shown), dtype=torch.long, device=device)
        rows: Any = slice(None)
        if chosen is not None:
            active = (truth.flatten(1).amax(1) > AIR).nonzero()[:, 0].tolist() or range(len(truth))
            rows = chosen.choice(active, recipe.batch_size, replace=len(active) < recipe.batch_size)
            rows = rows[self.peers.rank :: self.peers.world]
        shown = shown[rows].float().contiguous(memory_format=memory_format(recipe.architecture))
        return Example(shown, told[rows], planes[rows], target[rows, None], None)

    @cached_property
    def _validation_examples(self) -> dict[float, list[Example]]:
        """Images of the validation subjects at the start of a chain, scanned at each count level."""
        low, high = np.log(self.supervision.scans.counts)
        t, generator = torch.tensor([float(self.recipe.schedule.t_max)]), torch.Generator().manual_seed(5)
        images = self._some("validation")
        views = [self._seen(x, t, generator, 1.0, k % 3) for k, x in enumerate(images)]
        groups = [[k] for k in range(len(views))] if self.volumes else [list(range(len(views)))]
        found: dict[float, list[Example]] = {}
        for k, counts in enumerate(np.exp(np.linspace(low, high, _COUNT_LEVELS))):
            examples = found[float(f"{counts:.2g}")] = []
            for group in groups:
                rngs, some = [np.random.default_rng([32, k, i]) for i in group], [views[i] for i in group]
                scans = self.simulator.scans(*scanned(some), rngs, float(counts))
                examples.append(self._shown(some, scans, np.random.default_rng(group) if self.volumes else None))
        return found

    def _errors(self, network: nn.Module | None) -> dict[float, float]:
        """Root mean squared error of a chain's first clean image, by prompts; the score model's without a network."""
        errors, schedule = {}, self.recipe.schedule
        factor = correction_size(schedule.sigma(float(schedule.t_max)))
        for counts, examples in self._validation_examples.items():
            squares = []
            for example in examples:
                with torch.inference_mode():
                    v, missing = example.images[:, 1:2], factor * example.target
                    found = factor * example.predicted_by(network) if network else 0.0
                    squares.append(((v - found).clamp(min=0) - (v - missing)).square().mean())
            errors[counts] = float(torch.stack(squares).mean().sqrt())
        return errors

    def _some(self, split: str) -> Tensor:
        file = VolumeFile(self.source.file.path, split)
        stream = self.supervision.stream(file, self.source.crops, 0, planes=(0,), augmentation=_UNCHANGED)
        images = self._drawn(stream, 0, _VALIDATION_VOLUMES if self.volumes else _VALIDATION_SLICES)
        for k, image in enumerate(images):
            if not bool(image[0].any()):
                images[k] = self._ordinary(stream, k + 1)
        return images

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
        recipe, supervision, geometry = self.recipe, self.supervision, self.simulator.geometry
        config = HTransformConfig(
            recipe.architecture, Path(supervision.base).stem, supervision.model.hash, self._counts,
            geometry.shape[0], geometry.voxel_size, supervision.layout.scanner.name,
            tracer=self._tracer, licence=self._licence,
            training=self._provenance() | supervision.provenance(), num_updates=self.num_updates,
        )  # fmt: skip
        save_h_transform(path, self.state.average.module.state_dict(), config)

    @cached_property
    def _counts(self) -> tuple[float, float]:
        """Counts per voxel of the faintest and the strongest scans, the mean over some images."""
        images, ends = self._some("train"), []
        for counts in self.supervision.scans.counts:
            rngs = [np.random.default_rng([33, i]) for i in range(len(images))]
            truth = torch.stack([x[0] / intensity_scale(x[0], self.simulator.geometry) for x in images])
            scans = self.simulator.scans(truth, images[:, 1], rngs, counts)
            seen = HTransform.counts(self.base, scans.sensitivity).cpu()
            ends.append(sum(map(counts_per_voxel, seen, self.base.to_latent(truth).cpu())) / len(truth))
        return ends[0], ends[1]


_UNCHANGED = Augmentation(0.0, 0.0, 0.0, 0.0, 0.0, intensity=(1.0, 1.0), anatomy_intensity=(1.0, 1.0), shift=0.0)
