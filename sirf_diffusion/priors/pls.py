"""Parallel level sets: smooth wherever the MR or CT image is smooth, and along its edges, but not across them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..geometry.checks import check_real
from ..geometry.images import ImageGeometry
from .base import Penalty, anatomical_values

if TYPE_CHECKING:
    from ..patient import AnatomicalImage

_AXES = (-3, -2, -1)


class ParallelLevelSetsPenalty(Penalty):
    r"""Penalty on what an image's gradient has that is not parallel to that of an anatomical image ``v`` (Ehrhardt et
    al. 2016, doi:10.1109/TMI.2016.2549601), with STIR's constants.

    .. math::
        \beta R(x) = \beta \sum_r \kappa_r
        \sqrt{\alpha^2 + |\nabla x|_r^2 - \langle \nabla x, \xi \rangle_r^2}, \qquad
        \xi = \frac{\nabla v}{\sqrt{|\nabla v|^2 + \eta^2}}

    with differences to the next voxel along each axis, not divided by the voxel size, and 0 at the last one. Where
    ``v`` is flat this is smoothed total variation. The value is STIR's; here ``gradient`` is its derivative, from which
    STIR's differs in the outermost planes, rows and columns, and where kappa varies.

    ``curvature`` replaces the root by its tangent and the difference of two voxels by their own changes, so that
    ``majoriser`` lies above the penalty. It is loose: in closed form a slice takes hundreds of iterations, hence
    ``has_majoriser`` is False, and :class:`~sirf_diffusion.reconstructors.em.mapem.MAPEM` uses BSREM.

    Parameters
    ----------
    geometry
        Image grid; None if `set_up` is to tell.
    penalisation_factor
        :math:`\beta`.
    anatomical
        Image ``[z, y, x]`` on the same grid, or in its own space, in any unit. May be set later.
    alpha
        Image units, > 0: differences well below it are smoothed quadratically, above it linearly.
    eta
        Unit of the anatomical image, > 0: differences there that count as edges are well above it.
    kappa
        Non-negative image ``[z, y, x]``.
    only_2d
        Leave differences between planes out.

    Raises
    ------
    ValueError
        If an image is on another grid or not finite, or ``alpha`` or ``eta`` is not positive.

    Examples
    --------
    >>> line = ImageGeometry((1, 1, 3), (2.0, 2.0, 2.0))
    >>> edge = torch.tensor([[[0.0, 0.0, 9.0]]])
    >>> prior = ParallelLevelSetsPenalty(line, 1.0, edge, alpha=0.01, eta=0.01)
    >>> round(float(prior.value(edge)), 2), round(float(prior.value(edge.flip(-1))), 2)
    (0.03, 9.02)
    """

    has_kappa = True

    def __init__(
        self,
        geometry: ImageGeometry | None = None,
        penalisation_factor: float = 1.0,
        anatomical: Tensor | AnatomicalImage | None = None,
        alpha: float = 1.0,
        eta: float = 1.0,
        kappa: Tensor | None = None,
        *,
        only_2d: bool = False,
    ) -> None:
        super().__init__(penalisation_factor)
        self._anatomical, self.only_2d = anatomical, only_2d
        self.set_scales(alpha, eta)
        self.set_kappa(kappa)
        if geometry is not None:
            self.set_up(geometry)

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "alpha": self.alpha, "eta": self.eta, "only_2d": self.only_2d}

    def set_anatomical(self, anatomical: Tensor | AnatomicalImage | None) -> None:
        """Another anatomical image; may change at any time."""
        self._anatomical = anatomical
        self._renew()

    def set_scales(self, alpha: float, eta: float) -> None:
        """Other ``alpha`` and ``eta``; may change at any time."""
        self.alpha, self.eta = check_real("alpha", alpha, open_below=True), check_real("eta", eta, open_below=True)
        self._renew()

    def value(self, x: Tensor) -> Tensor:
        _, root = self._parts(x.double())
        return (root * self._weight(root)).sum(_AXES)

    def gradient(self, x: Tensor) -> Tensor:
        across, root = self._parts(x)
        return _adjoint(across * (self._weight(root) / root))

    def curvature(self, x: Tensor) -> Tensor:
        root = self._parts(x)[1]
        weight = self._weight(root) / root
        result = torch.zeros_like(weight)
        for axis in _AXES:
            size = weight.shape[axis]
            pairs = weight.narrow(axis, 0, size - 1)
            result.narrow(axis, 0, size - 1).add_(pairs)
            result.narrow(axis, 1, size - 1).add_(pairs)
        return 2 * result

    def hessian_times(self, x: Tensor, v: Tensor) -> Tensor:
        across, root = self._parts(x)
        change = self._differences(v)
        along = across * ((across * change).sum(0) / root.square())
        return _adjoint((self._across(change) - along) * (self._weight(root) / root))

    def _prepare(self, geometry: ImageGeometry) -> None:
        anatomical = anatomical_values("ParallelLevelSetsPenalty", self._anatomical, geometry)
        slopes = self._differences(anatomical.double())
        self._direction = slopes / (slopes.square().sum(0) + self.eta**2).sqrt()

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``Q grad x`` with ``Q = 1 - xi xi^T``, and the root: ``<grad x, Q grad x> = |grad x|^2 - <grad x, xi>^2``."""
        self._check(x)
        slopes = self._differences(x.detach())
        across = self._across(slopes)
        return across, ((slopes * across).sum(0).clamp_min(0) + self.alpha**2).sqrt()

    def _differences(self, x: Tensor) -> Tensor:
        """Differences to the next voxel along z, y and x: ``[3, ..., z, y, x]``."""
        slopes = x.new_zeros((3, *x.shape))
        for axis, slope in zip(_AXES[self.only_2d :], slopes[self.only_2d :], strict=True):
            slope.narrow(axis, 0, x.shape[axis] - 1).copy_(x.diff(dim=axis))
        return slopes

    def _across(self, slopes: Tensor) -> Tensor:
        direction = self._direction.to(slopes)
        direction = direction.reshape(3, *(1,) * (slopes.ndim - 4), *slopes.shape[-3:])
        return slopes - direction * (direction * slopes).sum(0)

    def _weight(self, like: Tensor) -> Tensor:
        return self.penalisation_factor * (torch.ones_like(like) if self._kappa is None else self._kappa.to(like))


def _adjoint(slopes: Tensor) -> Tensor:
    """Adjoint of `ParallelLevelSetsPenalty._differences`."""
    result = torch.zeros_like(slopes[0])
    for axis, slope in zip(_AXES, slopes, strict=True):
        inner = slope.narrow(axis, 0, slope.shape[axis] - 1)
        result.narrow(axis, 0, slope.shape[axis] - 1).sub_(inner)
        result.narrow(axis, 1, slope.shape[axis] - 1).add_(inner)
    return result
