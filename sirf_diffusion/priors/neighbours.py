"""Penalties on differences of neighbouring voxels, and the loop over pairs of neighbours that they share.

Each unordered pair is visited once, as two shifted views of the same image, so that edges are skipped rather than
wrapped and nothing is copied. On a CPU the volume is walked in blocks of planes whose temporaries stay in the cache.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ..geometry.images import ImageGeometry
from .base import Penalty

Neighbourhood = Literal["3x3x3", "transverse", "axial"]
Index = tuple[slice, slice, slice, slice]

BLOCK_VOXELS = {"cpu": 1 << 15}
DEFAULT_BLOCK_VOXELS = 1 << 26


@dataclass(frozen=True)
class Pair:
    """Views of the voxels ``r`` and of their neighbours ``k = r + d`` in one block, with that direction's weight.

    ``direction`` is the position of ``d`` in `NeighbourPenalty.offsets`.
    """

    here: Index
    there: Index
    weight: float
    direction: int


class NeighbourPenalty(Penalty):
    """Base of penalties on differences of neighbours: all pairs of a grid, each once, with STIR's weights ``dx / |d|``.

    ``neighbourhood`` is ``"3x3x3"`` (26 neighbours), ``"transverse"`` (the 8 in the same plane, STIR's ``only 2D``) or
    ``"axial"`` (the 2 in the planes above and below).
    """

    has_kappa = True

    def __init__(
        self,
        geometry: ImageGeometry | None,
        penalisation_factor: float,
        kappa: Tensor | None,
        neighbourhood: Neighbourhood,
    ) -> None:
        super().__init__(penalisation_factor)
        if neighbourhood not in _IN_NEIGHBOURHOOD:
            raise ValueError(f"neighbourhood must be '3x3x3', 'transverse' or 'axial', found {neighbourhood!r}")
        self.neighbourhood = neighbourhood
        self.set_kappa(kappa)
        if geometry is not None:
            self.set_up(geometry)

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "neighbourhood": self.neighbourhood}

    def _prepare(self, geometry: ImageGeometry) -> None:
        dz, dy, dx = geometry.voxel_size
        self.offsets = [
            ((z, y, x), dx / math.sqrt((z * dz) ** 2 + (y * dy) ** 2 + (x * dx) ** 2))
            for z, y, x in itertools.product((0, 1), (-1, 0, 1), (-1, 0, 1))
            if (z, y, x) > (0, 0, 0) and _IN_NEIGHBOURHOOD[self.neighbourhood](z, y, x)
        ]

    def _images(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The images as a contiguous batch ``[n, z, y, x]``, and kappa of their kind."""
        self._check(x)
        return as_batch(x.detach()), None if self._kappa is None else self._kappa.to(x)

    def _pairs(self, x: Tensor) -> Iterator[Pair]:
        """Pairs of a batch ``[n, z, y, x]``, block by block."""
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


# One offset of each opposite pair of directions is enough: z is 0 or 1.
_IN_NEIGHBOURHOOD: dict[str, Callable[[int, int, int], bool]] = {
    "3x3x3": lambda z, y, x: True,
    "transverse": lambda z, y, x: z == 0,
    "axial": lambda z, y, x: y == x == 0,
}


def as_batch(x: Tensor) -> Tensor:
    """``[..., z, y, x]`` as ``[n, z, y, x]``, contiguous."""
    return x.reshape(-1, *x.shape[-3:]).contiguous()


def _shifted(offset: int, size: int) -> tuple[slice, slice]:
    if offset >= 0:
        return slice(0, size - offset), slice(offset, size)
    return slice(-offset, size), slice(0, size + offset)
