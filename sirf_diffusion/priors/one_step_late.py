r"""One Step Late (OSMAPOSL) with a score prior: how strong it may be, and what keeps its updates stable.

One Step Late divides by :math:`s_j + g_j` with sensitivity ``s`` and the prior's gradient ``g`` at the image before. A
change is overshot, more with each update, where :math:`x_j C_j / s_j` is above about 2, ``C`` the gradient's slope:
with few counts in a voxel, a strong prior, or hot voxels. And a voxel far below its surroundings makes the divisor
negative, which STIR replaces by :math:`s_j / 10`: it becomes ten times as large.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

#: Factor over squared noise level up to which it was stable on slices of a head with 2e5 counts.
LIMIT = 3.0
# What is kept below these numbers: ``x C / s``, and the change of ``g / s`` in one update. With 1.5 and 0.4 the results
# were the same.
_STABLE, _MOST, _FREE = 1.0, 0.3, 1e3
# So many times the largest value of the first few images is no noise that grows, but a run that diverges.
_RUNAWAY, _FEW = 5.0, 5


def risk(factor: float, noise_level: float) -> str:
    """What to do if a score prior is too strong, as far as two numbers can tell; empty if it is not."""
    largest = LIMIT * noise_level**2
    if factor <= largest:
        return ""
    return (
        f"factor {factor:g} at noise level {noise_level:g}: One Step Late was unstable (hot pixels that grow) above "
        f"{LIMIT:g} level^2 = {largest:.2g}. Lower the factor, raise the level, or use OSSPS or MAPEM"
    )


class Updates:
    """The images of one run, as the prior sees them."""

    def __init__(self) -> None:
        self._num, self._highest = 0, 0.0
        self._largest: Tensor | None = None

    def watch(self, x: Tensor) -> None:
        """Take in the image ``[z, y, x]`` of an update, and say once if images grow as in a run that diverges."""
        self._largest = x.clone() if self._largest is None else torch.maximum(self._largest, x)
        self._num, largest = self._num + 1, float(x.max())
        if self._num <= _FEW:
            self._highest = max(self._highest, largest)
        elif largest > _RUNAWAY * self._highest > 0:
            logger.warning(
                "the largest value of the image has grown from %.3g to %.3g: updates with the score prior diverge. "
                "Take OSMAPOSLReconstructor from sirf_diffusion.get_engine(...), whose updates it keeps stable, OSSPS "
                "or sirf_diffusion.MAPEM; or lower its factor, or raise its noise level", self._highest, largest,
            )  # fmt: skip
            self._highest = float("inf")

    def bounds(self, x: Tensor, slope: Tensor, sensitivity: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Which share of a step to take, and the largest step over ``scale``, the activity that a voxel has at least.

        ``x [..., z, y, x]``; large where the prior does not act, and where no data do.
        """
        room = (sensitivity / (scale * slope).clamp_min(torch.finfo(x.dtype).tiny)).clamp(max=_FREE)
        room = torch.where(sensitivity > 0, room, _FREE)
        largest = x if self._largest is None else torch.maximum(self._largest, x)
        return (_STABLE * room / (largest / scale).clamp_min(1)).clamp(max=1), _MOST * room
