"""Gaussian smoothing of images, by a matrix for each axis."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from .images import ImageGeometry


def gaussian_smooth(x: Tensor, geometry: ImageGeometry, fwhm_mm: float, *, symmetric: bool = False) -> Tensor:
    """Image ``[..., z, y, x]`` convolved with a Gaussian of the given FWHM along each axis.

    Weights are renormalised at the edges: of each voxel's neighbours, so that a constant image stays constant and a
    single plane is not thinned out by the planes it does not have; or, with ``symmetric``, of pairs of voxels, which
    makes the operator its own adjoint, positive and of norm 1 at most.
    """
    for axis, (size, spacing) in enumerate(zip(geometry.shape, geometry.voxel_size, strict=True)):
        weights = _weights(size, fwhm_mm / spacing, symmetric, x.dtype, x.device)
        x = (x.movedim(axis - 3, -1) @ weights.T).movedim(-1, axis - 3)
    return x


@lru_cache(maxsize=16)
def _weights(size: int, fwhm: float, symmetric: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Matrix ``[size, size]``, computed in float64, for a FWHM in voxels."""
    with torch.inference_mode(False):  # what is kept serves gradients, too
        index = torch.arange(size, dtype=torch.float64)
        weights = torch.exp(-4 * math.log(2) * ((index[:, None] - index) / fwhm) ** 2)
        total = weights.sum(1, keepdim=True)
        return (weights / (total.sqrt() * total.sqrt().T if symmetric else total)).to(device, dtype)
