"""Lesions: soft-edged ellipsoids that change the uptake, and sometimes the MR image too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .head import Array, HeadAnatomy

#: Values of a lesion map: 0 is none.
LESION_KINDS = {"hot, in the MR": 1, "hot, not in the MR": 2, "cold, in the MR": 3, "cold, not in the MR": 4}


@dataclass(frozen=True)
class Lesion:
    """An ellipsoid inside ``box`` of the volume (slices along z, y and x).

    ``membership`` is the share of each voxel of the box that it takes, ``factor`` that on the uptake: above 1 hot.
    """

    box: tuple[slice, slice, slice]
    membership: Array
    factor: float

    def multiply(self, image: Array, factor: float) -> None:
        """Multiply the image by ``factor`` inside the lesion, in place."""
        image[self.box] *= 1 + (factor - 1) * self.membership


def draw_lesions(rng: np.random.Generator, anatomy: HeadAnatomy, at_most: int) -> list[Lesion]:
    """Hot (factor 1.3 to 2.5) and cold (0.1 to 0.7) lesions with radii of 3 to 14 mm, mostly in the brain."""
    lesions = []
    shape = anatomy.t1.shape
    head = sum(anatomy.tissues.values())
    for _ in range(rng.integers(0, at_most + 1)):
        where = anatomy.brain if rng.random() < 0.8 else head
        candidates = np.flatnonzero(where > 0.5)
        if candidates.size == 0:
            continue
        centre = np.unravel_index(candidates[rng.integers(candidates.size)], shape)
        radii = rng.uniform(3.0, 14.0) * rng.uniform(0.7, 1.3, 3) / anatomy.voxel_size
        change = rng.uniform(1.3, 2.5) if rng.random() < 0.6 else rng.uniform(0.1, 0.7)
        lesions.append(soft_ellipsoid(shape, centre, radii, change))
    return lesions


def soft_ellipsoid(
    shape: tuple[int, ...], centre: Sequence[float], radii: Sequence[float] | NDArray[np.float64], factor: float,
    softness: float = 0.08,
) -> Lesion:  # fmt: skip
    """A lesion of given centre and radii, both in voxels, with an edge of about ``softness`` times the radius."""
    reach = [int(np.ceil(1.6 * r)) + 1 for r in radii]
    box = tuple(slice(max(0, int(c) - h), int(c) + h + 1) for c, h in zip(centre, reach, strict=True))
    ranges = [np.arange(s.start, min(s.stop, n)) for s, n in zip(box, shape, strict=True)]
    grid = np.meshgrid(*ranges, indexing="ij")
    r = np.sqrt(sum(((g - c) / radius) ** 2 for g, c, radius in zip(grid, centre, radii, strict=True)))
    soft = 1 / (1 + np.exp(np.clip((r - 1) / softness, -30, 30)))
    return Lesion(box, soft.astype(np.float32), factor)


def lesions_in_mr(
    rng: np.random.Generator, t1: Array, lesions: list[Lesion], share: float
) -> tuple[Array, NDArray[np.uint8]]:
    """The MR image ``[z, y, x]`` with some of the lesions in it, and a map of all (``uint8``, see `LESION_KINDS`).

    A lesion shows in the MR with the probability ``share``; ``rng`` decides which, and how bright.
    """
    t1, kinds = t1.copy(), np.zeros(t1.shape, np.uint8)
    for lesion in lesions:
        shows = rng.random() < share
        brightness = rng.uniform(0.35, 0.8) if rng.random() < 0.7 else rng.uniform(1.2, 1.6)
        if shows:
            lesion.multiply(t1, brightness)
        kinds[lesion.box][lesion.membership > 0.5] = (1 if lesion.factor > 1 else 3) + (not shows)
    return t1, kinds
