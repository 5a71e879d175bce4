"""Denoisers of any kind as networks of a score model, in Python: nothing is converted, and nothing can be saved."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...geometry.checks import check_real


class DenoiserNetwork(nn.Module):
    """A function of noisy images and their noise level as the network of a `ScoreModel`.

    For networks whose architecture model files cannot describe: deepinv's denoisers, TorchScript and ``torch.export``
    modules, anything that can be called. Loading such a program runs it: do so only with files that you trust.

    Parameters
    ----------
    denoise
        ``f(noisy [B, 1, H, W], sigma) -> clean [B, 1, H, W]`` with additive white noise of standard deviation
        ``sigma`` (a float); a module or any callable. It may refuse sizes that it cannot take.
    brightness
        What the mean activity is in its training images: the image is given times this, and the noise level too. About
        0.2 for a denoiser of pictures between 0 and 1; without influence on one that is scale-equivariant, like
        DRUNet. Positive, or a ValueError.

    Examples
    --------
    A denoiser that takes nothing for noise:

    >>> from sirf_diffusion.models import ScoreModel, VESchedule
    >>> network = DenoiserNetwork(lambda noisy, sigma: noisy, brightness=0.2)
    >>> model = ScoreModel(network, VESchedule(0.01, 10.0), "x0", (2.0, 2.0, 2.0), time_input="log_sigma", multiple=8)
    """

    def __init__(self, denoise: Callable[[Tensor, float], Tensor], *, brightness: float = 1.0) -> None:
        super().__init__()
        self.denoise, self.brightness = denoise, check_real("brightness", brightness, open_below=True)

    def forward(self, images: Tensor, time: Tensor, class_labels: Tensor | None = None) -> Tensor:
        # A score model gives all images of a call the same time, 250 ln sigma, and w / sqrt(1 + sigma^2).
        sigma = math.exp(float(time[0]) / 250)
        factor = self.brightness * math.sqrt(1 + sigma * sigma)
        return torch.as_tensor(self.denoise(images * factor, self.brightness * sigma)) / self.brightness
