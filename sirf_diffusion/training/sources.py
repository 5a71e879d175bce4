"""Training images from a file of volumes: batches as functions of the step, and slices to validate on."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data.slice_stream import SliceStream
from .data.volume_file import VolumeFile
from .evaluation.validation import ValidationSet
from .recipes import Recipe

logger = logging.getLogger(__name__)

#: Volumes that are validated on, at most.
MAX_VALIDATION_VOLUMES = 8


class FileSource:
    """Volumes of a file that ``sirf-diffusion data build`` or ``data phantom`` made, all of them checked.

    Raises
    ------
    ValueError
        If the file cannot be used, or the recipe is conditional and the file has no anatomical images.
    """

    def __init__(self, path: str | os.PathLike[str], recipe: Recipe) -> None:
        self.path, self.recipe = Path(path), recipe
        self._file = VolumeFile(self.path, "train")
        self.voxel_size = self._file.voxel_size
        self.tracer = recipe.tracer or ", ".join(sorted({info.tracer for info in self._file.infos if info.tracer}))
        #: What the images are, for checkpoints and model files.
        self.provenance: dict[str, Any] = {"data": self._file.fingerprint}
        if recipe.conditional and not self._file.has_anatomy:
            raise ValueError(
                f"the network takes an anatomical image and {self.path} has none: build the file with --mr, or use "
                "in_channels = 1"
            )
        self._file.check_values("emission", *(["anatomy"] if recipe.conditional else []))
        self._stream = SliceStream(
            self._file, recipe.crops, recipe.seed,
            planes=recipe.planes, anatomy=recipe.conditional, augmentation=recipe.augmentation,
        )  # fmt: skip

    def batch(self, step: int, size: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        """Share of this process in a step's slices ``[n, 1 or 2, crop, crop]``, and their orientations ``[n]``.

        For a network of volumes: cubes, and zeros.
        """
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
    if split not in {info.split for info in VolumeFile(path).infos}:
        return None
    file = VolumeFile(path, split)
    chosen = np.unique(np.linspace(0, len(file) - 1, min(len(file), MAX_VALIDATION_VOLUMES)).round().astype(int))
    sets = []
    for k in chosen.tolist():
        anatomy = file.volume(k, "anatomy") if recipe.conditional and file.infos[k].has_anatomy else None
        sets.append(
            ValidationSet.from_volume(
                file.volume(k), recipe.schedule, anatomy=anatomy, conditional=recipe.conditional, planes=recipe.planes,
                multiple=recipe.architecture.multiple,
                cube=max(recipe.crops) if recipe.architecture.spatial_dims == 3 else None,
            )
        )  # fmt: skip
    slices, planes = ([item for one in sets for item in getattr(one, name)] for name in ("slices", "planes"))
    return ValidationSet(slices, planes, recipe.schedule)
