"""Objective functions of list-mode data: STIR 6.5 gives neither their expected counts nor the right log-likelihood."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .objective import Objective

logger = logging.getLogger(__name__)

_STEP = 0.05


@dataclass(frozen=True)
class ValueRepair:
    r"""What makes :math:`L(x) = \sum_{events} \log q - \langle x, s \rangle` of the value that STIR gives.

    In STIR 6.5 that value is :math:`-\sum_{events} \log q`. Which one a version of STIR gives is found from the slope
    of its value along a constant image, where the gradient tells what it should be: STIR's value times ``sign``, with
    :math:`\langle x, s \rangle` subtracted if ``weight`` is 1.
    """

    sign: int
    weight: int

    @classmethod
    def none(cls) -> ValueRepair:
        """For values that are log-likelihoods already."""
        return cls(1, 0)

    @classmethod
    def find(cls, objective: Objective, stirs_value: Callable[[Tensor], float]) -> ValueRepair:
        """Compare slopes, of two values and a gradient; ValueError if no repair brings them together."""
        x, sensitivity = objective.uniform_image(), objective.sensitivity()
        above, below = stirs_value((1 + _STEP) * x), stirs_value((1 - _STEP) * x)
        found = (above - below) / (2 * _STEP)
        slope, term = (float((x * image).sum(dtype=torch.float64)) for image in (objective.gradient(x), sensitivity))
        for repair, expected in ((cls.none(), slope), (cls(1, 1), slope + term), (cls(-1, 1), -slope - term)):
            if abs(found - expected) < 0.1 * term:
                if repair != cls.none():
                    logger.warning("STIR's values of this list-mode likelihood are none: repaired here")
                return repair
        raise ValueError(
            f"STIR's value changes by {found:.6g} per unit of scale, its gradient says {slope:.6g}: they cannot be of "
            "the same log-likelihood"
        )

    def __call__(self, value: float, image: Tensor, sensitivity: Tensor) -> float:
        """The log-likelihood."""
        if not self.weight:
            return self.sign * value
        return self.sign * value - self.weight * float((image * sensitivity).sum(dtype=torch.float64))


def constant_of_highest_likelihood(objective: Objective, mask: Tensor, total: float) -> float:
    """Level of the image ``c * mask`` at which the likelihood no longer rises, to 0.1 % of the sensitivity.

    ``total`` is the sum of the sensitivity. ValueError if there are no counts that the image could explain.
    """

    def slope(level: float) -> float:
        return float(objective.gradient(level * mask).sum(dtype=torch.float64)) / total

    # An EM step goes from any c towards the root; 1 / (slope + 1) is linear in c without background, and smooth
    # with it, so secants of it end what the step has begun.
    levels = [1.0]
    slopes = [slope(1.0)]
    if slopes[0] <= -1:
        raise ValueError("the objective function has no counts that the image could explain")
    levels.append(1 + slopes[0])
    for _ in range(10):
        slopes.append(slope(levels[-1]))
        if abs(slopes[-1]) < 1e-3:
            return levels[-1]
        before, now = (1 / (1 + value) for value in slopes[-2:])
        rate = (now - before) / (levels[-1] - levels[-2])
        step = (1 - now) / rate if rate > 0 else levels[-1] * slopes[-1]
        levels.append(min(max(levels[-1] + step, 0.01 * levels[-1]), 100 * levels[-1]))
    if slopes[-1] < 0 and levels[-1] < 1e-3 * levels[1]:
        raise ValueError("the likelihood falls with any activity: the expected background exceeds the counts")
    logger.warning("the uniform image is rough: its likelihood still rises by %.2g of the counts", abs(slopes[-1]))
    return levels[-1]
