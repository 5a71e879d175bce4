"""A diffusion model as a penalty: the negative log-density of noisy versions of the images it was trained on."""

from __future__ import annotations

import logging
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..geometry.checks import check_flag, check_real
from ..geometry.images import ImageGeometry
from . import one_step_late
from .base import Penalty, check_anatomical
from .early_scale import EarlyScale, scale_of, with_structure

if TYPE_CHECKING:
    from ..engines.objective import Objective
    from ..models.score_model import ScoreModel
    from ..patient import AnatomicalImage

logger = logging.getLogger(__name__)

# The score prior's defaults wherever it is offered: class, objects of SIRF, blocks of STIR's parameter files, commands.
NOISE_LEVEL = 0.4
PENALISATION_FACTOR = 0.4
MEMORY = True
# With memory: which share of a change of the noise is kept at once, and how strongly that change pulls. The image in
# the end does not depend on them; One Step Late exploded where their sum times factor over squared level was 6.7.
MEMORY_RATE, MEMORY_PULL = 0.5, 1.2

PATH_POINTS = 8  # Gauss-Legendre points per straight path: exact for gradients that are polynomials of degree 15
# Scales further apart are said, and beyond the second factor of other data, or in another unit: the first update from
# a uniform image has a scale four times too small.
_EARLY_IMAGE, _OTHER_DATA = 1.5, 6.0


