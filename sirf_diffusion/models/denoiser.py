"""Enhancement: the noise taken out of an image that is there already, by one denoising or a chain of them."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..geometry.checks import check_count, check_finite, check_real
from ..geometry.gaussian import gaussian_smooth
from ..geometry.images import ImageGeometry
from .intensity import FWHM_MM, THRESHOLD

if TYPE_CHECKING:
    from .score_model import ScoreModel

logger = logging.getLogger(__name__)

LAST_NOISE_LEVEL = 0.02
#: Bounds of an estimated noise level.
LOWEST, HIGHEST = 0.02, 2.0
_NUM_BISECTIONS = 8


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
        `estimate_noise_level`.
    num_steps
        Network evaluations.
    planes
        ``"transverse"`` or ``"three"``; None takes ``"three"`` for volumes (``"volume"`` if the network takes those).
    intensity_scale
        Image units per network unit, > 0; None estimates it for each image.
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
        if intensity_scale is not None:
            check_real("intensity_scale", intensity_scale, open_below=True)
        self.num_steps = check_count("num_steps", num_steps)
        self.model, self.planes, self.intensity_scale = model, planes, intensity_scale
        self.used_noise_level: float | None = None
        self.noise_level = noise_level

    @property
    def noise_level(self) -> float | None:
        """Noise level in network units; None to estimate it."""
        return self._noise_level

    @noise_level.setter
    def noise_level(self, value: float | None) -> None:
        self._noise_level = None if value is None else check_real("the noise level", value, open_below=True)

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


def estimate_noise_level(model: ScoreModel, x: Tensor) -> float:
    r"""Noise level at which the model takes away as much as it was told to expect.

    The :math:`\sigma` where :math:`\mathrm{rms}(x - c\,D(x / c, \sigma)) = c\,\sigma` over the emitting voxels: told
    too small a level, a good denoiser removes all that it was told and would remove more; told too large a one, it
    removes the noise there is and little else. The crossing is found by bisection of :math:`\log \sigma`, 10 network
    evaluations. Noise of a reconstructed image is correlated and larger where there is more activity: the result is
    its mean amplitude, a place to start from and not a measurement.

    Parameters
    ----------
    model
        Bound to the image grid.
    x
        Image ``[z, y, x]``, image units.

    Returns
    -------
    float
        Noise level in network units, between 0.02 and 2.
    """
    check_finite(x, "the image whose noise level is estimated")
    smoothed = gaussian_smooth(x, model.geometry, FWHM_MM)
    if float(smoothed.max()) <= 0:
        raise ValueError("the noise level needs an image with activity")
    emitting = smoothed > THRESHOLD * smoothed.max()

    def excess(sigma: float) -> float:
        removed = model.residual(x, sigma)[emitting] / model.intensity_scale
        return float(removed.double().square().mean().sqrt()) / sigma - 1

    low, high = math.log(LOWEST), math.log(HIGHEST)
    if excess(LOWEST) <= 0:
        return LOWEST
    if excess(HIGHEST) >= 0:
        return HIGHEST
    for _ in range(_NUM_BISECTIONS):
        middle = (low + high) / 2
        if excess(math.exp(middle)) > 0:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)
