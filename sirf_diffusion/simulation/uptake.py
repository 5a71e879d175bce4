"""Uptake that varies from place to place, and lesions: what no anatomy explains."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ..geometry.gaussian import gaussian_smooth
from ..geometry.images import ImageGeometry
from .lesions import soft_ellipsoid

#: FWHM and largest standard deviation of what varies from place to place. Without it lesions fade at low counts: while
#: they are faint a network takes them for noise.
_FIELD_MM, _FIELD_SD = (10.0, 20.0), 0.25
#: Lesions: radii in mm, share of hot ones, factors on the uptake of hot and of cold ones; where they may be.
_RADII, _HOT_SHARE, _HOT, _COLD = (3.0, 12.0), 0.65, (1.1, 3.0), (0.22, 0.9)
_EMITTING = 0.3


def uptake_field(
    shape: tuple[int, ...], voxel_size: tuple[float, float, float], rng: np.random.Generator, sd: float = _FIELD_SD
) -> NDArray[np.float32]:
    """Random factors of uptake, smooth over 10 and over 20 mm."""
    geometry, total = ImageGeometry(shape, voxel_size), torch.zeros(shape)
    for fwhm in _FIELD_MM:
        noise = gaussian_smooth(torch.from_numpy(rng.standard_normal(shape, np.float32)), geometry, fwhm)
        total += noise / noise.std()
    return (sd * rng.uniform(0.3, 1.0) * total).exp().numpy()


def varied(
    image: NDArray[np.float32], voxel_size: tuple[float, float, float], rng: np.random.Generator, lesions: int,
    sd: float = _FIELD_SD,
) -> NDArray[np.float32]:  # fmt: skip
    """An image ``[z, y, x]`` of unit scale with another uptake: `uptake_field`, and up to so many soft lesions."""
    change = uptake_field(image.shape, voxel_size, rng, sd)
    emitting = np.flatnonzero(image > _EMITTING)
    for _ in range(int(rng.integers(0, lesions + 1)) if emitting.size else 0):
        centre = np.unravel_index(emitting[rng.integers(emitting.size)], image.shape)
        radii = rng.uniform(*_RADII) * rng.uniform(0.7, 1.3, 3) / np.asarray(voxel_size)
        factor = float(np.exp(rng.uniform(*np.log(_HOT if rng.random() < _HOT_SHARE else _COLD))))
        soft_ellipsoid(image.shape, centre, radii, factor, softness=0.25).multiply(change, factor)
    return image * change
