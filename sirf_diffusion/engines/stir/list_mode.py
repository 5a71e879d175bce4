"""Log-likelihoods of list-mode data, which STIR 6.5 gives with the wrong sign and without one of their terms."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..objective import Objective

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
                    logger.warning("STIR's value of this list-mode likelihood is none: repaired here")
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
