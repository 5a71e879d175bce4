"""What the values of a block name: a model with its anatomical image, an image on the grid of the estimate."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...geometry.exam import ORIENTATIONS, ROTATIONS, ExamInfo
from ...geometry.images import ImageGeometry
from ...models import ScoreModel
from ...models.conditioning import shown_image
from ...patient import AnatomicalImage


def model_of(values: Mapping[str, Any]) -> ScoreModel:
    """The model of a block, not bound to a grid, with its anatomical image (not yet resampled) and guidance weight."""
    return guided(ScoreModel.load(values["model filename"], values["device"], values["precision"]), values)


def guided(model: Any, values: Mapping[str, Any]) -> Any:
    """The model with the anatomical image and the weight of a block; a ValueError that names the image's key."""
    filename, weight = values["anatomical image filename"], values["guidance weight"]
    if not filename and not weight:
        return model
    try:
        return model.guided_by(AnatomicalImage.read(filename) if filename else None, weight)
    except ValueError as problem:
        raise ValueError(f"anatomical image filename := {filename}: {problem}") from problem


def lying(model: Any, orientation: int, rotation: int) -> Any:
    """The model, with its image of the patient placed as the data's patient lies, by the numbers of STIR's enums.

    An image in the scanner's coordinates stays as it is. ValueError for another position than head or feet first,
    supine or prone.
    """
    shown = shown_image(model._anatomical, model)
    if not isinstance(shown, AnatomicalImage):
        return model
    placed = copy.copy(model)
    placed._anatomical = shown.lying_as(exam_of(orientation, rotation))
    return placed


def exam_of(orientation: int, rotation: int) -> ExamInfo:
    """How a patient lies, by the numbers of STIR's enums."""
    return ExamInfo(orientation=ORIENTATIONS[orientation], rotation=ROTATIONS[rotation])


def image(key: str, filename: str, geometry: ImageGeometry) -> Tensor:
    """The image of a file ``.hv``; FileNotFoundError or ValueError unless it is there, on the grid of the estimate."""
    from ...files.interfile import read_image

    if not Path(filename).is_file():
        raise FileNotFoundError(f"{key} := {filename}: no such file")
    x, grid = read_image(filename)
    if not grid.is_near(geometry):
        raise ValueError(f"{key} := {filename} lies on another grid, {grid}: expected the estimate's, {geometry}")
    return torch.as_tensor(x, dtype=torch.float32)
