"""The intensity scale: which activity, in image units, a network's value 1 stands for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..geometry.images import ImageGeometry

FWHM_MM = 8.0
THRESHOLD = 0.2

#: Names that a model file may give for the way its training images were scaled.
INTENSITY_RULES = ("mean-of-8mm-smoothed-above-0.2-max",)


def intensity_scale(x: Tensor, geometry: ImageGeometry) -> float:
    """Mean activity ``c`` of the emitting voxels, insensitive to noise and to the size of the field of view.

    The image is smoothed by a Gaussian of 8 mm FWHM; ``c`` is the mean of the smoothed image over the voxels above 0.2
    of its maximum. Smoothing first makes the threshold follow tissue and not the hottest noisy voxel, so that an early
    OSEM image gives nearly the scale that the true image would. ``intensity_scale(a * x) = a * intensity_scale(x)``.

    Parameters
    ----------
    x
        Non-negative image ``[z, y, x]``, image units, for example after one epoch of OSEM.
    geometry
        Its grid.

    Returns
    -------
    float
        The scale in image units, positive.

    Raises
    ------
    ValueError
        If the shapes differ, or the image is not finite or has no activity.
    """
    if tuple(x.shape) != geometry.shape:
        raise ValueError(f"the image has shape {tuple(x.shape)}, its geometry {geometry.shape}")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("the intensity scale needs a finite image, found NaN or infinite voxels")
    smoothed = gaussian_smooth(x, geometry, FWHM_MM)
    highest = float(smoothed.max())
    if highest <= 0:
        raise ValueError(f"the intensity scale needs activity, found an image whose smoothed maximum is {highest:g}")
    return float(smoothed[smoothed > THRESHOLD * highest].double().mean())


def gaussian_smooth(x: Tensor, geometry: ImageGeometry, fwhm_mm: float) -> Tensor:
    """Image ``[..., z, y, x]`` convolved with a Gaussian of the given FWHM along each axis.

    Weights are renormalised at the edges, so that a constant image stays constant (and a single plane is not thinned
    out by the planes it does not have).
    """
    for axis, (size, spacing) in enumerate(zip(geometry.shape, geometry.voxel_size, strict=True)):
        sd = fwhm_mm / spacing / math.sqrt(8 * math.log(2))
        index = torch.arange(size, device=x.device, dtype=torch.float64)
        weights = torch.exp(-0.5 * ((index[:, None] - index[None, :]) / sd) ** 2)
        weights = (weights / weights.sum(1, keepdim=True)).to(x.dtype)
        x = (x.movedim(axis - 3, -1) @ weights.T).movedim(-1, axis - 3)
    return x
