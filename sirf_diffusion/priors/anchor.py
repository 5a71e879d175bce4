"""The quadratic anchor: the penalty that ties an image to another one (half-quadratic splitting, DDS)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .base import Penalty


class AnchorPenalty(Penalty):
    r"""Weighted squared distance to an anchor image.

    .. math:: \beta R(x) = \frac{\beta}{2} \sum_j w_j (x_j - v_j)^2

    Parameters
    ----------
    anchor
        Image ``v``, ``[z, y, x]`` or a batch ``[..., z, y, x]``, in image units.
    penalisation_factor
        :math:`\beta` in counts per image unit squared. An anchor strength ``rho`` in network units is
        ``beta = rho / c**2`` for an intensity scale ``c``.
    weight
        Non-negative ``w``, broadcastable to the anchor; 1 if omitted.

    Raises
    ------
    ValueError
        For a non-finite anchor, or a weight that is negative or not finite.
    """

    explicit: ClassVar[bool] = True
    has_majoriser: ClassVar[bool] = True

    def __init__(self, anchor: Tensor, penalisation_factor: float, weight: Tensor | None = None) -> None:
        super().__init__(penalisation_factor)
        if not bool(torch.isfinite(anchor).all()):
            raise ValueError("anchor holds NaN or infinite values")
        if weight is not None and not bool((torch.isfinite(weight) & (weight >= 0)).all()):
            raise ValueError("weight must be finite and not negative everywhere")
        self.anchor = anchor.detach()
        self.weight = torch.ones_like(self.anchor) if weight is None else weight.detach()

    def value(self, x: Tensor) -> Tensor:
        squares = (self.weight * (x - self.anchor) ** 2).sum((-3, -2, -1), dtype=torch.float64)
        return 0.5 * self.penalisation_factor * squares

    def gradient(self, x: Tensor) -> Tensor:
        return self.penalisation_factor * self.weight * (x - self.anchor)

    def curvature(self, x: Tensor) -> Tensor:
        return (self.penalisation_factor * self.weight).expand_as(x)

    def hessian_times(self, x: Tensor, v: Tensor) -> Tensor:
        return self.penalisation_factor * self.weight * v

    def majoriser(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The penalty itself: ``(anchor, beta * weight)``, without the division that the general formula needs."""
        return self.anchor, self.penalisation_factor * self.weight
