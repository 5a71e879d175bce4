"""Where training images come from: the simulator, or a user's HDF5 file. Both give batches as functions of the step."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .dataset import SIMULATION_VERSION, VOXEL_SIZE, SliceSampler, build_dataset
from .evaluation.validation import ValidationSet
from .recipes import Recipe

logger = logging.getLogger(__name__)

#: Volumes that are validated on, at most, and slices of each orientation in each.
MAX_VALIDATION_VOLUMES = 8


class Source(Protocol):
    """Training images."""

    voxel_size: tuple[float, float, float]
    tracer: str
    #: What the images are, for checkpoints and model files: anything that JSON can hold.
    provenance: dict[str, Any]

    def batch(self, step: int, size: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
        """Share of this process in a step's slices ``[n, 1 or 2, crop, crop]``, and their orientations ``[n]``.

        For a network of volumes: cubes, and zeros.
        """

    def validation(self) -> ValidationSet | None:
        """Slices of subjects that are not trained on; None if there are none."""


class SimulatedSource:
    """Simulated subjects of a recipe, kept in ``training.h5`` and ``validation.h5`` of the work folder."""

    voxel_size = (VOXEL_SIZE,) * 3

    def __init__(self, recipe: Recipe, work: Path) -> None:
        self.recipe, self.work, self.tracer = recipe, work, recipe.tracer
        self.provenance = {"simulation_version": SIMULATION_VERSION}
        self._sampler = SliceSampler(
            self._volumes("training", recipe.subjects, recipe.contrasts), recipe.crops, recipe.seed
        )

    def batch(self, step: int, size: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        """Every ``world``-th slice of the step's."""
        images, planes = self._sampler.batch(step, size)
        return images[rank::world], planes[rank::world]

    def validation(self) -> ValidationSet:
        """Slices of the validation subjects."""
        volumes = self._volumes("validation", self.recipe.validation_subjects, 1)
        return ValidationSet.from_volumes(volumes, self.recipe.schedule)

    def _volumes(self, name: str, subjects: tuple[int, ...], contrasts: int) -> Tensor:
        import h5py

        path = self.work / f"{name}.h5"
        build_dataset(path, subjects, contrasts)
        with h5py.File(path) as file:
            return torch.from_numpy(file["activity"][:]).flatten(0, 1)


class FileSource:
    """Volumes of a file that ``sirf-diffusion data build`` or ``data phantom`` made.

    Raises
    ------
    ValueError
        If the recipe is conditional and the file has no anatomical images.
    """

    def __init__(self, path: str | os.PathLike[str], recipe: Recipe) -> None:
        from .data.slice_stream import SliceStream
        from .data.volume_file import VolumeFile

        self.path, self.recipe = Path(path), recipe
        self._file = VolumeFile(self.path, "train")
        self.voxel_size = tuple(float(v) for v in self._file.voxel_size)
        tracers = sorted({info.tracer for info in self._file.infos if info.tracer})
        self.tracer = recipe.tracer or ", ".join(tracers)
        self.provenance = {"data": self._file.fingerprint}
        if recipe.conditional and not self._file.has_anatomy:
            raise ValueError(
                f"the network takes an anatomical image and {self.path} has none: build the file with --mr, or use "
                "in_channels = 1"
            )
        self._stream = SliceStream(
            self._file, recipe.crops, recipe.seed,
            planes=recipe.planes, anatomy=recipe.conditional, augmentation=recipe.augmentation,
        )  # fmt: skip

    def batch(self, step: int, size: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        """Every ``world``-th slice, or cube, of the step's."""
        if self.recipe.architecture.spatial_dims == 3:
            cubes = self._stream.cubes(step, size, rank, world)
            return cubes, torch.zeros(len(cubes), dtype=torch.long)
        return self._stream.batch(step, size, rank, world)

    def validation(self) -> ValidationSet | None:
        """Slices, or cubes, of the file's validation subjects; without any, one warning and no validation."""
        found = validation_set(self.path, self.recipe)
        if found is None:
            logger.warning("%s has no validation subjects: the training is not validated", self.path)
        return found


def validation_set(path: str | os.PathLike[str], recipe: Recipe, split: str = "validation") -> ValidationSet | None:
    """Equidistant slices, or cubes, of some volumes of a split; None if it has no volumes."""
    from .data.volume_file import VolumeFile

    if split not in {info.split for info in VolumeFile(path).infos}:
        return None
    file = VolumeFile(path, split)
    chosen = np.unique(np.linspace(0, len(file) - 1, min(len(file), MAX_VALIDATION_VOLUMES)).round().astype(int))
    sets = []
    for k in (int(k) for k in chosen):
        anatomy = file.volume(k, "anatomy") if recipe.conditional and file.infos[k].has_anatomy else None
        sets.append(
            ValidationSet.from_volumes(
                file.volume(k, "emission")[None], recipe.schedule,
                anatomies=None if anatomy is None else anatomy[None], conditional=recipe.conditional,
                planes=recipe.planes, multiple=recipe.architecture.multiple,
                cube=max(recipe.crops) if recipe.architecture.spatial_dims == 3 else None,
            )
        )  # fmt: skip
    slices, planes = ([item for one in sets for item in getattr(one, name)] for name in ("slices", "planes"))
    return ValidationSet(slices, planes, recipe.schedule)
