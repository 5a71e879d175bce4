"""Penalties on differences of neighbouring voxels, and the loop over pairs of neighbours that they share.

Each unordered pair is visited once, as two shifted views of the same image, so that edges are skipped rather than
wrapped and nothing is copied. On a CPU the volume is walked in blocks of planes whose temporaries stay in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ..geometry.images import ImageGeometry
from .base import Penalty

Neighbourhood = Literal["3x3x3", "transverse", "axial"]
Index = tuple[slice, slice, slice, slice]

BLOCK_VOXELS = {"cpu": 1 << 15}
DEFAULT_BLOCK_VOXELS = 1 << 26


class NeighbourPenalty(Penalty):
    """Base of penalties on differences of neighbours: their grid, neighbourhood and kappa image."""

    has_kappa = True

    def __init__(
        self,
        geometry: ImageGeometry | None,
        penalisation_factor: float,
        kappa: Tensor | None,
        neighbourhood: Neighbourhood,
    ) -> None:
        super().__init__(penalisation_factor)
        half_offsets(neighbourhood)  # refuses what is unknown
        self.neighbourhood = neighbourhood
        self.set_kappa(kappa)
        if geometry is not None:
            self.set_up(geometry)

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "neighbourhood": self.neighbourhood}

    def _prepare(self, geometry: ImageGeometry) -> None:
        self.pairs = NeighbourPairs(geometry, self.neighbourhood)

    def _images(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The images as a contiguous batch ``[n, z, y, x]``, and kappa of their kind."""
        self._check(x)
        return as_batch(x.detach()), None if self._kappa is None else self._kappa.to(x)


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


def _shifted(offset: int, size: int) -> tuple[slice, slice]:
    if offset >= 0:
        return slice(0, size - offset), slice(offset, size)
    return slice(-offset, size), slice(0, size + offset)
