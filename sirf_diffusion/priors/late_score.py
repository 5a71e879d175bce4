"""The score prior as scripts and parameter files use it: set up before anything of the image's intensity is known."""

from __future__ import annotations

import logging
import math
import os
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..geometry.images import ImageGeometry
from .base import Penalty
from .score import NOISE_LEVEL, PENALISATION_FACTOR, ScorePenalty

if TYPE_CHECKING:
    from ..models.score_model import ScoreModel
    from ..patient import AnatomicalImage

logger = logging.getLogger(__name__)

_UNIFORM = 1e-3


class LateScorePenalty(Penalty):
    r"""A :class:`~sirf_diffusion.priors.score.ScorePenalty` that finds its image grid and intensity scale by itself.

    .. math:: \beta \nabla R(x) = \beta\, \kappa^2\, \frac{x - c\, D(x / c, \sigma)}{(c \sigma)^2}

    A reconstructor sets a prior up with a grid; the intensity scale ``c`` that connects the network's units with the
    image's is then estimated from the first image that has structure (`sirf_diffusion.models.intensity_scale`), kept
    and logged. A uniform image, with which scripts like to start, tells nothing: there the penalty is zero, with one
    warning. For reproducible strengths give the scale, or start from an OSEM image.

    Parameters
    ----------
    model
        A score model, the name of a bundled one or a file.
    sigma
        Noise level in network units, > 0; may be changed at any time.
    penalisation_factor
        :math:`\beta`.
    planes
        ``"transverse"`` or ``"three"``; None takes ``"three"`` for volumes (``"volume"`` if the network takes those).
    intensity_scale
        ``c`` in image units; None to estimate it.
    device
        Where a model that is loaded here shall run.

    Raises
    ------
    ValueError
        For settings out of range, and for a model that cannot be loaded.
    """

    explicit: ClassVar[bool] = False
    has_majoriser: ClassVar[bool] = True

    def __init__(
        self,
        model: ScoreModel | str | os.PathLike[str],
        sigma: float = NOISE_LEVEL,
        penalisation_factor: float = PENALISATION_FACTOR,
        *,
        planes: str | None = None,
        intensity_scale: float | None = None,
        device: str = "auto",
    ) -> None:
        super().__init__(penalisation_factor)
        if isinstance(model, (str, os.PathLike)):
            from ..models import ScoreModel

            model = ScoreModel.load(model, device=device)
        if intensity_scale is not None and not 0 < intensity_scale < math.inf:
            raise ValueError(f"intensity_scale must be a positive finite number, found {intensity_scale!r}")
        self.model, self.planes = model, planes
        self.geometry: ImageGeometry | None = None
        self._scale = intensity_scale
        self._kappa: Tensor | None = None
        self._anatomical: Tensor | AnatomicalImage | None = None
        self._guidance = 0.0
        self._prior: ScorePenalty | None = None
        self._warned = False
        self.sigma = sigma

    @property
    def sigma(self) -> float:
        """Noise level in network units."""
        return self._sigma

    @sigma.setter
    def sigma(self, value: float) -> None:
        if not 0 < value < math.inf:
            raise ValueError(f"the noise level must be a positive finite number, found {value!r}")
        self._sigma = float(value)
        if self._prior is not None:
            self._prior.sigma = self._sigma

    @property
    def intensity_scale(self) -> float | None:
        """``c`` in image units; None as long as it is not known."""
        return self._scale

    @property
    def settings(self) -> dict[str, Any]:
        own = {"sigma": self.sigma, "intensity_scale": self._scale, "planes": self.planes, "guidance": self._guidance}
        own["kappa"], own["anatomical"] = self._kappa is not None, self._anatomical is not None
        return {**super().settings, **own, "model": getattr(self.model, "hash", None)}

    @property
    def counter(self) -> Any:
        """The model's network counter, or None."""
        return None if self._prior is None else self._prior.counter

    def set_up(self, geometry: ImageGeometry) -> None:
        """Prepare for images of this grid; an estimated intensity scale is kept."""
        if geometry != self.geometry:
            self.geometry, self._prior = geometry, None
        if self._kappa is not None:
            _check_shape(self._kappa, geometry, "kappa")
        _check_anatomical(self._anatomical, geometry)
        if self._scale is not None:
            self._bind()

    def find_scale(self, x: Tensor) -> bool:
        """Take the intensity scale from an image; False, with one warning, if the image is uniform."""
        from ..models.intensity import intensity_scale

        if self.model.geometry == self.geometry:
            self._scale = self.model.intensity_scale
            return True
        image = x.detach().reshape(-1, *x.shape[-3:]).mean(0)
        positive = image[image > 0]
        if not positive.numel() or float(positive.max() - positive.min()) <= _UNIFORM * float(positive.max()):
            if not self._warned:
                logger.warning(
                    "the score prior is zero for now: a uniform image does not tell its intensity scale. Give "
                    "intensity_scale, or start from an OSEM image"
                )
            self._warned = True
            return False
        self._scale = intensity_scale(image.clamp_min(0), self.geometry)
        logger.info("score prior: intensity scale %.6g image units, estimated from the image", self._scale)
        return True

    def set_kappa(self, kappa: Tensor | None) -> None:
        """Image ``[z, y, x]`` whose square scales the penalty locally; None for none."""
        if kappa is not None and self.geometry is not None:
            _check_shape(kappa, self.geometry, "kappa")
        self._kappa = kappa
        if self._prior is not None:
            self._prior.set_kappa(kappa)

    def set_anatomical(self, anatomical: Tensor | AnatomicalImage | None, guidance: float = 0.0) -> None:
        """MR or CT image for a conditional model, with its guidance weight.

        ``[z, y, x]`` on the image grid, or in its own space: then it is resampled when the grid is known.
        """
        if self.geometry is not None:
            _check_anatomical(anatomical, self.geometry)
        self._anatomical, self._guidance, self._prior = anatomical, float(guidance), None

    def value(self, x: Tensor) -> Tensor:
        prior = self._bound(x)
        return torch.zeros(x.shape[:-3], dtype=torch.float64, device=x.device) if prior is None else prior.value(x)

    def gradient(self, x: Tensor) -> Tensor:
        prior = self._bound(x)
        return torch.zeros_like(x) if prior is None else prior.gradient(x)

    def curvature(self, x: Tensor) -> Tensor:
        prior = self._bound(x)
        return torch.zeros_like(x) if prior is None else prior.curvature(x)

    def hessian_times(self, x: Tensor, v: Tensor) -> Tensor:
        prior = self._bound(x)
        return torch.zeros_like(v) if prior is None else prior.hessian_times(x, v)

    def _bound(self, x: Tensor) -> ScorePenalty | None:
        """The prior of this image's grid and intensity; None if neither the image nor the user tells the intensity."""
        if self.geometry is None:
            raise RuntimeError("set_up(geometry) call missing")
        if self._prior is None:
            if self._scale is None and not self.find_scale(x):
                return None
            self._bind()
        self._prior.penalisation_factor = self.penalisation_factor
        return self._prior

    def _bind(self) -> None:
        planes = self.planes or self.model.planes_for(self.geometry)
        options: dict[str, Any] = {}
        if self._anatomical is not None or self._guidance != 0:
            options = {"anatomical": self._anatomical, "guidance": self._guidance}
        model = self.model
        if model.geometry != self.geometry or options:
            model = model.on(self.geometry, self._scale, planes, **options)
        self._prior = ScorePenalty(model, self.sigma, self.penalisation_factor, kappa=self._kappa)


def _check_anatomical(anatomical: Tensor | AnatomicalImage | None, geometry: ImageGeometry) -> None:
    if isinstance(anatomical, Tensor):
        _check_shape(anatomical, geometry, "the anatomical image")
    elif anatomical is not None:
        anatomical.on(geometry)  # an image of another place is refused at once


def _check_shape(image: Tensor, geometry: ImageGeometry, name: str) -> None:
    if tuple(image.shape) != geometry.shape:
        raise ValueError(f"{name} has shape {tuple(image.shape)}, expected {geometry.shape} (z, y, x)")
