"""The intensity scale: which activity, in image units, a network's value 1 stands for."""

from __future__ import annotations

import logging
import math

import numpy as np
import torch
from torch import Tensor

from ..geometry.checks import check_image
from ..geometry.gaussian import gaussian_smooth
from ..geometry.images import ImageGeometry
from .grid import Box

logger = logging.getLogger(__name__)

FWHM_MM = 8.0
THRESHOLD = 0.2
OBJECT_THRESHOLD, OBJECT_MARGIN_MM = 0.1, 4.0
#: Noise, not object: what lies by itself, is smaller than a cube of this side (a square, on one plane) and weaker than
#: this share of the tissue. In early images such specks lie at the rim of the field of view (up to 0.6 cm^3, 0.27).
SPECK_MM, SPECK_LEVEL = 10.0, 0.5
#: A hot object is more than this many times as hot as the rest of the image, and smaller than this in every plane. Of
#: simulated heads the ratio is 1.4 to 7.4, the highest those of dopamine transporters and of random uptakes.
HOT_RATIO, HOT_AREA_MM2 = 8.3, 8000.0
#: The same for what covers less than 4.8 cm^2 of each plane; up to 6.4 cm^2 the one ratio goes over to the other. In
#: simulated heads what is more than 3.5 times as hot as the rest, a striatum, covers at least 5.9 cm^2 of a plane.
_SMALL_RATIO, _SMALL_MM2, _LARGE_MM2 = 3.5, 480.0, 640.0
#: The same for one compact object: up to 50 cm^3 or 1.5 % of the tissue, and no more spread out than 1.6 times a ball;
#: where first or last plane cut it, up to 30 cm^2, and a disc. Up to 1.3 times that size and 2.2 times that spread one
#: ratio goes over to the other. Striata, which are two, are spread out more.
_COMPACT_RATIO, _COMPACT_MM3, _COMPACT_SHARE, _COMPACT_MM2 = 4.0, 50e3, 0.015, 3000.0
_WIDE, _COMPACT, _SPREAD = 1.3, 1.6, 2.2
#: From this times the ratio on the scale is that of the rest alone.
_ALONE = 1.12

#: Names that a model file may give for the way its training images were scaled.
INTENSITY_RULES = ("mean-of-8mm-smoothed-above-0.2-max",)


