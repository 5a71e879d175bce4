"""Enhancement: the noise taken out of an image that is there already, by one denoising or a chain of them."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..geometry.images import ImageGeometry
from .noise_level import estimate_noise_level

if TYPE_CHECKING:
    from .score_model import ScoreModel

logger = logging.getLogger(__name__)

LAST_NOISE_LEVEL = 0.02


class Denoiser:
    r"""One denoising :math:`x \mapsto c\,D(x / c, \sigma)`, or a deterministic chain of them down to little noise.

    With one step the result is the mean of all clean images that may lie behind ``x``: smooth where the image does not
    tell. With more, the noise level falls geometrically from :math:`\sigma` to 0.02 and each step keeps the noise that
    it found (DDIM with ``eta = 0``, Song et al. 2021, arXiv:2010.02502): sharper, less cautious. Negative values, which
    no activity has, become 0.

    Parameters
    ----------
    model
        Score model, not bound to a grid.
    noise_level
        Noise relative to the mean activity, > 0; None estimates it for each image, see
        `sirf_diffusion.models.noise_level.estimate_noise_level`.
    num_steps
        Network evaluations.
    planes
        ``"transverse"`` or ``"three"``; None takes ``"three"`` for volumes (``"volume"`` if the network takes those).
    intensity_scale
        Image units per network unit, > 0; None estimates it for each image.

    Raises
    ------
    ValueError
        For settings out of range.
    """

    def __init__(
        self,
        model: ScoreModel,
        noise_level: float | None = None,
        *,
        num_steps: int = 1,
        planes: str | None = None,
        intensity_scale: float | None = None,
    ) -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, found {num_steps}")
        if intensity_scale is not None and not 0 < intensity_scale < math.inf:
            raise ValueError(f"intensity_scale must be a positive finite number, found {intensity_scale!r}")
        self.model, self.num_steps, self.planes, self.intensity_scale = model, num_steps, planes, intensity_scale
        self.used_noise_level: float | None = None
        self.noise_level = noise_level

    @property
    def noise_level(self) -> float | None:
        """Noise level in network units; None to estimate it."""
        return self._noise_level

    @noise_level.setter
    def noise_level(self, value: float | None) -> None:
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"the noise level must be a positive finite number, found {value!r}")
        self._noise_level = value

    def set_anatomical(self, anatomical: Any, guidance: float = 0.0) -> None:
        """MR or CT image for a conditional model and its guidance weight, see `ScoreModel.guided_by`."""
        self.model = self.model.guided_by(anatomical, guidance)

    def __call__(self, x: Tensor, geometry: ImageGeometry) -> Tensor:
        """The denoised image ``[z, y, x]``, new, image units; ``used_noise_level`` is what was taken for its noise."""
        model = self.model.for_data(geometry, x.clamp(min=0), planes=self.planes, intensity_scale=self.intensity_scale)
        sigma = self.noise_level or estimate_noise_level(model, x)
        self.used_noise_level = sigma
        logger.info(
            "denoising: noise level %.3g%s, intensity scale %.6g image units, %d step(s)",
            sigma,
            "" if self.noise_level else " (estimated)",
            model.intensity_scale,
            self.num_steps,
        )
        return self._denoised(model, x, sigma).to(x).clamp_(min=0)

    def _denoised(self, model: ScoreModel, x: Tensor, sigma: float) -> Tensor:
        schedule = model.schedule
        t = float(schedule.t_of_sigma(sigma))
        times = [t]
        if self.num_steps > 1:
            t_end = float(schedule.t_of_sigma(min(LAST_NOISE_LEVEL, sigma / 2)))
            times = [float(v) for v in schedule.timesteps(self.num_steps - 1, t_end, "log_sigma", t_start=t)]
        with torch.no_grad():
            u = schedule.gamma(t) * model.to_latent(x)
            for now, following in zip(times, [*times[1:], None], strict=True):
                u0, eps = model.predict(u, now)
                if following is not None:
                    u = schedule.ddim_step(u0, eps, now, following)
            return model.to_image(u0)
