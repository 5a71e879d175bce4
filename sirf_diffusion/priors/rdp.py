"""The relative difference prior, number for number as STIR defines it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..geometry.checks import check_image, check_real
from ..geometry.images import ImageGeometry
from .neighbours import Neighbourhood, NeighbourPenalty, Pair, as_batch

if TYPE_CHECKING:
    from ..engines.objective import Objective


class RelativeDifferencePenalty(NeighbourPenalty):
    r"""Relative difference prior (Nuyts et al. 2002, doi:10.1109/TNS.2002.998681) with STIR's constants.

    .. math::
        \beta R(x) = \beta \sum_r \sum_{k \in N_r} \frac{w_{rk}}{2} \kappa_r \kappa_k
        \frac{(x_r - x_k)^2}{x_r + x_k + \gamma |x_r - x_k| + \epsilon}

    with :math:`w_{rk}` the voxel size in x divided by the distance of the two voxels. Neighbours outside the volume are
    skipped. Both members of a pair see each other, hence the 1/2.

    Parameters
    ----------
    geometry
        Image grid; None if `set_up` is to tell.
    penalisation_factor
        :math:`\beta`.
    gamma
        Edge preservation, >= 0; large differences are penalised linearly with slope :math:`1 / (1 + \gamma)`.
    epsilon
        Image units, >= 0. Use about 1e-3 of the image's maximum: with 0 the second derivative is infinite where two
        neighbours are both zero.
    kappa
        Non-negative image ``[z, y, x]`` that scales the penalty locally, for instance :func:`kappa_image`.
    neighbourhood
        ``"3x3x3"``; ``"transverse"`` is STIR's ``only 2D``; ``"axial"`` penalises differences between planes alone.

    Raises
    ------
    ValueError
        For a negative or non-finite parameter, an unknown neighbourhood, or an image on another grid.

    Examples
    --------
    >>> prior = RelativeDifferencePenalty(ImageGeometry((1, 1, 2), (2.0, 2.0, 2.0)), penalisation_factor=3.0)
    >>> float(prior.value(torch.tensor([[[1.0, 3.0]]])))
    1.5
    """

    has_hessian_diagonal = True

    def __init__(
        self,
        geometry: ImageGeometry | None = None,
        penalisation_factor: float = 1.0,
        gamma: float = 2.0,
        epsilon: float = 0.0,
        kappa: Tensor | None = None,
        neighbourhood: Neighbourhood = "3x3x3",
    ) -> None:
        self.gamma, self.epsilon = check_real("gamma", gamma), check_real("epsilon", epsilon)
        super().__init__(geometry, penalisation_factor, kappa, neighbourhood)

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "gamma": self.gamma, "epsilon": self.epsilon}

    def value(self, x: Tensor) -> Tensor:
        images, shifted, kappa = self._shifted(x)
        total = torch.zeros(images.shape[0], dtype=torch.float64, device=x.device)
        for pair in self._pairs(images):
            difference, denominator = self._pair(images, shifted, pair)
            term = (difference / denominator).mul_(difference)
            total[pair.here[0]] += _weighted(term, kappa, pair).sum((1, 2, 3), dtype=torch.float64) * pair.weight
        return (total * self.penalisation_factor).reshape(x.shape[:-3])

    def gradient(self, x: Tensor) -> Tensor:
        images, shifted, kappa = self._shifted(x)
        result = torch.zeros_like(images)
        for pair in self._pairs(images):
            slope, denominator = self._pair(images, shifted, pair)
            slope = _weighted(slope.div_(denominator).div_(denominator), kappa, pair)
            weight = pair.weight * self.penalisation_factor
            result[pair.here].addcmul_(slope, torch.add(denominator, shifted[pair.there], alpha=2), value=weight)
            result[pair.there].addcmul_(slope, denominator.add_(shifted[pair.here], alpha=2), value=-weight)
        return result.reshape(x.shape)

    def hessian_diagonal(self, x: Tensor) -> Tensor:
        r"""Diagonal of :math:`\beta \nabla^2 R(x)`; infinite where ``epsilon`` and two neighbours are 0."""
        images, shifted, kappa = self._shifted(x)
        result = torch.zeros_like(images)
        if self.penalisation_factor == 0:
            return result.reshape(x.shape)
        for pair in self._pairs(images):
            factor, vanishing = self._second_order(images, shifted, kappa, pair)
            weight = 8 * pair.weight * self.penalisation_factor
            for own, other in ((pair.here, pair.there), (pair.there, pair.here)):
                term = factor * shifted[other] * shifted[other]
                if vanishing is not None:
                    term = term.masked_fill_(vanishing, float("inf"))
                result[own].add_(term, alpha=weight)
        return result.reshape(x.shape)

    def curvature(self, x: Tensor) -> Tensor:
        """Twice the Hessian's diagonal: bounds the Hessian *at* ``x``, as each pair adds a rank-one block."""
        return 2 * self.hessian_diagonal(x)

    def hessian_times(self, x: Tensor, v: Tensor) -> Tensor:
        r""":math:`\beta \nabla^2 R(x) v`, off-diagonal elements included.

        Raises
        ------
        ValueError
            If ``epsilon`` is 0 and two neighbours are both 0: the second derivative does not exist there.
        """
        images, shifted, kappa = self._shifted(x)
        self._check(v, "v")
        direction = as_batch(v.to(x.dtype).expand(x.shape))
        result = torch.zeros_like(images)
        if self.penalisation_factor == 0:
            return result.reshape(x.shape)
        for pair in self._pairs(images):
            factor, vanishing = self._second_order(images, shifted, kappa, pair)
            if vanishing is not None and bool(vanishing.any()):
                raise ValueError(
                    "the Hessian is infinite where two neighbours are zero and epsilon is 0: set epsilon > 0"
                )
            here, there = shifted[pair.here], shifted[pair.there]
            change = (there * direction[pair.here] - here * direction[pair.there]).mul_(factor)
            weight = 8 * pair.weight * self.penalisation_factor
            result[pair.here].addcmul_(change, there, value=weight)
            result[pair.there].addcmul_(change, here, value=-weight)
        return result.reshape(x.shape)

    def _shifted(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The images as a batch, the same plus epsilon / 2 (all formulas then lose their epsilon), and kappa."""
        images, kappa = self._images(x)
        return images, images + self.epsilon / 2 if self.epsilon else images, kappa

    def _pair(self, images: Tensor, shifted: Tensor, pair: Pair) -> tuple[Tensor, Tensor]:
        # The difference is taken of the unshifted images, where it is exact.
        difference = images[pair.here] - images[pair.there]
        denominator = (shifted[pair.here] + shifted[pair.there]).add_(difference.abs(), alpha=self.gamma)
        if self.epsilon == 0:
            denominator.masked_fill_(denominator == 0, 1.0)
        return difference, denominator

    def _second_order(
        self, images: Tensor, shifted: Tensor, kappa: Tensor | None, pair: Pair
    ) -> tuple[Tensor, Tensor | None]:
        _, denominator = self._pair(images, shifted, pair)
        inverse = denominator.reciprocal_()
        factor = _weighted(inverse * inverse * inverse, kappa, pair)
        if self.epsilon:
            return factor, None
        return factor, (images[pair.here] == 0) & (images[pair.there] == 0)


def kappa_image(objective: Objective, x: Tensor) -> Tensor:
    r"""Local penalty strength that makes the resolution about uniform, :math:`\kappa_j^2 = [A^T (y / q^2)\, A 1]_j`.

    Taken at an early OSEM image. Because kappa carries units (counts per image unit squared), penalisation factors
    with and without it are not comparable. (Fessler and Rogers 1996, doi:10.1109/83.535846.)

    Parameters
    ----------
    objective
        The log-likelihood; its Hessian is applied to the constant image by a central difference of gradients.
    x
        Positive image ``[z, y, x]``.

    Raises
    ------
    TypeError, ValueError
        If they are none, or do not belong together.
    """
    if not hasattr(objective, "sensitivity"):
        raise TypeError(f"objective must be an objective (as_objective makes one), found {type(objective).__name__}")
    check_image(x, "the image", objective.geometry.shape)
    seen = objective.sensitivity() > 0
    step = 1e-2 * x[seen].mean()
    ones = seen.to(x.dtype)
    change = objective.gradient(x - step * ones) - objective.gradient(x + step * ones)
    return (change / (2 * step)).clamp_min(0).sqrt()


def _weighted(term: Tensor, kappa: Tensor | None, pair: Pair) -> Tensor:
    return term if kappa is None else term.mul_(kappa[pair.here[1:]]).mul_(kappa[pair.there[1:]])