def intensity_scale(x: Tensor, geometry: ImageGeometry) -> float:
    """Mean activity ``c`` of the emitting voxels, insensitive to noise and to the size of the field of view.

    The image is smoothed by a Gaussian of 8 mm FWHM; ``c`` is the mean of the smoothed image over the voxels above 0.2
    of its maximum. Smoothing first makes the threshold follow tissue and not the hottest noisy voxel, so that an early
    OSEM image gives nearly the scale that the true image would. ``intensity_scale(a * x) = a * intensity_scale(x)``.

    Where an object (bladder, injection site) is more than 8.3 times as hot as the rest, 3.5 times if it covers less
    than 4.8 cm^2 of each transverse plane, or 4 times if it is one compact object, the mean is taken from 0.2 to 1 of
    ``1.5 R`` instead, with ``R`` from `tissue_level`; within 12 % of that ratio one mean goes over to the other.

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
    check_image(x, "the image from which the intensity scale is estimated", geometry.shape)
    smoothed = gaussian_smooth(x, geometry, FWHM_MM)
    maximum = float(smoothed.max())
    if maximum <= 0:
        raise ValueError(f"the intensity scale needs activity, found an image whose smoothed maximum is {maximum:g}")
    scale = float(smoothed[smoothed > THRESHOLD * maximum].double().mean())
    tissue, share = hot_object(smoothed, geometry)
    if share <= 0:
        return scale
    logger.info("a hot object is %.0f times the rest of the image: the scale is the rest's", maximum / tissue)
    rest = (smoothed > THRESHOLD * 1.5 * tissue) & (smoothed <= 1.5 * tissue)
    return scale * (float(smoothed[rest].double().mean()) / scale) ** share


def hot_object(smoothed: Tensor, geometry: ImageGeometry) -> tuple[float, float]:
    """Activity of the tissue, see `tissue_level`, and whether a smoothed image has a hot object: 0 no, 1 yes."""
    maximum, tissue = float(smoothed.max()), tissue_level(smoothed, geometry)
    if maximum <= _SMALL_RATIO * tissue:
        return tissue, 0.0
    pixels = (smoothed > max(THRESHOLD * maximum, 1.8 * tissue)).flatten(1).sum(1).max()
    area = float(pixels) * geometry.voxel_size[1] * geometry.voxel_size[2]
    rest = float((smoothed > THRESHOLD * 1.5 * tissue).sum()) * math.prod(geometry.voxel_size)
    size, spread = _extent(smoothed > max(0.4 * maximum, 1.8 * tissue), geometry, rest)
    large = _position(area, _SMALL_MM2, _LARGE_MM2)
    wide = max(_position(size, 1.0, _WIDE), _position(spread, _COMPACT, _SPREAD))
    ratios = [low * (HOT_RATIO / low) ** share for low, share in ((_SMALL_RATIO, large), (_COMPACT_RATIO, wide))]
    return tissue, _position(maximum / tissue, min(ratios), _ALONE * min(ratios))


def _position(value: float, low: float, high: float) -> float:
    """Where a value lies between two others on a scale of logarithms, from 0 to 1."""
    return min(max(math.log(max(value, low) / low) / math.log(high / low), 0.0), 1.0)


def _extent(mask: Tensor, geometry: ImageGeometry, tissue_mm3: float) -> tuple[float, float]:
    """Size of an object over that of the largest compact one, and its mean square distance from its middle, a ball's 1.

    Of an object that the first or the last plane cuts, the plane with the most of it counts, and a disc for a ball.
    """
    planes, limit, size = mask.flatten(1).sum(1), max(_COMPACT_MM3, _COMPACT_SHARE * tissue_mm3), geometry.voxel_size
    if cut := 2 * max(int(planes[0]), int(planes[-1])) >= int(planes.max()):
        mask, limit, size = mask[int(planes.argmax())], _COMPACT_MM2, size[1:]
    voxels = mask.nonzero() * torch.tensor(size, dtype=torch.float64, device=mask.device)
    measure = len(voxels) * math.prod(size)
    square = measure / math.pi / 2 if cut else 0.6 * (0.75 / math.pi * measure) ** (2 / 3)
    return measure / limit, float(voxels.var(0, correction=0).sum()) / square


def object_box(x: Tensor, geometry: ImageGeometry) -> Box:
    """The voxels that hold the object: first one of z, y and x, and the one after the last; all for an empty image.

    The object is what exceeds a tenth of `tissue_level` in the smoothed image of `intensity_scale`, without specks of
    noise, and 4 mm around it.
    """
    from scipy.ndimage import find_objects, label, maximum

    smoothed = gaussian_smooth(x, geometry, FWHM_MM)
    if not float(smoothed.max()) > 0:
        return tuple((0, size) for size in geometry.shape)  # type: ignore[return-value]
    values, level = smoothed.cpu().numpy(), tissue_level(smoothed, geometry)
    parts, number = label(values > OBJECT_THRESHOLD * level, np.ones((3, 3, 3)))
    peaks = maximum(values, parts, range(1, number + 1))
    axes = range(0 if geometry.shape[0] > 1 else 1, 3)
    least = math.prod(SPECK_MM / geometry.voxel_size[axis] for axis in axes)
    large = np.bincount(parts.ravel())[1:] >= least
    kept = large | (peaks > SPECK_LEVEL * level)
    found = [part for part, wanted in zip(find_objects(parts), kept, strict=True) if wanted]
    box = []
    for axis, (size, spacing) in enumerate(zip(geometry.shape, geometry.voxel_size, strict=True)):
        margin = math.ceil(OBJECT_MARGIN_MM / spacing)
        first, end = min(part[axis].start for part in found), max(part[axis].stop for part in found)
        box.append((max(first - margin, 0), min(end + margin, size)))
    return tuple(box)  # type: ignore[return-value]


def tissue_level(smoothed: Tensor, geometry: ImageGeometry) -> float:
    """Activity ``R`` of the emitting tissue in a smoothed image, whatever small object is hotter.

    With ``N(t)`` the number of voxels above ``t``, the body is what is above the ``t`` of largest ``sqrt(t) N(t)``: a
    hot object has few voxels. A quarter of the body exceeds ``R``. What exceeds ``8.3 R`` over more than 80 cm^2 of a
    transverse plane is no hot object: the rest is air, which is left out then.
    """
    values, maximum = smoothed.flatten(), float(smoothed.max())
    above = torch.histc((values / maximum).clamp_min(1e-30).log10(), 4000, -4, 0).double().flip(0).cumsum(0)
    levels = torch.logspace(0, -4, 4001, dtype=torch.float64, device=above.device)[1:]
    area = geometry.voxel_size[1] * geometry.voxel_size[2]
    while len(above):
        quarter = max(1, int(above[torch.argmax(levels.sqrt() * above)] / 4))
        tissue = float(values.kthvalue(values.numel() - quarter + 1).values)
        limit = HOT_RATIO * tissue
        if limit >= maximum or float((smoothed > limit).flatten(1).sum(1).max()) * area <= HOT_AREA_MM2:
            return tissue
        above, levels = above[levels * maximum > limit], levels[levels * maximum > limit]
    return maximum
