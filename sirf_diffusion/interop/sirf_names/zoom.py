"""STIR's zooming of images: values as a step function, whose integrals over the new voxels are taken."""

from __future__ import annotations

import torch
from torch import Tensor

from ...geometry.images import ImageGeometry
from .containers import error

_SCALED_AXES = {"preserve_sum": (), "preserve_projections": (0, 1), "preserve_values": (0, 1, 2)}


def zoomed(image: Tensor, before: ImageGeometry, after: ImageGeometry, scaling: str) -> Tensor:
    """An image ``[z, y, x]`` on another grid."""
    if scaling not in _SCALED_AXES:
        raise error(f"scaling must be one of {', '.join(_SCALED_AXES)}, found {scaling!r}")
    result = image.double()
    for axis in range(3):
        old, new = (_edges(grid, axis) for grid in (before, after))
        overlap = torch.minimum(new[1:, None], old[1:]) - torch.maximum(new[:-1, None], old[:-1])
        zoom = before.voxel_size[axis] / after.voxel_size[axis] if axis in _SCALED_AXES[scaling] else 1.0
        weights = overlap.clamp_min(0) * (zoom / before.voxel_size[axis])
        result = (result.movedim(axis, -1) @ weights.T).movedim(-1, axis)
    return result.float()


def grid_after_zoom(
    grid: ImageGeometry,
    zooms: tuple[float, float, float],
    offsets_in_mm: tuple[float, float, float],
    size: tuple[int, int, int],
) -> ImageGeometry:
    """The grid of ``size`` voxels (-1 for as many as before), smaller by ``zooms``, whose middle is moved."""
    if not all(isinstance(value, tuple) and len(value) == 3 for value in (zooms, offsets_in_mm, size)):
        raise error(f"zooms, offsets and size must be tuples (z, y, x), found {zooms!r}, {offsets_in_mm!r}, {size!r}")
    shape = tuple(old if new <= 0 else int(new) for old, new in zip(grid.shape, size, strict=True))
    voxel_size = tuple(old / zoom for old, zoom in zip(grid.voxel_size, zooms, strict=True))
    centred = ImageGeometry(shape, voxel_size)  # type: ignore[arg-type]
    origin = [offset + _middle(grid, axis) - _middle(centred, axis) for axis, offset in enumerate(offsets_in_mm)]
    return ImageGeometry(shape, voxel_size, tuple(origin))  # type: ignore[arg-type]


def _edges(grid: ImageGeometry, axis: int) -> Tensor:
    """Positions in mm of the edges of the voxels along an axis; STIR counts planes from 0, rows from ``-n // 2``."""
    first = 0 if axis == 0 else -(grid.shape[axis] // 2)
    index = torch.arange(grid.shape[axis] + 1, dtype=torch.float64) + first - 0.5
    return index * grid.voxel_size[axis] + grid.origin[axis]


def _middle(grid: ImageGeometry, axis: int) -> float:
    edges = _edges(grid, axis)
    return float(edges[0] + edges[-1]) / 2
