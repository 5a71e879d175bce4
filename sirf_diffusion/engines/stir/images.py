"""Images of STIR-Python as tensors and grids; whether an objective function is set up and may be asked for one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...geometry.images import ImageGeometry
from ..stderr import silent_stderr


def geometry_of(image: Any) -> ImageGeometry:
    """Grid of a STIR image; TypeError if it is no image on a Cartesian grid."""
    try:
        voxel_size, origin, first = (
            tuple(coordinate[k] for k in (1, 2, 3))
            for coordinate in (image.get_grid_spacing(), image.get_origin(), image.get_min_indices())
        )
        shape = tuple(image.shape())
    except AttributeError as problem:
        raise TypeError(f"expected STIR's FloatVoxelsOnCartesianGrid, found {type(image).__name__}") from problem
    # ImageGeometry counts planes from 0 and rows and columns from -(n // 2); STIR's images usually do too.
    usual = (0, -(shape[1] // 2), -(shape[2] // 2))
    shifted = tuple(o + (f - u) * d for o, f, u, d in zip(origin, first, usual, voxel_size, strict=True))
    return ImageGeometry(shape, voxel_size, shifted)


def tensor_of(image: Any) -> Tensor:
    """Values of a STIR image as a tensor ``[z, y, x]`` with memory of its own."""
    return torch.from_numpy(image.as_array().astype(np.float32, copy=False))


def is_set_up(obj: Any) -> bool:
    """Whether ``set_up`` was called on an objective function of STIR-Python, and nothing that undoes it since.

    Asks for a subset that there cannot be: STIR complains of the missing ``set_up`` first, and computes nothing.
    Getting a sensitivity that is not there would end the process.
    """
    import stir

    image = stir.FloatVoxelsOnCartesianGrid()
    with silent_stderr():
        try:
            obj.compute_sub_gradient(image, image, -1)
        except RuntimeError as problem:
            return "set_up" not in str(problem)
    raise RuntimeError(f"{type(obj).__name__} took -1 for a subset: this version of STIR is not known")
