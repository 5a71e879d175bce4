"""The intensity scale: which activity, in image units, a network's value 1 stands for."""

from __future__ import annotations

from torch import Tensor

from ..geometry.checks import check_finite
from ..geometry.gaussian import gaussian_smooth
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
    check_finite(x, "the image from which the intensity scale is estimated")
    smoothed = gaussian_smooth(x, geometry, FWHM_MM)
    highest = float(smoothed.max())
    if highest <= 0:
        raise ValueError(f"the intensity scale needs activity, found an image whose smoothed maximum is {highest:g}")
    return float(smoothed[smoothed > THRESHOLD * highest].double().mean())
