"""Denoising error against noise level, beside the best Gaussian filter."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..images import ImageGeometry
from ..models.intensity import gaussian_smooth
from ..models.networks import network_time
from ..models.schedules import NoiseSchedule, denoised_and_noise

SIGMAS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)


@dataclass(frozen=True)
class ValidationSet:
    """Fixed slices with fixed noise: ``slices`` ``[n, 1, h, w]`` of intensity scale 1 and their orientations."""

    slices: list[Tensor]
    planes: list[int]
    schedule: NoiseSchedule

    @classmethod
    def from_volumes(cls, volumes: Tensor, schedule: NoiseSchedule, per_plane: int = 4) -> ValidationSet:
        """Equidistant slices of each orientation from volumes ``[n, z, y, x]``."""
        slices, planes = [], []
        for volume in volumes:
            for plane in range(3):
                size = volume.shape[plane]
                for k in range(per_plane):
                    slices.append(volume.select(plane, int(size * (0.25 + 0.55 * k / (per_plane - 1)))).float()[None])
                    planes.append(plane)
        return cls(slices, planes, schedule)

    def network_errors(self, network: nn.Module, prediction: str) -> dict[float, float]:
        """Root mean squared error of ``E[u0 | u0 + sigma z]`` over all slices, by noise level."""

        def denoise(noisy: Tensor, sigma: float, plane: int) -> Tensor:
            t = self.schedule.t_of_sigma(sigma)
            gamma, nu = self.schedule.gamma(t), self.schedule.nu(t)
            time = torch.full((len(noisy),), float(network_time("log_sigma", self.schedule, t)))
            output = network(gamma * noisy, time, class_labels=torch.full((len(noisy),), plane))
            return denoised_and_noise(prediction, output, gamma * noisy, gamma, nu)[0]

        return {sigma: self._error(lambda u, plane, s=sigma: denoise(u, s, plane), sigma) for sigma in SIGMAS}

    def gaussian_errors(self) -> dict[float, float]:
        """The same for a Gaussian filter whose width is the best of a scan, at each noise level."""
        errors = {}
        for sigma in SIGMAS:
            scan = []
            for fwhm in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 10.0, 14.0, 20.0, 30.0):
                scan.append(self._error(lambda u, plane, f=fwhm: _smooth(u, f), sigma))
            errors[sigma] = min(scan)
        return errors

    @torch.inference_mode()
    def _error(self, denoise: Callable[[Tensor, int], Tensor], sigma: float) -> float:
        total, count = 0.0, 0
        groups: dict[tuple[int, torch.Size], list[Tensor]] = {}
        for image, plane in zip(self.slices, self.planes, strict=True):
            groups.setdefault((plane, image.shape), []).append(image)
        for (plane, _), images in groups.items():
            clean = torch.stack(images)
            noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(int(1000 * sigma) + plane))
            difference = denoise(clean + sigma * noise, plane) - clean
            total += float(difference.double().square().sum())
            count += difference.numel()
        return math.sqrt(total / count)


def _smooth(images: Tensor, fwhm_pixels: float) -> Tensor:
    geometry = ImageGeometry((1, *images.shape[-2:]), (1.0, 1.0, 1.0))
    return gaussian_smooth(images, geometry, fwhm_pixels)
