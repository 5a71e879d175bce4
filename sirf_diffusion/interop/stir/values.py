"""Values of the keys in this project's blocks: from a parameter file's text to numbers and images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...geometry.images import ImageGeometry
from ...models import ScoreModel
from ...models.grid import PLANES as MODEL_PLANES
from ...patient import AnatomicalImage

PLANES = ("auto", *MODEL_PLANES)


def real(key: str, text: str, minimum: float = 0.0) -> float:
    """A finite number of at least ``minimum``.

    Raises
    ------
    ValueError
        For anything else.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= minimum):
        raise ValueError(f"{key} := {text}: expected a number of at least {minimum:g}")
    return value


def count(key: str, text: str, minimum: int = 0) -> int:
    """A whole number of at least ``minimum``."""
    value = real(key, text, minimum)
    if value != int(value):
        raise ValueError(f"{key} := {text}: expected a whole number")
    return int(value)


def reals(key: str, text: str) -> list[float]:
    """One positive number, or a list ``{a, b, c}`` of them."""
    inner = text.strip()
    if inner.startswith("{") != inner.endswith("}"):
        raise ValueError(f"{key} := {text}: a list is written {{a, b, c}}")
    numbers = [real(key, part.strip()) for part in inner.strip("{}").split(",")]
    return numbers


def planes(text: str) -> str | None:
    """As for `ScoreModel.on`; None for ``auto``: as the network and the image ask for."""
    if text not in PLANES:
        raise ValueError(f"planes := {text}: expected one of {', '.join(PLANES)}")
    return None if text == "auto" else text


def guided(model: ScoreModel, options: Mapping[str, str]) -> ScoreModel:
    """The model with the block's anatomical image, read but not yet resampled, and guidance weight.

    Raises
    ------
    ValueError
        If the image cannot be used, the weight is out of range, or the model takes no anatomical image.
    """
    filename = options["anatomical image filename"]
    weight = real("guidance weight", options["guidance weight"], minimum=-1.0)
    if not filename and not weight:
        return model
    try:
        return model.guided_by(AnatomicalImage.read(filename) if filename else None, weight)
    except ValueError as problem:
        raise ValueError(f"anatomical image filename := {filename}: {problem}") from problem


def image(key: str, filename: str, geometry: ImageGeometry) -> Tensor:
    """The image of a file ``.hv``, which must have the shape and voxel size of the estimate.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is on another grid.
    """
    from ...files.interfile import read_image

    if not Path(filename).is_file():
        raise FileNotFoundError(f"{key} := {filename}: no such file")
    x, grid = read_image(filename)
    sizes = zip(grid.voxel_size, geometry.voxel_size, strict=True)
    if grid.shape != geometry.shape or any(abs(a - b) > 1e-3 * b for a, b in sizes):
        raise ValueError(
            f"{key} := {filename}: {grid.shape} voxels of {grid.voxel_size} mm, expected those of the estimate, "
            f"{geometry.shape} of {geometry.voxel_size} mm"
        )
    return torch.as_tensor(x, dtype=torch.float32)
