"""STIR's quadratic prior on differences of neighbours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..geometry.images import ImageGeometry
from .neighbours import Neighbourhood, NeighbourPenalty, Pair


class QuadraticPenalty(NeighbourPenalty):
    r"""Quadratic smoothing penalty with STIR's constants.

    .. math:: \beta R(x) = \frac{\beta}{4} \sum_r \sum_{k \in N_r} w_{rk} \kappa_r \kappa_k (x_r - x_k)^2

    with :math:`w_{rk}` the voxel size in x divided by the distance; neighbours outside the volume are skipped.

    Parameters
    ----------
    geometry
        Image grid; None if `set_up` is to tell.
    penalisation_factor
        :math:`\beta`.
    kappa
        Non-negative image ``[z, y, x]``.
    neighbourhood
        As in :class:`~sirf_diffusion.priors.rdp.RelativeDifferencePenalty`.
    """

    has_hessian_diagonal = True
    has_majoriser = True

    def __init__(
        self,
        geometry: ImageGeometry | None = None,
        penalisation_factor: float = 1.0,
        kappa: Tensor | None = None,
        neighbourhood: Neighbourhood = "3x3x3",
    ) -> None:
        super().__init__(geometry, penalisation_factor, kappa, neighbourhood)

    def value(self, x: Tensor) -> Tensor:
        # The penalty is a quadratic form: half its gradient times the image, in double precision.
        product = x.double() * self._laplacian(x.double())
        return 0.5 * self.penalisation_factor * product.sum((-3, -2, -1))

    def gradient(self, x: Tensor) -> Tensor:
        return self.penalisation_factor * self._laplacian(x)

    def hessian_diagonal(self, x: Tensor) -> Tensor:
        r""":math:`\beta \sum_k w_{rk} \kappa_r \kappa_k`."""
        return self.penalisation_factor * self._laplacian(x, diagonal=True)

    def curvature(self, x: Tensor) -> Tensor:
        """Twice the Hessian's diagonal, a bound everywhere."""
        return 2 * self.hessian_diagonal(x)

    def hessian_times(self, x: Tensor, v: Tensor) -> Tensor:
        return self.gradient(v)

    def _laplacian(self, x: Tensor, diagonal: bool = False) -> Tensor:
        images, kappa = self._images(x)
        result = torch.zeros_like(images)
        for pair in self._pairs(images):
            weight = self._weight(pair, kappa)
            change = weight if diagonal else weight * (images[pair.here] - images[pair.there])
            result[pair.here] += change
            result[pair.there] += change if diagonal else -change
        return result.reshape(x.shape)

    def _weight(self, pair: Pair, kappa: Tensor | None) -> Any:
        """``w kappa kappa`` of one direction in one block."""
        return pair.weight if kappa is None else pair.weight * kappa[pair.here[1:]] * kappa[pair.there[1:]]
