"""The quadratic anchor: the penalty that ties an image to another one (half-quadratic splitting, DDS)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry.images import ImageGeometry
from .base import Penalty, on_grid


class AnchorPenalty(Penalty):
    r"""Weighted squared distance to an anchor image.

    .. math:: \beta R(x) = \frac{\beta}{2} \sum_j w_j (x_j - v_j)^2

    It needs no grid; ``set_up`` checks that the images fit.

    Parameters
    ----------
    anchor
        Image ``v``, ``[z, y, x]`` or a batch ``[..., z, y, x]``, in image units; may be set later.
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

    has_hessian_diagonal = True
    has_majoriser = True
    has_prox = True

    def __init__(
        self, anchor: Tensor | None = None, penalisation_factor: float = 1.0, weight: Tensor | None = None
    ) -> None:
        super().__init__(penalisation_factor)
        self._anchor: Tensor | None = None
        self.set_anchor(anchor)
        self.set_weight(weight)

    @property
    def anchor(self) -> Tensor:
        """The image ``v``."""
        if self._anchor is None:
            raise ValueError(
                "AnchorPenalty has no anchor image: call set_anchor(image) (in scripts set_anchor_image(image)) before "
                "set_up()"
            )
        return self._anchor

    def set_anchor(self, anchor: Tensor | None, grid: ImageGeometry | None = None) -> None:
        """The image to stay close to, and where it lies if that is to be compared; may change at any time."""
        self._place("the anchor image", grid)
        self._anchor = None if anchor is None else on_grid("the anchor image", anchor, self.geometry, batch=True)

    def set_weight(self, weight: Tensor | None, grid: ImageGeometry | None = None) -> None:
        """Non-negative weight, None for 1, and where it lies if that is to be compared; may change at any time."""
        self._place("the weight", grid)
        weight = torch.ones(()) if weight is None else weight
        geometry = self.geometry if weight.dim() else None
        self.weight = on_grid("the weight", weight, geometry, negative=False, batch=True)

    def value(self, x: Tensor) -> Tensor:
        squares = (self._strength(x) * (x - self.anchor) ** 2).sum((-3, -2, -1), dtype=torch.float64)
        return 0.5 * squares

    def gradient(self, x: Tensor) -> Tensor:
        return self._strength(x) * (x - self.anchor)

    def curvature(self, x: Tensor) -> Tensor:
        return self._strength(x).expand_as(x)

    hessian_diagonal = curvature

    def hessian_times(self, x: Tensor, v: Tensor) -> Tensor:
        return self._strength(x) * v

    def prox(self, x: Tensor, tau: Tensor | float) -> Tensor:
        pull = tau * self._strength(x)
        return (x + pull * self.anchor) / (1 + pull)

    def majoriser(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The penalty itself: ``(anchor, beta * weight)``, without the division that the general formula needs."""
        return self.anchor, self._strength(x).expand_as(self.anchor)

    def _strength(self, x: Tensor) -> Tensor:
        return self.penalisation_factor * self.weight.to(x)

    def _prepare(self, geometry: ImageGeometry) -> None:
        on_grid("the anchor image", self.anchor, geometry, batch=True)
        if self.weight.dim():
            on_grid("the weight", self.weight, geometry, batch=True)
