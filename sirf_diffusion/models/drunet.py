"""DRUNet: a convolutional denoiser that is told the noise level, after Zhang et al. 2021, arXiv:2008.13751."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

_CONVOLUTIONS = {2: (nn.Conv2d, nn.ConvTranspose2d), 3: (nn.Conv3d, nn.ConvTranspose3d)}


class DRUNet(nn.Module):
    r"""Clean image of a noisy one, scale-equivariant by construction.

    A U-net of residual blocks without biases and with ReLU: :math:`D(a w, a\sigma) = a D(w, \sigma)` for every
    :math:`a > 0`, so that the intensity scale of its training images does not matter. It is called as all networks here
    are, with :math:`w / s`, :math:`s = \sqrt{1 + \sigma^2}`, and the time input ``"log_sigma"``,
    :math:`250 \ln \sigma`; it returns :math:`s D(w / s, \sigma / s) = D(w, \sigma)` (prediction ``"x0"``).

    Each level below the first has half the size and ``num_res_blocks`` residual blocks on the way down and up. Images
    in: the noisy one, and the anatomical one of a conditional network.
    """

    def __init__(
        self, channels: Sequence[int], num_res_blocks: int, in_channels: int = 1, spatial_dims: int = 2
    ) -> None:
        super().__init__()
        convolution, transposed = _CONVOLUTIONS[spatial_dims]

        def blocks(width: int) -> list[nn.Module]:
            return [ResidualBlock(width, spatial_dims) for _ in range(num_res_blocks)]

        levels = list(pairwise(channels))
        # The noise level comes as the first image.
        self.head = convolution(1 + in_channels, channels[0], 3, padding=1, bias=False)
        self.downs = nn.ModuleList(
            nn.Sequential(*blocks(wide), convolution(wide, narrow, 2, stride=2, bias=False)) for wide, narrow in levels
        )
        self.body = nn.Sequential(*blocks(channels[-1]))
        self.ups = nn.ModuleList(
            nn.Sequential(transposed(narrow, wide, 2, stride=2, bias=False), *blocks(wide))
            for wide, narrow in reversed(levels)
        )
        self.tail = convolution(channels[0], 1, 3, padding=1, bias=False)

    def forward(self, images: Tensor, time: Tensor, class_labels: Tensor | None = None) -> Tensor:
        sigma = torch.exp(time.float() / 250).reshape(-1, *[1] * (images.ndim - 1)).to(images.dtype)
        scale = torch.sqrt(1 + sigma * sigma)
        level = (sigma / scale).expand(-1, -1, *images.shape[2:])
        values = self.head(torch.cat((level, images), 1))
        kept = [values]
        for down in self.downs:
            kept.append(down(kept[-1]))
        values = self.body(kept[-1])
        for up, skipped in zip(self.ups, reversed(kept[1:]), strict=True):
            values = up(values + skipped)
        return self.tail(values + kept[0]) * scale


class ResidualBlock(nn.Module):
    """``x + conv(relu(conv(x)))``."""

    def __init__(self, width: int, spatial_dims: int) -> None:
        super().__init__()
        convolution = _CONVOLUTIONS[spatial_dims][0]
        self.first = convolution(width, width, 3, padding=1, bias=False)
        self.second = convolution(width, width, 3, padding=1, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        return values + self.second(torch.relu(self.first(values)))
