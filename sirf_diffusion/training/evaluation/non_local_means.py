"""Non-local means, the strongest filter without training that an evaluation compares with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

#: Strengths ``h / sigma`` that are tried.
STRENGTHS = (0.3, 0.5, 0.7, 1.0)
REACH = 6
PATCH = 5


def non_local_means(images: Tensor, sigma: float, strengths: tuple[float, ...] = STRENGTHS) -> list[Tensor]:
    r"""Weighted mean over the pixels whose neighbourhoods look alike.

    ``sum_k w_k u_k / sum_k w_k`` over the displacements ``k`` of up to 6 pixels, with
    ``w_k = exp(-max(d_k^2 - 2 sigma^2, 0) / (h sigma)^2)`` and ``d_k^2`` the mean squared difference of the 5 x 5
    patches (Buades, Coll and Morel 2005, doi:10.1109/CVPR.2005.38). Neighbourhoods are mirrored at the border.

    Parameters
    ----------
    images
        Noisy slices ``[n, 1, h, w]``, larger than 8 pixels.
    sigma
        Standard deviation of the noise.
    strengths
        How unlike patches may be, ``h``, in units of ``sigma``; positive.

    Returns
    -------
    list of Tensor
        The filtered slices for each strength.
    """
    margin = REACH + PATCH // 2
    height, width = images.shape[-2:]
    wide = pad(images, (margin,) * 4, mode="reflect")
    inner = PATCH // 2
    centre = wide[..., REACH : REACH + height + 2 * inner, REACH : REACH + width + 2 * inner]
    totals, weights = ([torch.zeros_like(images) for _ in strengths] for _ in range(2))
    for dy in range(2 * REACH + 1):
        for dx in range(2 * REACH + 1):
            other = wide[..., dy : dy + height + 2 * inner, dx : dx + width + 2 * inner]
            excess = (avg_pool2d((other - centre).square(), PATCH, 1) - 2 * sigma * sigma).clamp_min_(0)
            shifted = other[..., inner : inner + height, inner : inner + width]
            for k, strength in enumerate(strengths):
                weight = torch.exp(excess / -((strength * sigma) ** 2))
                totals[k].addcmul_(weight, shifted)
                weights[k] += weight
    return [total / weight for total, weight in zip(totals, weights, strict=True)]
