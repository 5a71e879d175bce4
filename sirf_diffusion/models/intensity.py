"""The intensity scale: which activity, in image units, a network's value 1 stands for."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ..geometry.checks import check_finite
from ..geometry.gaussian import gaussian_smooth
from ..geometry.images import ImageGeometry

logger = logging.getLogger(__name__)

FWHM_MM = 8.0
THRESHOLD = 0.2
#: A hot object is more than this many times as hot as the rest of the image, and smaller than this in every plane.
HOT_RATIO, HOT_AREA_MM2 = 3.3, 8000.0

#: Names that a model file may give for the way its training images were scaled.
INTENSITY_RULES = ("mean-of-8mm-smoothed-above-0.2-max",)


def intensity_scale(x: Tensor, geometry: ImageGeometry) -> float:
    """Mean activity ``c`` of the emitting voxels, insensitive to noise and to the size of the field of view.

    The image is smoothed by a Gaussian of 8 mm FWHM; ``c`` is the mean of the smoothed image over the voxels above 0.2
    of its maximum. Smoothing first makes the threshold follow tissue and not the hottest noisy voxel, so that an early
    OSEM image gives nearly the scale that the true image would. Where one small object (bladder, injection site) is far
    hotter than the rest, `tissue_maximum` stands for the maximum, and voxels above it are left out.
    ``intensity_scale(a * x) = a * intensity_scale(x)``.

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
    maximum = float(smoothed.max())
    if maximum <= 0:
        raise ValueError(f"the intensity scale needs activity, found an image whose smoothed maximum is {maximum:g}")
    highest = tissue_maximum(smoothed, geometry)
    emitting = smoothed > THRESHOLD * highest
    if highest < maximum:
        emitting &= smoothed <= highest
        logger.info("a hot object is %.0f times the rest of the image: the scale is the rest's", maximum / highest)
    return float(smoothed[emitting].double().mean())


def tissue_maximum(smoothed: Tensor, geometry: ImageGeometry) -> float:
    """Maximum of a smoothed image without a small object that is far hotter than the rest.

    With ``N(t)`` the number of voxels above ``t``, the body is what is above the ``t`` of largest ``sqrt(t) N(t)``: a
    hot object has few voxels. ``R`` is the activity that a quarter of the body exceeds. Images whose maximum is at most
    ``3.3 R`` (brains: 1.6 to 3.2) keep it. Beyond that the result falls to ``1.6 R`` within ``0.2 R``. What exceeds
    ``3.3 R`` over more than 80 cm^2 of a transverse plane is no hot object: the rest is air, which is left out then.
    """
    maximum = float(smoothed.max())
    relative = (smoothed.flatten() / maximum).clamp_min(1e-30).log10()
    above = torch.histc(relative, 400, -4, 0).double().flip(0).cumsum(0)
    levels = torch.logspace(0, -4, 401, dtype=torch.float64, device=above.device)[1:]
    area = geometry.voxel_size[1] * geometry.voxel_size[2]
    while len(above):
        body = above[torch.argmax(levels.sqrt() * above)]
        reached = float(levels[torch.argmax((above >= 0.25 * body).double())])
        limit = HOT_RATIO * reached
        if limit >= 1:
            return maximum
        if float((smoothed > limit * maximum).flatten(1).sum(1).max()) * area <= HOT_AREA_MM2:
            return maximum * max(1.6 * reached, limit - 8 * (1 - limit))
        above, levels = above[levels > limit], levels[levels > limit]
    return maximum
