"""What a recipe takes from a file of volumes: a stream to train on, and slices or cubes to validate on."""

from __future__ import annotations

import os

import numpy as np

from .data.slice_stream import SliceStream
from .data.volume_file import VolumeFile
from .evaluation.validation import ValidationSet
from .recipes import Recipe

#: Volumes that are validated on, at most.
MAX_VALIDATION_VOLUMES = 8


def training_stream(path: str | os.PathLike[str], recipe: Recipe) -> SliceStream:
    """Training volumes of a file that ``sirf-diffusion data`` made, all of them checked.

    Raises
    ------
    ValueError
        If the file cannot be used, or the recipe is conditional and the file has no anatomical images.
    """
    file = VolumeFile(path, "train")
    stream = SliceStream(
        file, recipe.crops, recipe.seed, planes=recipe.planes, anatomy=recipe.conditional,
        augmentation=recipe.augmentation, cubes=recipe.architecture.spatial_dims == 3,
    )  # fmt: skip
    file.check_values("emission", *(["anatomy"] if recipe.conditional else []))
    return stream


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
