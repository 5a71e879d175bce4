"""Scans simulated during a training: efficiencies, background and counts are drawn anew for each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...engines.embedded.acquisition_model import GaussianBlur
from ...engines.embedded.projector import Projector
from ...engines.embedded.scans import Scans
from ...geometry.checks import check_real
from ...geometry.images import ImageGeometry
from ...geometry.projdata import ProjDataGeometry

#: Widths in bins of the scatter-like part of the background, and its share.
_SCATTER_BINS, _SCATTER_SHARE = (21, 45), (0.3, 0.7)


@dataclass(frozen=True)
class ScanOptions:
    """What scans are drawn: ranges of log-uniform counts and of uniform shares; ValueError if one is none.

    Parameters
    ----------
    counts
        Prompts per plane.
    background
        Share of the prompts that is scatter and randoms, in [0, 1).
    background_error
        Largest relative error of the background's estimate, which the likelihood is told.
    efficiency_sd
        Standard deviation of the bins' efficiencies.
    dead_bins
        Share of the bins that count nothing.
    psf_share, psf_fwhm_mm
        How often the scanner blurs the image by up to this width, which the likelihood is not told.
    """

    counts: tuple[float, float] = (2e4, 2e6)
    background: tuple[float, float] = (0.1, 0.5)
    background_error: float = 0.1
    efficiency_sd: tuple[float, float] = (0.02, 0.15)
    dead_bins: float = 0.002
    psf_share: float = 0.3
    psf_fwhm_mm: float = 2.5

    def __post_init__(self) -> None:
        limits = {"counts": (1.0, 1e12), "background": (0.0, 0.95), "efficiency_sd": (0.0, 0.3)}
        for name, ends in limits.items():
            low, high = (check_real(name, value, *ends) for value in getattr(self, name))
            if low > high:
                raise ValueError(f"{name} must be a range, the lower first, found {low:g} to {high:g}")
            object.__setattr__(self, name, (low, high))
        for name in ("background_error", "dead_bins", "psf_share"):
            check_real(name, getattr(self, name), 0.0, 0.9)
        check_real("psf_fwhm_mm", self.psf_fwhm_mm, 0.0, 20.0)


class ScanSimulator:
    """Poisson counts of images of unit intensity scale on one scanner, which is never twice the same.

    Parameters
    ----------
    geometry, projdata
        Image grid, and layout of the data.
    options
        What is drawn.
    device
        Where to project.
    """

    def __init__(
        self,
        geometry: ImageGeometry,
        projdata: ProjDataGeometry,
        options: ScanOptions | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.options, self.geometry = options or ScanOptions(), geometry
        self.projector = Projector(geometry, projdata, device)

    def scans(self, images: Tensor, attenuation: Tensor, rngs: list[np.random.Generator], counts: float | None = None
              ) -> Scans:  # fmt: skip
        """Scans of images ``[B, z, y, x]`` with attenuation in 1/cm, each from its own generator.

        ``counts`` are the prompts per plane of all of them; drawn if omitted.
        """
        options, device = self.options, self.projector.device
        blurred = torch.stack([self._blurred(x, rng) for x, rng in zip(images, rngs, strict=True)]).to(device)
        cm_per_unit = self.geometry.voxel_size[2] / 10
        survival = torch.exp(-cm_per_unit * self.projector.forward(attenuation.to(device)))
        factors = survival * torch.stack([self._efficiencies(rng) for rng in rngs]).to(device)
        trues = factors * self.projector.forward(blurred)
        prompts, told = [], []
        for k, rng in enumerate(rngs):
            number = counts or math.exp(rng.uniform(*np.log(options.counts)))
            share = rng.uniform(*options.background)
            calibration = (1 - share) * number * self.geometry.shape[0] / float(trues[k].sum(dtype=torch.float64))
            factors[k] *= calibration
            expected = calibration * trues[k]
            background = _background(expected, share, rng)
            drawn = rng.poisson((expected + background).double().cpu().numpy())
            prompts.append(torch.from_numpy(drawn.astype(np.float32)))
            told.append(background * rng.uniform(1 - options.background_error, 1 + options.background_error))
        return Scans(self.projector, torch.stack(prompts).to(device), factors, torch.stack(told))

    def _blurred(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        share, width = rng.random(), rng.uniform(0, self.options.psf_fwhm_mm)
        if share >= self.options.psf_share:
            return image
        return GaussianBlur(self.geometry, width, image.device)(image)

    def _efficiencies(self, rng: np.random.Generator) -> Tensor:
        shape, options = self.projector.projdata.shape, self.options
        values = rng.standard_normal(shape, np.float32) * np.float32(rng.uniform(*options.efficiency_sd)) + 1
        values = np.maximum(values, np.float32(0.3))
        values[rng.random(shape, np.float32) < options.dead_bins] = 0
        return torch.from_numpy(values)


def _background(trues: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Expected background that is ``share`` of the prompts: part of it follows the trues, smeared out, part is even."""
    width, scattered = int(rng.integers(*_SCATTER_BINS)) | 1, rng.uniform(*_SCATTER_SHARE)
    smooth = _running_mean(_running_mean(trues, width), width)
    total = share / (1 - share) * trues.sum()
    return total * (scattered * smooth / smooth.sum() + (1 - scattered) / smooth.numel())


def _running_mean(values: Tensor, width: int) -> Tensor:
    """Mean over an odd number of neighbouring bins, zero beyond the last ones."""
    sums = torch.nn.functional.pad(values, (width // 2 + 1, width // 2)).cumsum(-1)
    return (sums[..., width:] - sums[..., :-width]).clamp(min=0) / width
