"""The patch-based prior: neighbouring voxels are alike if their surroundings are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sirf_diffusion.geometry.checks import check_real
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.priors.base import Penalty

_Slices = tuple[slice, slice, slice]


class PatchPenalty(Penalty):
    r"""Edge-preserving penalty on differences of patches (Wang and Qi 2012, doi:10.1109/TMI.2012.2211378).

    .. math::
        \beta R(x) = \beta \sum_{(j, k)} \psi(d_{jk}), \quad
        d_{jk}^2 = \frac{1}{|P|} \sum_{l \in P} (x_{j+l} - x_{k+l})^2, \quad
        \psi(d) = \delta \left( \frac{d}{\delta} - \log\left(1 + \frac{d}{\delta}\right) \right)

    over all pairs of neighbours, with Lange's function. Its quadratic majoriser has the weights
    :math:`\bar w_{jk} = \frac{1}{|P|} \sum_l 1 / (\delta + d_{j-l, k-l})`: two voxels are smoothed towards each other
    as far as all the patches that contain them are alike. Differences that reach out of the image count as zero.

    Parameters
    ----------
    geometry
        Image grid. A single plane has 24 neighbours (5 x 5) and patches of 3 x 3; a volume has 26 and 3 x 3 x 3.
    penalisation_factor
        :math:`\beta`.
    delta
        Image units, > 0: differences well below it are smoothed quadratically, above it linearly.

    Raises
    ------
    ValueError
        If ``delta`` is not positive, or an image is on another grid.
    """

    has_majoriser = True

    def __init__(self, geometry: ImageGeometry, penalisation_factor: float, delta: float) -> None:
        super().__init__(penalisation_factor)
        self.geometry, self.delta = geometry, check_real("delta", delta, open_below=True)
        flat = geometry.shape[0] == 1
        self._patch = (1, 3, 3) if flat else (3, 3, 3)
        reach = (0, 2, 2) if flat else (1, 1, 1)
        around = [
            (z, y, x)
            for z in range(-reach[0], reach[0] + 1)
            for y in range(-reach[1], reach[1] + 1)
            for x in range(-reach[2], reach[2] + 1)
        ]
        self._offsets = [offset for offset in around if offset > (0, 0, 0)]

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "delta": self.delta}

    def value(self, x: Tensor) -> Tensor:
        total = torch.zeros(self._images(x).shape[0], dtype=torch.float64, device=x.device)
        for _, _, _, distance in self._pairs(self._images(x).double()):
            ratio = distance / self.delta
            total += (self.delta * (ratio - torch.log1p(ratio))).sum((1, 2, 3))
        return (self.penalisation_factor * total).reshape(x.shape[:-3])

    def gradient(self, x: Tensor) -> Tensor:
        images = self._images(x)
        result = torch.zeros_like(images)
        for here, there, difference, distance in self._pairs(images):
            pull = self._mean(1 / (self.delta + distance))[(..., *here)] * difference
            result[(..., *here)] += pull
            result[(..., *there)] -= pull
        return (self.penalisation_factor * result).reshape(x.shape)

    def curvature(self, x: Tensor) -> Tensor:
        images = self._images(x)
        result = torch.zeros_like(images)
        for here, there, _, distance in self._pairs(images):
            weight = self._mean(1 / (self.delta + distance))[(..., *here)]
            result[(..., *here)] += weight
            result[(..., *there)] += weight
        return (2 * self.penalisation_factor * result).reshape(x.shape)

    def hessian_times(self, x: Tensor, v: Tensor) -> Tensor:
        """Central difference of gradients along ``v``."""
        step = 1e-3 * self.delta / v.abs().amax().clamp_min(torch.finfo(v.dtype).tiny)
        return (self.gradient(x + step * v) - self.gradient(x - step * v)) / (2 * step)

    def _images(self, x: Tensor) -> Tensor:
        self._check(x)
        return x.detach().reshape(-1, *x.shape[-3:])

    def _pairs(self, images: Tensor) -> Any:
        """For each direction: both ends of its pairs, their differences, and patch distances ``d`` at every voxel."""
        for offset in self._offsets:
            here, there = _ends(offset, images.shape[-3:])
            difference = images[(..., *here)] - images[(..., *there)]
            squares = torch.zeros_like(images)
            squares[(..., *here)] = difference.square()
            yield here, there, difference, self._mean(squares).clamp_min(0).sqrt()

    def _mean(self, images: Tensor) -> Tensor:
        """Mean over the patch around each voxel, zero outside the image: symmetric, its own adjoint."""
        padding = tuple(n // 2 for n in self._patch)
        return functional.avg_pool3d(images[:, None], self._patch, 1, padding)[:, 0]


def _ends(offset: tuple[int, int, int], shape: Any) -> tuple[_Slices, _Slices]:
    here = tuple(slice(max(0, -d), n - max(0, d)) for d, n in zip(offset, shape, strict=True))
    there = tuple(slice(max(0, d), n - max(0, -d)) for d, n in zip(offset, shape, strict=True))
    return here, there  # type: ignore[return-value]
