"""STIR's quadratic prior on differences of neighbours."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..geometry.images import ImageGeometry
from .base import Penalty
from .neighbours import Neighbourhood, NeighbourPairs, Pair, as_batch, checked_kappa


class QuadraticPenalty(Penalty):
    r"""Quadratic smoothing penalty with STIR's constants.

    .. math:: \beta R(x) = \frac{\beta}{4} \sum_r \sum_{k \in N_r} w_{rk} \kappa_r \kappa_k (x_r - x_k)^2

    with :math:`w_{rk}` the voxel size in x divided by the distance; neighbours outside the volume are skipped.

    Parameters
    ----------
    geometry
        Image grid.
    penalisation_factor
        :math:`\beta`.
    kappa
        Non-negative image ``[z, y, x]``.
    neighbourhood
        As in :class:`~sirf_diffusion.priors.rdp.RelativeDifferencePenalty`.
    """

    explicit: ClassVar[bool] = True
    has_majoriser: ClassVar[bool] = True

    def __init__(
        self,
        geometry: ImageGeometry,
        penalisation_factor: float,
        kappa: Tensor | None = None,
        neighbourhood: Neighbourhood = "3x3x3",
    ) -> None:
        super().__init__(penalisation_factor)
        self.pairs = NeighbourPairs(geometry, neighbourhood)
        self.set_kappa(kappa)

    @property
    def geometry(self) -> ImageGeometry:
        """The image grid."""
        return self.pairs.geometry

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "kappa": self._kappa is not None, "neighbourhood": self.pairs.neighbourhood}

    def set_kappa(self, kappa: Tensor | None) -> None:
        """Replace the kappa image; None for none."""
        self._kappa = checked_kappa(self.pairs, kappa)

    def value(self, x: Tensor) -> Tensor:
        # The penalty is a quadratic form: half its gradient times the image, in double precision.
        product = x.double() * self._laplacian(x.double())
        return 0.5 * self.penalisation_factor * product.sum((-3, -2, -1))

    def gradient(self, x: Tensor) -> Tensor:
        return self.penalisation_factor * self._laplacian(x)

    def curvature(self, x: Tensor) -> Tensor:
        r"""Twice the Hessian's diagonal :math:`\beta \sum_k w_{rk} \kappa_r \kappa_k`, a bound everywhere."""
        return 2 * self.penalisation_factor * self._laplacian(x, diagonal=True)

    def hessian_times(self, x: Tensor, v: Tensor) -> Tensor:
        return self.gradient(v)

    def _laplacian(self, x: Tensor, diagonal: bool = False) -> Tensor:
        self.pairs.check(x)
        images = as_batch(x.detach())
        kappa = torch.ones_like(images[:1]) if self._kappa is None else self._kappa.to(images)
        result = torch.zeros_like(images)
        for pair in self.pairs.over(images):
            weight = self._weight(pair, kappa)
            change = weight if diagonal else weight * (images[pair.here] - images[pair.there])
            result[pair.here] += change
            result[pair.there] += change if diagonal else -change
        return result.reshape(x.shape)

    def _weight(self, pair: Pair, kappa: Tensor) -> Tensor:
        """``w kappa kappa`` of one direction in one block."""
        return pair.weight * kappa[(slice(None), *pair.here[1:])] * kappa[(slice(None), *pair.there[1:])]
