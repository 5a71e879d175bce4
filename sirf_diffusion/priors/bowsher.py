"""Bowsher's anatomical prior: smooth only between voxels that look alike in the MR or CT image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..geometry.checks import check_count
from ..geometry.images import ImageGeometry
from .base import anatomical_values
from .neighbours import Neighbourhood, Pair
from .quadratic import QuadraticPenalty

if TYPE_CHECKING:
    from ..patient import AnatomicalImage

_PLANES_PER_BLOCK = 8
NUM_NEIGHBOURS = {"3x3x3": 7, "transverse": 3}


class BowsherPenalty(QuadraticPenalty):
    r"""Quadratic smoothing penalty whose neighbours are chosen in an anatomical image (Bowsher et al. 2004,
    doi:10.1109/NSSMIC.2004.1462760).

    .. math::
        \beta R(x) = \frac{\beta}{4} \sum_r \sum_{k \in N_r} w_{rk} \frac{b_{rk} + b_{kr}}{2} \kappa_r \kappa_k
        (x_r - x_k)^2

    where :math:`b_{rk} = 1` if ``k`` is among the ``num_neighbours`` neighbours of ``r`` with the smallest
    :math:`|a_r - a_k|` in the anatomical image ``a``, and 0 otherwise. The choice is not mutual, so both choices are
    averaged: what is not symmetric has no penalty whose gradient it is. :math:`w_{rk}` is the voxel size in x divided
    by the distance, as in :class:`~sirf_diffusion.priors.quadratic.QuadraticPenalty`, which this is if all neighbours
    are kept. Among equal differences the nearer neighbour is kept.

    Parameters
    ----------
    geometry
        Image grid; None if `set_up` is to tell.
    penalisation_factor
        :math:`\beta`.
    anatomical
        Image ``[z, y, x]`` on the same grid, or in its own space, in any unit; only the order of differences counts.
        May be set later.
    num_neighbours
        Neighbours that each voxel keeps, at least 1, at most 26 (8 in a single plane); 7 (3) if omitted.
    kappa
        Non-negative image ``[z, y, x]``.
    neighbourhood
        ``"3x3x3"``, or ``"transverse"`` for the 8 neighbours in the plane; the latter for a single plane if omitted.

    Raises
    ------
    ValueError
        If an image is on another grid or not finite, or ``num_neighbours`` is out of range.

    Examples
    --------
    >>> flat = ImageGeometry((1, 1, 3), (2.0, 2.0, 2.0))
    >>> prior = BowsherPenalty(flat, 1.0, torch.tensor([[[0.0, 0.1, 5.0]]]), num_neighbours=1)
    >>> prior.gradient(torch.tensor([[[1.0, 2.0, 4.0]]]))
    tensor([[[-1.,  0.,  1.]]])
    """

    def __init__(
        self,
        geometry: ImageGeometry | None = None,
        penalisation_factor: float = 1.0,
        anatomical: Tensor | AnatomicalImage | None = None,
        num_neighbours: int | None = None,
        kappa: Tensor | None = None,
        neighbourhood: Neighbourhood | None = None,
    ) -> None:
        if neighbourhood not in (None, *NUM_NEIGHBOURS):
            raise ValueError(f"neighbourhood must be '3x3x3' or 'transverse', found {neighbourhood!r}")
        self._anatomical, self._num_neighbours, self._wanted = anatomical, num_neighbours, neighbourhood
        super().__init__(geometry, penalisation_factor, kappa, neighbourhood or "3x3x3")

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "num_neighbours": self.num_neighbours}

    @property
    def num_neighbours(self) -> int:
        """Neighbours that each voxel keeps."""
        return NUM_NEIGHBOURS[self.neighbourhood] if self._num_neighbours is None else self._num_neighbours

    def set_num_neighbours(self, value: int | None) -> None:
        """Neighbours that each voxel keeps, None for the default; may change at any time."""
        before, self._num_neighbours = self._num_neighbours, value
        try:
            self._renew()
        except ValueError:
            self._num_neighbours = before
            raise

    def set_anatomical(self, anatomical: Tensor | AnatomicalImage | None) -> None:
        """Choose the neighbours in another anatomical image; may change at any time."""
        self._anatomical = anatomical
        self._renew()

    def _prepare(self, geometry: ImageGeometry) -> None:
        self.neighbourhood = self._wanted or ("transverse" if geometry.shape[0] == 1 else "3x3x3")
        super()._prepare(geometry)
        number = check_count("num_neighbours", self.num_neighbours, 1, 2 * len(self.offsets))
        anatomical = anatomical_values("BowsherPenalty", self._anatomical, geometry)
        offsets = [offset for offset, _ in self.offsets]
        distances = [1 / weight for _, weight in self.offsets]
        chosen = _chosen(anatomical.float().cpu(), offsets, distances, number)
        # How many of the two voxels of a pair chose the other: 0, 1 or 2, kept at the first one.
        self._votes = torch.stack([_votes(chosen, offset, d, len(offsets)) for d, offset in enumerate(offsets)])

    def _weight(self, pair: Pair, kappa: Tensor | None) -> Any:
        votes = self._votes[(pair.direction, *pair.here[1:])]
        return super()._weight(pair, kappa) * (0.5 * votes)

    def _images(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        images, kappa = super()._images(x)
        self._votes = self._votes.to(images)
        return images, kappa


def _chosen(
    anatomical: Tensor, half: list[tuple[int, int, int]], distances: list[float], num_neighbours: int
) -> Tensor:
    """Which neighbours each voxel keeps: bool ``[2 n, z, y, x]`` for the ``n`` offsets and then their opposites."""
    offsets = half + [(-z, -y, -x) for z, y, x in half]
    # Sorted by distance, so that a stable sort by difference prefers the nearer of two that are equal.
    order = sorted(range(len(offsets)), key=lambda d: distances[d % len(half)])
    padded = torch.nn.functional.pad(anatomical, (1,) * 6, value=float("inf"))
    nz, ny, nx = anatomical.shape
    chosen = torch.zeros((len(offsets), nz, ny, nx), dtype=torch.bool)
    for first in range(0, nz, _PLANES_PER_BLOCK):
        last = min(first + _PLANES_PER_BLOCK, nz)
        here = anatomical[first:last]
        differences = torch.stack(
            [
                (padded[first + 1 + z : last + 1 + z, 1 + y : 1 + y + ny, 1 + x : 1 + x + nx] - here).abs()
                for z, y, x in (offsets[d] for d in order)
            ]
        )
        ranking = differences.sort(dim=0, stable=True).indices[:num_neighbours]
        kept = torch.zeros_like(differences, dtype=torch.bool).scatter_(0, ranking, True)
        chosen[order, first:last] = kept & torch.isfinite(differences)
    return chosen


def _votes(chosen: Tensor, offset: tuple[int, int, int], direction: int, num_offsets: int) -> Tensor:
    """``b_rk + b_kr`` at ``r``, with ``k = r + offset``; what wraps around at the edges is never looked at."""
    back = torch.roll(chosen[direction + num_offsets], [-step for step in offset], (0, 1, 2))
    return chosen[direction].to(torch.uint8) + back.to(torch.uint8)
