"""The unit of attenuation images: 1/cm at 511 keV, where water has 0.096 and bone about 0.15."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

#: No tissue has more than this in 1/cm, and none less in an image that is in 1/cm (lung: 0.03; water in 1/mm: 0.0096).
_MOST, _LEAST = 2.0, 0.05
#: More than half of a patient is not bone: a higher median is of another energy (water at 140 keV: 0.154).
_MEDIAN = 0.125
#: What is below is taken for air.
_AIR = 1e-3


def check_attenuation_units(image: Tensor, name: str = "the attenuation image") -> None:
    """Refuse an image (``name`` in the message) that cannot be attenuation coefficients in 1/cm; all air is allowed.

    Raises ValueError if values are negative, not finite, so large that they look like 1/m, Hounsfield units or percent,
    or so small (99 of 100 voxels that are not air below 0.05) that they look like 1/mm. What looks like another energy
    is told in the log.
    """
    expected = "in 1/cm water has 0.096 and bone about 0.15 at 511 keV"
    if not bool(torch.isfinite(image).all()) or float(image.min()) < 0:
        raise ValueError(f"{name} has negative or non-finite values, expected attenuation coefficients: {expected}")
    if (most := float(image.max())) > _MOST:
        raise ValueError(
            f"{name} reaches {most:g}, which looks like 1/m, Hounsfield units or percent; {expected}. Convert its units"
        )
    tissue = image[image > _AIR]
    if tissue.numel() == 0:
        return
    dense = float(torch.kthvalue(tissue, max(1, round(0.99 * tissue.numel()))).values)
    if dense < _LEAST:
        raise ValueError(
            f"{name} looks like 1/mm: 99 of 100 voxels that are not air are below {dense:.3g}; {expected}. If it is in "
            "1/mm, multiply it by 10"
        )
    if (median := float(tissue.median())) > _MEDIAN:
        logger.warning(
            "%s looks like attenuation at a lower energy (140 keV: water 0.154): half of its voxels that are not air "
            "exceed %.3g; %s",
            *(name, median, expected),
        )
