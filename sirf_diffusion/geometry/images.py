"""Image grids: the one place where axes, voxel sizes and units of length are decided.

Every image in the package is a ``float32`` tensor ``[..., z, y, x]`` in C order, as STIR and SIRF
store it; leading dimensions are independent images (posterior samples).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

#: Smallest and largest voxel in mm: beyond these, a number is a slip.
VOXEL_SIZES = (1e-4, 1e5)
_LIMITS = {"shape": (1, 10**5), "voxel_size": VOXEL_SIZES, "origin": (-1e7, 1e7)}
_MOST_VOXELS = 2**31


@dataclass(frozen=True)
class ImageGeometry:
    """A regular voxel grid in STIR's conventions; ValueError for numbers that are not three or out of all use.

    Voxel ``(k, j, i)`` has its centre at

    ``z = origin_z + k * dz``, ``y = origin_y + (j - ny // 2) * dy``, ``x = origin_x + (i - nx // 2) * dx``,

    in mm, with ``shape``, ``voxel_size`` and STIR's ``origin`` as ``(z, y, x)``. STIR counts planes from zero at the
    first plane and centres the in-plane index range, so an even in-plane size is half a voxel off-centre. The scanner's
    axis is at ``x = y = 0``, and its axial centre lies at the middle of the image if ``origin_z`` is 0.

    Examples
    --------
    >>> ImageGeometry((1, 128, 128), (2.03125, 2.0, 2.0)).voxel_volume
    8.125
    """

    shape: tuple[int, int, int]
    voxel_size: tuple[float, float, float]
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        for name, kind in (("shape", int), ("voxel_size", float), ("origin", float)):
            given = getattr(self, name)
            values = tuple(kind(v) for v in given) if isinstance(given, Iterable) else (given,)
            if len(values) != 3:
                raise ValueError(f"{name} needs three numbers (z, y, x), found {values}")
            if kind is int and any(value != told for value, told in zip(values, given, strict=True)):
                raise ValueError(f"{name} must be whole numbers, found {given}")
            low, high = _LIMITS[name]
            if not all(low <= value <= high for value in values):
                sign = "positive, " if low > 0 else ""
                raise ValueError(f"{name} must be {sign}from {low:g} to {high:g}, found {values}")
            object.__setattr__(self, name, values)
        if math.prod(self.shape) > _MOST_VOXELS:
            raise ValueError(f"shape {self.shape} is of more than {_MOST_VOXELS} voxels")

    def is_near(self, other: ImageGeometry) -> bool:
        """Whether two grids agree within the digits that headers keep."""
        pairs = zip(self.voxel_size + self.origin, other.voxel_size + other.origin, strict=True)
        return self.shape == other.shape and all(math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-3) for a, b in pairs)

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel in mm^3."""
        dz, dy, dx = self.voxel_size
        return dz * dy * dx


def voxels_agree(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    """Whether voxel sizes ``(z, y, x)`` agree to 5 %: what a network was trained on is used as it is then."""
    return all(abs(a / b - 1) <= 0.05 for a, b in zip(first, second, strict=True))
