"""Rivals of enhancement that need no training: filters, and a deep image prior."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sirf_diffusion.geometry.gaussian import gaussian_smooth
from sirf_diffusion.geometry.images import ImageGeometry

Image = Tensor
#: Of the deep image prior, that are tried.
DIP_STEPS = (50, 100, 150, 200)


def filters() -> dict[str, dict[Any, Callable[[Image, ImageGeometry], Image]]]:
    """By name, and setting."""
    from skimage.restoration import denoise_bilateral, denoise_nl_means

    def numpy(function: Callable[[np.ndarray], np.ndarray], x: Image, grid: ImageGeometry) -> Image:
        return torch.from_numpy(np.ascontiguousarray(function(x.double().numpy()))).float()

    def slices(function: Callable[..., np.ndarray], **options: Any) -> Callable[[np.ndarray], np.ndarray]:
        return lambda volume: np.stack([function(plane, **options) for plane in volume])

    def bm4d(sigma: float) -> Callable[[np.ndarray], np.ndarray]:
        from bm4d import bm4d as block_matching

        def body(volume: np.ndarray) -> np.ndarray:
            y, x = (np.flatnonzero((volume > 0.1).mean((0, other)) > 0.02) for other in (2, 1))
            part, result = (slice(None), slice(y[0], y[-1] + 1), slice(x[0], x[-1] + 1)), volume.copy()
            result[part] = block_matching(volume[part], sigma)
            return result

        return body

    known: dict[str, dict[Any, Any]] = {
        "gaussian": {w: partial(lambda x, grid, w: gaussian_smooth(x, grid, w), w=w) for w in (4, 6, 8, 10, 13, 16)},
        "bilateral": {
            (c, s): partial(numpy, slices(denoise_bilateral, sigma_color=c, sigma_spatial=s))
            for c, s in itertools.product((0.5, 1.0, 2.0), (1.0, 2.0))
        },
        "nlm": {
            h: partial(numpy, slices(denoise_nl_means, h=h, patch_size=5, patch_distance=6))
            for h in (0.1, 0.2, 0.4, 0.8)
        },
    }
    known["bm4d"] = {s: partial(numpy, bm4d(s)) for s in (0.2, 0.4, 0.8)}
    return known


def deep_image_prior(noisy: Image, ct: Image, steps: Sequence[int], axial_fwhm: float) -> dict[int, Image]:
    """A UNet of its own for each case, from CT to the noisy slices, after so many steps (Cui et al. 2019, EJNMMI 46).

    Planes are averaged along the axis first, by a Gaussian of ``axial_fwhm`` mm, so that it has their counts too.
    """
    from monai.networks.nets.basic_unet import BasicUNet

    line = ImageGeometry(tuple(noisy.shape), (4.0, 1e5, 1e5))
    target = gaussian_smooth(noisy, line, axial_fwhm) if axial_fwhm else noisy
    pad = [side for n in (noisy.shape[2], noisy.shape[1]) for side in (0, -n % 16)]
    shown, target = (functional.pad(x, pad)[:, None] for x in (ct, target))
    torch.manual_seed(0)
    network = BasicUNet(2, 1, 1, features=(16, 16, 32, 64, 64, 16))
    optimiser, found = torch.optim.Adam(network.parameters(), lr=2e-3), {}
    for step in range(1, max(steps) + 1):
        optimiser.zero_grad()
        image = network(shown)
        (image - target).square().mean().backward()
        optimiser.step()
        if step in steps:
            found[step] = image.detach()[:, 0, : noisy.shape[1], : noisy.shape[2]].clamp_min(0)
    return found


def tuned_deep_image_prior(noisy: dict[int, Image], tuning: list[Any]) -> Callable[[Any], Image]:
    """Steps and smoothing along the axis with the least squared error of the tuning subjects."""
    errors = {}
    for fwhm in (0.0, 6.0):
        found = [(deep_image_prior(noisy[c.number], c.ct, DIP_STEPS, fwhm), c.truth) for c in tuning]
        for step in DIP_STEPS:
            errors[step, fwhm] = sum(float((images[step] - truth).square().mean()) for images, truth in found)
    step, fwhm = min(errors, key=errors.__getitem__)
    print(f"dip: {step} steps, {fwhm:g} mm", flush=True)
    return lambda case: deep_image_prior(noisy[case.number], case.ct, (step,), fwhm)[step]