class ScorePenalty(Penalty):
    r"""Penalty :math:`\beta R` with :math:`R = -\log p_\sigma`, the density of clean images plus noise of SD :math:`c
    \sigma`, or the one whose proximal map the denoiser is.

    .. math:: \beta \nabla R(x) = \beta\, \kappa^2\, \frac{x - c\, D(x / c, \sigma)}{(c \sigma)^2}

    By Tweedie's formula this is exact for the ideal denoiser ``D`` (Romano, Elad and Milanfar 2017,
    doi:10.1137/16M1102884, with :math:`\lambda = \beta / (c \sigma)^2`). :math:`\beta = 1` is the Bayesian choice for
    the smoothed density. The curvature :math:`\beta \kappa^2 / (c \sigma)^2`, times the latent voxels
    in a voxel, holds for the ideal denoiser. The maximum fits the slow part of the noise, which small levels keep.

    With ``memory`` the denoiser is shown the image plus noise ``n``, zero at first:

    .. math::
        r = x - c\, D((x + n) / c, \sigma), \qquad n \leftarrow n + 0.5\, r, \qquad
        \beta \nabla R(x) = \beta\, \kappa^2\, \frac{n + 1.2\, r}{(c \sigma)^2}

    until :math:`r = 0`: then :math:`x = c\,D((x + n) / c)` maximises :math:`L - \beta R` for the penalty whose proximal
    map ``D`` is, as in plug-and-play ADMM with its dual image ``n`` (Venkatakrishnan et al. 2013,
    doi:10.1109/GlobalSIP.2013.6737048). That of the ideal denoiser has the posterior mean of an image with white noise
    as its maximum (Gribonval 2011, doi:10.1109/TSP.2011.2107908); the network sees noise, as in its training. Each
    ``gradient`` or ``majoriser`` of one image moves ``n`` on; `set_up` and `forget` make it zero. ``majoriser`` is that
    of ADMM, which takes ``r`` over at once.

    A model that is not bound to a grid is bound by `set_up`, and its intensity scale ``c`` found from the objective
    given there, as a sampler does. The algorithms of STIR and SIRF give none: then it is estimated from the first image
    that has structure, and kept; if the image that another run starts from has one more than 1.5 times as large or
    small, that is said, and beyond 6 times it is found anew. A uniform image, with which they like to start, tells
    nothing, and their first updates too little: there the penalty is zero, with one warning, until the scales of two
    images in turn differ by less than 3 %. For reproducible strengths give the scale, or start from an OSEM image.

    A network is not exactly the gradient of anything, so ``value`` is the path integral
    :math:`\int_0^1 \langle \beta \nabla R(a x), x \rangle\, da` (8 network calls) with the present ``n``, which agrees
    with the gradient only as far as the network is conservative. Do not line-search on it. No image is clipped.

    Parameters
    ----------
    model
        A score model, bound or not; the name of a bundled one or a file; or anything with ``residual(x, sigma)``, which
        is ``x - c D(x / c, sigma)``, and ``intensity_scale``.
    noise_level
        :math:`\sigma` relative to a unit-mean image, > 0; may be changed at any time. Small is sharp and rough, large
        is smooth and biased.
    penalisation_factor
        :math:`\beta`.
    kappa
        Non-negative image ``[z, y, x]``. With it the gradient is that of a function only where kappa is smooth.
    planes
        ``"transverse"`` or ``"three"``; None takes ``"three"`` for volumes (``"volume"`` if the network takes those).
    intensity_scale
        ``c`` in image units, for a model that is not bound; None to estimate it.
    memory
        Whether the noise that was found is kept and shown to the denoiser again.
    device
        Where a model that is loaded here shall run.

    Attributes
    ----------
    noise
        ``n / c``, a latent image; None for zero.

    Raises
    ------
    TypeError
        If the model offers no ``residual``.
    ValueError
        For settings out of range, and for a model that cannot be loaded.
    """

    has_value = False
    has_majoriser = True
    has_kappa = True

    def __init__(
        self,
        model: ScoreModel | str | os.PathLike[str] | Any,
        noise_level: float = NOISE_LEVEL,
        penalisation_factor: float = PENALISATION_FACTOR,
        *,
        kappa: Tensor | None = None,
        planes: str | None = None,
        intensity_scale: float | None = None,
        memory: bool = MEMORY,
        device: str = "auto",
    ) -> None:
        super().__init__(penalisation_factor)
        if isinstance(model, (str, os.PathLike)):
            from ..models import ScoreModel

            model = ScoreModel.load(model, device=device)
        if not hasattr(model, "residual"):
            raise TypeError(f"model must offer residual(x, sigma), found {type(model).__name__}; give a ScoreModel")
        self.noise: Tensor | None = None
        self.model, self.planes, self.noise_level = model, planes, noise_level
        is_bound = not hasattr(model, "for_data") or model.geometry is not None
        self._bound: Any = model if is_bound else None
        self.geometry = getattr(model, "geometry", None)
        scale = model.intensity_scale if is_bound else intensity_scale
        self._scale = None if scale is None else check_real("intensity_scale", scale, open_below=True)
        self._anatomical: Tensor | AnatomicalImage | None = None
        self._guidance: float | None = None
        self._warned, self._compared, self._told = False, True, False
        self._early, self._updates = EarlyScale(), one_step_late.Updates()
        self._sensitivity: Tensor | None = None  # of One Step Late, over the penalisation factor
        self.memory = check_flag("memory", memory)
        self.set_kappa(kappa)

    @property
    def noise_level(self) -> float:
        r""":math:`\sigma` in network units."""
        return self._noise_level

    @noise_level.setter
    def noise_level(self, value: float) -> None:
        value = check_real("the noise level", value, open_below=True)
        if self.noise is not None:  # its pull, noise over squared level, stays
            self.noise = self.noise * (value / self._noise_level) ** 2
        self._noise_level = value

    @property
    def intensity_scale(self) -> float | None:
        """``c`` in image units, as given or estimated; None as long as it is not known."""
        return self._scale if self._bound is None else self._bound.intensity_scale

    @property
    def settings(self) -> dict[str, Any]:
        own = {"noise_level": self.noise_level, "intensity_scale": self.intensity_scale, "planes": self.planes}
        own |= {"memory": self.memory, "anatomical": self._anatomical is not None, "guidance": self._guidance}
        return {**super().settings, **own, "model": getattr(self.model, "hash", None)}

    @property
    def counter(self) -> Any:
        """The model's network counter, or None."""
        return getattr(self._bound or self.model, "counter", None)

    def set_up(self, geometry: ImageGeometry, objective: Objective | None = None) -> None:
        if hasattr(self.model, "for_data") and (geometry != self.geometry or (self._estimates and objective)):
            check_anatomical(self._anatomical, geometry)
            self._bound = None
        self.forget()
        self._early, self._sensitivity = EarlyScale(), None
        self._compared = self._told  # what a user told holds for the next run
        super().set_up(geometry)
        if self._bound is None and (self._scale is not None or objective is not None):
            self._bind(geometry if objective is None else objective)

    def set_anatomical(self, anatomical: Tensor | AnatomicalImage | None, guidance: float = 0.0) -> None:
        """MR or CT image for a conditional model, with its guidance weight; may change at any time.

        ``[z, y, x]`` on the image grid, or in its own space: then it is resampled when the grid is known.
        """
        check_anatomical(anatomical, self.geometry)
        before, self._anatomical, self._bound = self._bound, anatomical, None
        self.forget()
        self._guidance = None if anatomical is None and guidance == 0 else float(guidance)
        if before is not None and self.geometry is not None:
            self._bind(self.geometry, scale=before.intensity_scale)

    def forget(self) -> None:
        """Begin anew: nothing has been taken away yet."""
        self.noise, self._updates = None, one_step_late.Updates()

    def prepare_one_step_late(self, sensitivity: Tensor, factor: float) -> str:
        """With memory, steps are shortened where they would not be stable: the image in the end is the same."""
        if not self.memory:
            return one_step_late.risk(factor, self.noise_level)
        self._sensitivity = sensitivity / factor if factor > 0 else None
        return ""

    def find_scale(self, x: Tensor) -> bool:
        """Take the intensity scale from an image, unless it was given; False, with one warning, if it does not tell."""
        if not self._estimates:
            return True
        if self._early.is_told_by(image := with_structure(x), self.geometry):
            self._bind(self.geometry, image)
            self._told = True
            return True
        if not self._warned:
            logger.warning(
                "the score prior is zero for now: a uniform image and the first updates of it do not tell the "
                "intensity scale. Give intensity_scale, or start from an OSEM image"
            )
        self._warned = True
        return False

    def value(self, x: Tensor) -> Tensor:
        if not self._ready(x) or self.penalisation_factor == 0:
            return torch.zeros(x.shape[:-3], dtype=torch.float64, device=x.device)
        nodes, weights = np.polynomial.legendre.leggauss(PATH_POINTS)
        points = torch.stack([(1 + float(node)) / 2 * x for node in nodes])
        slopes = (self._slope(points)[0].double() * x.double()).sum((-3, -2, -1))
        return torch.tensordot(slopes.new_tensor(weights / 2), slopes, dims=1)

    def gradient(self, x: Tensor) -> Tensor:
        if not self._ready(x) or self.penalisation_factor == 0:
            return torch.zeros_like(x)
        if x.dim() == 3:
            self._updates.watch(x)
        gradient, noise = self._slope(x)
        self._keep(noise)
        return gradient

    def curvature(self, x: Tensor) -> Tensor:
        if not self._ready(x):
            return torch.zeros_like(x)
        return self._strengths(x) * (MEMORY_PULL + MEMORY_RATE if self.memory else 1)

    def majoriser(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.memory or not self._ready(x) or self.penalisation_factor == 0:
            return super().majoriser(x)
        gradient, noise = self._slope(x, 1.0, 1.0)
        self._keep(noise)
        rho = self._strengths(x)
        return x - gradient / rho.clamp_min(torch.finfo(rho.dtype).tiny), rho

    def hessian_times(self, x: Tensor, v: Tensor) -> Tensor:
        r"""Central difference of gradients along ``v``, step :math:`10^{-2} c \sigma` in root mean square."""
        rms = v.square().mean((-3, -2, -1), keepdim=True).sqrt()
        if not self._ready(x) or self.penalisation_factor == 0 or not bool((rms > 0).any()):
            return torch.zeros_like(x)
        step = 1e-2 * self._bound.intensity_scale * self.noise_level / rms.clamp_min(torch.finfo(v.dtype).tiny)
        pair, _ = self._slope(torch.stack([x + step * v, x - step * v]))
        return torch.where(rms > 0, (pair[0] - pair[1]) / (2 * step), torch.zeros_like(x))

    def _keep(self, noise: Tensor) -> None:
        if self.memory and noise.dim() == 3:
            self.noise = noise

    def _slope(self, x: Tensor, rate: float = MEMORY_RATE, pull: float = MEMORY_PULL) -> tuple[Tensor, Tensor]:
        """The gradient with the present noise, which is left as it is, and the noise to come (a latent image)."""
        model, noise = self._bound, 0.0 if self.noise is None else self.noise
        c = model.intensity_scale
        if hasattr(model, "removed"):
            removed, to_image = model.removed(x, self.noise_level, noise), model.to_latent_adjoint
        else:
            removed, to_image = model.residual(x + c * noise, self.noise_level) / c, partial(torch.mul, other=c)
        if not self.memory:
            return self._strength(x) * to_image(removed).to(x.device), removed
        change = removed - noise
        if self._sensitivity is not None:
            slope = (rate + pull) * self._strengths(x) / self.penalisation_factor
            share, most = self._updates.bounds(x, slope, self._sensitivity.to(x), c)
            if hasattr(model, "removed"):
                share, most = (model.to_latent(c * v) for v in (share, most))
            change = torch.clamp(change * share, -most, most)
        noise = noise + rate * change
        return self._strength(x) * to_image(noise + pull * change).to(x.device), noise

    def _strength(self, x: Tensor) -> Tensor | float:
        strength = self.penalisation_factor / (self._bound.intensity_scale * self.noise_level) ** 2
        return strength if self._kappa is None else strength * self._kappa.to(x).square()

    def _strengths(self, x: Tensor) -> Tensor:
        """What bounds the Hessian: for voxels larger than the network's, as many times more as they have of those."""
        shares = getattr(self._bound, "latent_shares", torch.ones(1)).clamp_min(1)
        return self._strength(x) * shares.to(x).expand(x.shape)

    def _ready(self, x: Tensor) -> bool:
        """Whether the model is bound, or can be now; if not, neither this image nor the user tells the scale."""
        if self._bound is None:
            if self.geometry is None:
                raise RuntimeError("ScorePenalty: set_up(geometry) call missing")
            if self._scale is None:
                return self.find_scale(x)
            self._bind(self.geometry)
        elif self._estimates and not self._compared:
            self._compare(with_structure(x))
        elif self._early.after_uniform:
            self._watch(with_structure(x))
        self._told = False
        return True

    @property
    def _estimates(self) -> bool:
        """Whether the scale is not the user's, but of each data set."""
        return self._scale is None and hasattr(self.model, "for_data")

    def _watch(self, image: Tensor | None) -> None:
        """After a uniform image: take the scale anew where the image has outgrown it, as in slow algorithms."""
        before = self.intensity_scale
        if image is not None and (found := scale_of(image, self.geometry)) > _EARLY_IMAGE * before:
            logger.warning("the score prior's intensity scale was %.3g, and the image has %.3g now", before, found)
            self.forget()
            self._bind(self.geometry, image)

    def _compare(self, image: Tensor | None) -> None:
        """Find the scale anew if the image that a run starts from shows that it is of other data."""
        self._compared, before = True, self.intensity_scale
        if image is None:
            return
        found = scale_of(image, self.geometry)
        ratio = max(found / before, before / found)
        if ratio > _EARLY_IMAGE:
            other = ratio > _OTHER_DATA
            logger.warning(
                "the score prior's intensity scale, %.3g, %s, and this image has %.3g%s. Call set_up with an image of "
                "the data, or give intensity_scale", before, "is of other data" if other else "was found before",
                found, ", which is taken" if other else ": kept, as early images have smaller ones",
            )  # fmt: skip
            if other:
                self.forget()
                self._bind(self.geometry, image)

    def _bind(self, data: Any, early_image: Tensor | None = None, scale: float | None = None) -> None:
        """Bind the model to an objective, or to the grid alone with an image or a scale that is known."""
        options = {"planes": self.planes, "intensity_scale": scale or self._scale}
        if self._guidance is not None:
            options |= {"anatomical": self._anatomical, "guidance": self._guidance}
        self._bound = self.model.for_data(data, early_image, **options)
        self._compared = True
