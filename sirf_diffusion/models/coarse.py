r"""A network of half the resolution in a model's place while the noise is strong: a quarter of the work, or an eighth.

Noise of relative level :math:`\sigma` hides what is finer than a few voxels, so that the means of 2 x 2 (x 2) voxels
hold nearly all that a noisy image tells. They are an image of the same kind with less noise,

.. math:: \operatorname{mean}(u_t / \gamma) = \operatorname{mean}(u_0) + \frac{\sigma}{\sqrt{n}} z,

which a network that was trained on voxels of twice the size denoises. Its clean image is interpolated linearly;
Landweber steps first put in the contrast that the interpolation takes away.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..geometry.images import ImageGeometry
from .grid import SAME_VOXEL_SIZE, THREE_ORIENTATIONS
from .predictor import Predictor

logger = logging.getLogger(__name__)

#: Folder, beside a model's file, with the file of the same name that has its companion.
FOLDER = "coarse"
#: Steps that put contrast in; more gain little on heads.
_SHARPENED = 2
#: An anatomical image shows what is finer than a few voxels, at any noise: bound below which that was lost.
_GUIDED = 1.4


def companion_of(model: Any) -> Any:
    """The model of twice the voxel size that belongs to one of a file, ``coarse/NAME``; None where there is none."""
    if model.path is None or not (path := model.path.parent / FOLDER / model.path.name).is_file():
        return None
    return type(model).load(path, str(next(model.network.parameters()).device), model.precision)


@dataclass(frozen=True)
class Coarse:
    """A companion bound to the means of a model's latent voxels; used above the relative noise level ``above``."""

    model: Any
    above: float
    #: Voxels of which the mean is taken, along z, y and x.
    factors: tuple[int, int, int]

    @classmethod
    def of(cls, bound: Predictor, companion: Any, above: float) -> Coarse | None:
        """For a bound model; None, and a warning, if the companion does not suit its voxels."""
        shape, sizes = bound.latent_geometry.shape, bound.latent_geometry.voxel_size
        factors = (2 if bound.planes in THREE_ORIENTATIONS else 1, 2, 2)
        voxels = tuple(factor * size for factor, size in zip(factors, sizes, strict=True))
        if any(abs(v / w - 1) > SAME_VOXEL_SIZE for v, w in zip(voxels[1:], companion.voxel_size[1:], strict=True)):
            logger.warning("the model's companion is for voxels of %s mm: it is not used", companion.voxel_size)
            return None
        if companion.in_channels != bound.in_channels:
            logger.warning("the model's companion is for %d input images: it is not used", companion.in_channels)
            return None
        halves = tuple(n // factor for n, factor in zip(shape, factors, strict=True))
        shown = bound.anatomical_input
        model = companion.on(ImageGeometry(halves, voxels), 1.0, bound.planes, guidance=None if shown is None else -1.0)
        model.counter = bound.counter
        guided = shown is not None and shown.anatomy is not None
        coarse = cls(model, max(above, _GUIDED) if guided else above, factors)
        if shown is not None:
            model.anatomical_input = replace(shown, anatomy=coarse.means(shown.anatomy) if guided else None)
        return coarse

    def predict(
        self, u: Tensor, gamma: float, nu: float, turn: int | None = None, precision: str = "float32"
    ) -> tuple[Tensor, Tensor]:
        """Clean image and noise in ``u = gamma u0 + nu eps``, as `Predictor.predict` gives them."""
        self.model.precision = precision
        schedule = self.model.schedule
        sizes = [size // n for size, n in zip(u.shape[-3:], self.factors, strict=True)]
        t = schedule.t_of_sigma(nu / gamma * self.noise)
        coarse, _ = self.model.predict(schedule.gamma(t) * self.means(u / gamma), t, turn)
        coarse = coarse.reshape(-1, 1, *coarse.shape[-3:])[..., : sizes[0], : sizes[1], : sizes[2]]
        u0 = self._finer(coarse).reshape(u.shape)
        return u0, (u - gamma * u0) / nu

    @property
    def noise(self) -> float:
        """What is left of the noise's standard deviation in means."""
        return 1 / math.sqrt(math.prod(self.factors))

    def means(self, u: Tensor) -> Tensor:
        """Means of latent voxels ``[..., z, y, x]``, filled up to what the network needs by a mirror.

        A mirror has the noise that the network expects.
        """
        split = [part for size, n in zip(u.shape[-3:], self.factors, strict=True) for part in (size // n, n)]
        means = u.reshape(-1, 1, *split).mean((-5, -3, -1))
        beyond = [m - n for n, m in zip(means.shape[-3:], self.model.latent_shape, strict=True)]
        mode = "reflect" if all(b < n for b, n in zip(beyond, means.shape[-3:], strict=True)) else "circular"
        filled = torch.nn.functional.pad(means, [side for b in reversed(beyond) for side in (0, b)], mode=mode)
        return filled.reshape(*u.shape[:-3], *self.model.latent_shape)

    def _finer(self, means: Tensor) -> Tensor:
        """Linear interpolation of values that are changed until the means of what comes out are nearly ``means``."""
        size = [n * factor for n, factor in zip(means.shape[-3:], self.factors, strict=True)]
        finer = partial(torch.nn.functional.interpolate, size=size, mode="trilinear")
        values = means
        for _ in range(_SHARPENED):
            values = values + means - torch.nn.functional.avg_pool3d(finer(values), self.factors)
        return finer(values)

    def describe(self) -> dict[str, Any]:
        """What a record tells of it."""
        return {"sha256": self.model.hash, "above": self.above}
