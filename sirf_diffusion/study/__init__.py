"""How good an image is: metrics, choice of parameters, figures."""

from __future__ import annotations

from .metrics import (
    Ensemble,
    ImageQuality,
    bias_and_sd,
    contrast_recovery,
    contrast_to_noise,
    image_quality,
    nrmse,
    psnr,
    ssim,
)

__all__ = [
    "Ensemble",
    "ImageQuality",
    "bias_and_sd",
    "contrast_recovery",
    "contrast_to_noise",
    "image_quality",
    "nrmse",
    "psnr",
    "ssim",
]
