"""How noisy an image is, measured with the score model itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .intensity import THRESHOLD, gaussian_smooth

if TYPE_CHECKING:
    from .score_model import ScoreModel

LOWEST, HIGHEST = 0.02, 2.0
_NUM_BISECTIONS = 8
_FWHM_MM = 8.0


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

    Raises
    ------
    ValueError
        If the image is not finite or shows no activity.
    """
    if not bool(torch.isfinite(x).all()):
        raise ValueError("the noise level needs a finite image, found NaN or infinite voxels")
    smoothed = gaussian_smooth(x, model.geometry, _FWHM_MM)
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
