"""Images of a lower dose, from a clean one: what enhancement models are trained on, and what their chains add back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from ..engines.embedded.projector import Projector
from ..engines.embedded.scans import Scans
from ..engines.embedded.subsets import largest_num_subsets
from ..geometry.gaussian import gaussian_smooth
from ..geometry.images import ImageGeometry
from ..geometry.projdata import ProjDataGeometry
from ..geometry.scanners import Scanner
from ..models.doses import thinned
from ..models.enhancement import LowDoseConfig

#: Attenuation of water in 1/mm; and in a typical body, where what is diffused does not tell (a latent).
_WATER_PER_MM, _TYPICAL_ATTENUATION = 0.0096, 0.15
_SUBSETS = 14
_SMALLEST = 1e-9


@dataclass(frozen=True)
class LowDose:
    """Noisy images of what is diffused, ``[n, c, (z,) y, x]`` of voxels of this size, for doses ``[n]``.

    ``noise`` is one of `~sirf_diffusion.models.latent.NOISES`. Each plane is a scan of its own in a ring of detectors
    around it (embedded projector).

    ``binomial``: Poisson counts of the standard dose, with attenuation of water where there is activity and a uniform
    background, exactly thinned and reconstructed by OSEM. ``sinogram``: the image, or latent, plus filtered
    back-projection of the deviations that Poisson counts of its projections have; the published process adds them in
    many steps, of which this is the sum. ``gaussian``: white noise of standard deviation ``gaussian_sd / sqrt(dose)``.
    """

    scan: LowDoseConfig
    noise: str
    voxel_size: tuple[float, float, float]

    def __call__(self, clean: Tensor, dose: Tensor, generator: torch.Generator, fwhm: Tensor | None = None) -> Tensor:
        """Images as noisy as those of the doses, in the units of the clean ones.

        ``fwhm`` ``[n]`` in mm is that of a Gaussian after the reconstruction, of noise ``binomial``.
        """
        if self.noise == "gaussian":
            sd = self.scan.gaussian_sd / dose.sqrt().reshape(-1, *[1] * (clean.ndim - 1))
            return clean + sd * torch.randn(clean.shape, generator=generator)
        planes = clean.movedim(1, 2).flatten(0, 2) if clean.ndim == 5 else clean.flatten(0, 1)
        doses = dose.repeat_interleave(len(planes) // len(dose))
        height, width = planes.shape[-2:]
        side = max(height, width)
        # the corners of a patch are seen, too, if the grid is as wide as its diagonal
        side = 2 * math.ceil(side * (math.sqrt(2) if clean.ndim == 5 else 1) / 2)
        pad = [(side - width) // 2, side - width - (side - width) // 2,
               (side - height) // 2, side - height - (side - height) // 2]  # fmt: skip
        square = functional.pad(planes, pad)[:, None]
        ring = _ring(side, self.voxel_size)
        noisy = (self._binomial if self.noise == "binomial" else self._sinogram)(ring, square, doses, generator)
        noisy = noisy[..., pad[2] : side - pad[3], pad[0] : side - pad[1]][:, 0]
        if clean.ndim == 5:
            noisy = noisy.reshape(len(clean), clean.shape[2], clean.shape[1], height, width).movedim(2, 1)
        noisy = noisy.reshape(clean.shape)
        if fwhm is None or self.noise != "binomial":
            return noisy
        return torch.stack([self._smoothed(*pair) for pair in zip(noisy, fwhm.tolist(), strict=True)])

    def _smoothed(self, image: Tensor, fwhm: float) -> Tensor:
        if fwhm <= 0:
            return image
        grid = ImageGeometry(tuple(image.shape[-3:]), self.voxel_size)  # channels of a plane are its neighbours
        return gaussian_smooth(image, grid, fwhm)

    def _counts_per_unit(self, ring: _Ring) -> float:
        return self.scan.counts_per_ml * math.prod(self.voxel_size) / 1000 / ring.centre_sensitivity

    def scans(self, planes: Tensor, dose: Tensor, generator: torch.Generator) -> Scans:
        """Exactly thinned counts of square planes ``[n, 1, y, x]``, at doses ``[n]``."""
        ring, clean = _ring(planes.shape[-1], self.voxel_size), planes.clamp_min(0)
        dose = dose.float()[:, None, None, None]
        body = gaussian_smooth(clean, ring.projector.geometry, 12.0)
        body = (body > 0.1 * body.amax((-3, -2, -1), keepdim=True)).float()
        path = ring.projector.forward(body) * self.voxel_size[2]
        factors = self._counts_per_unit(ring) * torch.exp(-_WATER_PER_MM * path)
        trues = factors * ring.projector.forward(clean)
        background = (self.scan.background * trues.mean((-3, -2, -1), keepdim=True)).clamp_min(_SMALLEST)
        standard = torch.poisson(trues + background, generator=generator)
        return Scans(ring.projector, thinned(standard, dose, generator), factors * dose, background * dose)

    def _binomial(self, ring: _Ring, clean: Tensor, dose: Tensor, generator: torch.Generator) -> Tensor:
        scans = self.scans(clean, dose, generator)
        image = scans.osem(self.scan.num_iterations, ring.num_subsets, ring.inside)
        return torch.where(ring.inside, image, clean)

    def _sinogram(self, ring: _Ring, values: Tensor, dose: Tensor, generator: torch.Generator) -> Tensor:
        low, dose = values.amin((-3, -2, -1), keepdim=True).clamp(max=0), dose.float()[:, None, None, None]
        per_unit = _TYPICAL_ATTENUATION * self._counts_per_unit(ring)
        mean = (per_unit * ring.projector.forward(values - low)).clamp_min(0)
        deviation = (torch.poisson(mean * dose, generator=generator) / dose - mean) / per_unit
        return values + ring.filtered_back_projection(deviation)


class _Ring:
    """Detectors around one plane of square size, with parallel views."""

    def __init__(self, side: int, voxel_size: tuple[float, float, float]) -> None:
        size = voxel_size[2]
        views = max(28, side // 28 * 28)
        bins = side + 1
        scanner = Scanner("ring", 1, 2 * views, side * size, 0.0, voxel_size[0], size, 0.0, bins, bins)
        data = ProjDataGeometry.from_scanner(scanner, 1, 0, views, bins, True)
        self.projector = Projector(ImageGeometry((1, side, side), voxel_size), data)
        self.num_subsets = largest_num_subsets(self.projector.basic_views, _SUBSETS)
        sensitivity = self.projector.adjoint(torch.ones(data.shape))
        self.inside = sensitivity > 0.5 * sensitivity.max()
        self.centre_sensitivity = float(sensitivity[0, side // 2, side // 2])
        frequency = torch.fft.rfftfreq(2 * bins)
        self._ramp = frequency * (0.5 + 0.5 * torch.cos(2 * math.pi * frequency))
        disk = self.inside.float()
        middle = self._filtered(self.projector.forward(disk))[0, side // 4 : -side // 4, side // 4 : -side // 4]
        self._gain = 1 / float(middle.mean())

    def filtered_back_projection(self, data: Tensor) -> Tensor:
        """Linear; of projections of an image, the image, a little smoother."""
        return self._gain * self._filtered(data)

    def _filtered(self, data: Tensor) -> Tensor:
        bins = data.shape[-1]
        spectrum = torch.fft.rfft(data, 2 * bins) * self._ramp
        return self.projector.adjoint(torch.fft.irfft(spectrum, 2 * bins)[..., :bins].contiguous())


@lru_cache(4)
def _ring(side: int, voxel_size: tuple[float, float, float]) -> _Ring:
    return _Ring(side, voxel_size)
