"""Pairs of neighbouring voxels: the loop that all neighbourhood priors share.

Each unordered pair is visited once, as two shifted views of the same image, so that edges are skipped rather than
wrapped and nothing is copied. On a CPU the volume is walked in blocks of planes whose temporaries stay in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..geometry.images import ImageGeometry

Neighbourhood = Literal["3x3x3", "transverse", "axial"]
Index = tuple[slice, slice, slice, slice]

BLOCK_VOXELS = {"cpu": 1 << 15}
DEFAULT_BLOCK_VOXELS = 1 << 26


@dataclass(frozen=True)
class Pair:
    """Views of the voxels ``r`` and of their neighbours ``k = r + d`` in one block, with that direction's weight.

    ``direction`` is the position of ``d`` in `NeighbourPairs.offsets`.
    """

    here: Index
    there: Index
    weight: float
    direction: int


class NeighbourPairs:
    """All pairs of neighbours of a grid, each once, with STIR's weights ``dx / |d|``.

    Parameters
    ----------
    geometry
        Image grid.
    neighbourhood
        ``"3x3x3"`` (26 neighbours), ``"transverse"`` (the 8 in the same plane, STIR's ``only 2D``) or ``"axial"``
        (the 2 in the planes above and below).

    Raises
    ------
    ValueError
        If the neighbourhood is unknown.
    """

    def __init__(self, geometry: ImageGeometry, neighbourhood: Neighbourhood = "3x3x3") -> None:
        self.geometry = geometry
        self.neighbourhood = neighbourhood
        dz, dy, dx = geometry.voxel_size
        self.offsets = [
            ((z, y, x), dx / math.sqrt((z * dz) ** 2 + (y * dy) ** 2 + (x * dx) ** 2))
            for z, y, x in half_offsets(neighbourhood)
        ]

    def check(self, x: Tensor, name: str = "image") -> None:
        """Raise ``ValueError`` if an image is not on this grid."""
        if tuple(x.shape[-3:]) != self.geometry.shape:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}, expected [..., z, y, x] on a grid of {self.geometry.shape}"
            )

    def over(self, x: Tensor) -> Iterator[Pair]:
        """Pairs of an image ``[n, z, y, x]``, block by block."""
        budget = BLOCK_VOXELS.get(x.device.type, DEFAULT_BLOCK_VOXELS)
        number, planes, rows, columns = x.shape
        per_block = max(1, budget // (rows * columns))
        images_per_block = max(1, per_block // planes)
        for first in range(0, number, images_per_block):
            images = slice(first, first + images_per_block)
            for plane in range(0, planes, per_block):
                last = min(plane + per_block, planes)
                for direction, ((z, y, x_), weight) in enumerate(self.offsets):
                    here_z = slice(plane, min(last, planes - z))
                    if here_z.stop <= here_z.start or abs(y) >= rows or abs(x_) >= columns:
                        continue
                    there_z = slice(here_z.start + z, here_z.stop + z)
                    here_y, there_y = _shifted(y, rows)
                    here_x, there_x = _shifted(x_, columns)
                    here, there = (images, here_z, here_y, here_x), (images, there_z, there_y, there_x)
                    yield Pair(here, there, weight, direction)


def half_offsets(neighbourhood: Neighbourhood) -> list[tuple[int, int, int]]:
    """One offset ``(z, y, x)`` of each opposite pair of directions."""
    steps = (-1, 0, 1)
    offsets = [(z, y, x) for z in (0, 1) for y in steps for x in steps if (z, y, x) > (0, 0, 0)]
    if neighbourhood == "3x3x3":
        return offsets
    if neighbourhood == "transverse":
        return [offset for offset in offsets if offset[0] == 0]
    if neighbourhood == "axial":
        return [(1, 0, 0)]
    raise ValueError(f"neighbourhood must be '3x3x3', 'transverse' or 'axial', found {neighbourhood!r}")


def as_batch(x: Tensor) -> Tensor:
    """``[..., z, y, x]`` as ``[n, z, y, x]``, contiguous."""
    return x.reshape(-1, *x.shape[-3:]).contiguous()


def checked_kappa(pairs: NeighbourPairs, kappa: Tensor | None) -> Tensor | None:
    """A kappa image as ``[1, z, y, x]`` after checking its grid and values."""
    if kappa is None:
        return None
    if tuple(kappa.shape) != pairs.geometry.shape:
        raise ValueError(f"kappa has shape {tuple(kappa.shape)}, expected {pairs.geometry.shape} (z, y, x)")
    if not bool(torch.isfinite(kappa).all()):
        raise ValueError("kappa holds NaN or infinite values")
    return kappa.detach()[None].clone()


def _shifted(offset: int, size: int) -> tuple[slice, slice]:
    if offset >= 0:
        return slice(0, size - offset), slice(offset, size)
    return slice(-offset, size), slice(0, size + offset)
