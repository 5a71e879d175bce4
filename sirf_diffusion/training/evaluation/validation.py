"""Denoising error against noise level on held-out slices or cubes, beside the filters that need no training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...geometry.images import ImageGeometry
from ...models.intensity import gaussian_smooth
from ...models.networks import network_time
from ...models.schedules import NoiseSchedule, denoised_and_noise
from .non_local_means import STRENGTHS, non_local_means

SIGMAS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
GAUSSIAN_FWHM_PIXELS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 10.0, 14.0, 20.0, 30.0)
_BATCH = 48
_BATCH_OF_CUBES = 2

#: ``f(noisy [n, 1, h, w], sigma, plane, anatomy [n, 0 or 1, h, w]) -> clean [n, 1, h, w]``.
Denoiser = Callable[[Tensor, float, int, Tensor], Tensor]


@dataclass(frozen=True)
class ValidationSet:
    """Fixed slices with fixed noise, and their orientations.

    ``slices`` are ``[1, h, w]`` of intensity scale 1, or ``[2, h, w]`` with the anatomical image as second channel; for
    a network of volumes they are cubes, ``[1 or 2, d, h, w]``, of orientation 0.
    """

    slices: list[Tensor]
    planes: list[int]
    schedule: NoiseSchedule

    @classmethod
    def from_volumes(
        cls,
        volumes: Tensor,
        schedule: NoiseSchedule,
        per_plane: int = 4,
        *,
        anatomies: Tensor | None = None,
        conditional: bool = False,
        planes: tuple[int, ...] = (0, 1, 2),
        multiple: int = 1,
        cube: int | None = None,
    ) -> ValidationSet:
        """Equidistant slices of each orientation from volumes ``[n, z, y, x]``; or cubes of this side, if it is given.

        For a conditional network they come with the slices of ``anatomies``, zeros if there are none. Slices are padded
        by air to a multiple of what the network needs.
        """
        slices, orientations = [], []
        stacks = [volumes]
        if conditional:
            stacks.append(torch.zeros_like(volumes) if anatomies is None else anatomies)
        for k in range(len(volumes)):
            if cube is not None:
                slices += _cubes(torch.stack([stack[k] for stack in stacks]).float(), cube)
                continue
            for plane in planes:
                size = volumes.shape[1 + plane]
                for i in range(per_plane):
                    index = int(size * (0.25 + 0.55 * i / (per_plane - 1)))
                    image = torch.stack([stack[k].select(plane, index).float() for stack in stacks])
                    slices.append(_padded(image, multiple))
                    orientations.append(plane)
        return cls(slices, orientations or [0] * len(slices), schedule)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The noise levels that the schedule has."""
        low, high = (self.schedule.sigma(float(t)) for t in (self.schedule.t_min, self.schedule.t_max))
        return tuple(sigma for sigma in SIGMAS if low <= sigma <= high)

    def network_errors(self, network: nn.Module, prediction: str, time_input: str = "log_sigma") -> dict[float, float]:
        """Root mean squared error of ``E[u0 | u0 + sigma z]`` over all slices, by noise level."""
        denoise = network_denoiser(network, self.schedule, prediction, time_input)
        return {sigma: self.error(denoise, sigma) for sigma in self.sigmas}

    def gaussian_errors(self) -> dict[float, float]:
        """The same for a Gaussian filter whose width is the best of a scan, at each noise level."""
        return {
            sigma: min(self.error(lambda u, *_, f=fwhm: _smooth(u, f), sigma) for fwhm in GAUSSIAN_FWHM_PIXELS)
            for sigma in self.sigmas
        }

    @torch.inference_mode()
    def non_local_means_errors(self) -> dict[float, float]:
        """The same for a non-local means filter whose strength is the best of a scan."""
        errors = {}
        for sigma in self.sigmas:
            totals, count = [0.0] * len(STRENGTHS), 0
            for clean, noise, _, _ in self.groups(sigma):
                # Those of cubes are of their slices.
                noisy, truth = (_as_slices(images) for images in (clean + sigma * noise, clean))
                for k, image in enumerate(non_local_means(noisy, sigma)):
                    totals[k] += float((image - truth).double().square().sum())
                count += clean.numel()
            errors[sigma] = math.sqrt(min(totals) / count)
        return errors

    @torch.inference_mode()
    def error(self, denoise: Denoiser, sigma: float, scale: float = 1.0) -> float:
        """Root mean squared error of a denoiser at a noise level, with all images times ``scale``."""
        total, count = 0.0, 0
        for clean, noise, anatomy, plane in self.groups(sigma):
            clean = scale * clean
            difference = denoise(clean + sigma * noise, sigma, plane, anatomy) - clean
            total += float(difference.double().square().sum())
            count += difference.numel()
        return math.sqrt(total / count)

    def groups(self, sigma: float) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
        """Clean slices, their noise (of unit variance), anatomies, and the orientation, by orientation and shape."""
        groups: dict[tuple[int, torch.Size], list[Tensor]] = {}
        for image, plane in zip(self.slices, self.planes, strict=True):
            groups.setdefault((plane, image.shape), []).append(image)
        for (plane, _), images in groups.items():
            stack = torch.stack(images)
            generator = torch.Generator().manual_seed(int(1000 * sigma) + plane)
            noise = torch.randn((len(stack), 1, *stack.shape[2:]), generator=generator)
            batch = _BATCH if stack.ndim == 4 else _BATCH_OF_CUBES
            for first in range(0, len(stack), batch):
                part = slice(first, first + batch)
                yield stack[part, :1], noise[part], stack[part, 1:], plane


def network_denoiser(
    network: nn.Module, schedule: NoiseSchedule, prediction: str, time_input: str = "log_sigma"
) -> Denoiser:
    """Denoiser of a network: slices go to its device and come back."""
    weight = next(network.parameters(), None)
    device = torch.device("cpu") if weight is None else weight.device

    def denoise(noisy: Tensor, sigma: float, plane: int, anatomy: Tensor) -> Tensor:
        t = schedule.t_of_sigma(float(sigma))
        gamma, nu = schedule.gamma(t), schedule.nu(t)
        u = (gamma * noisy).to(device)
        shown = u if schedule.variance_preserving else u / math.sqrt(gamma * gamma + nu * nu)
        time = torch.full((len(u),), float(network_time(time_input, schedule, t)), device=device)
        labels = torch.full((len(u),), plane, device=device)
        output = network(torch.cat((shown, anatomy.to(device)), 1), time, class_labels=labels)
        return denoised_and_noise(prediction, output, u, gamma, nu)[0].to(noisy.device)

    return denoise


def _smooth(images: Tensor, fwhm_pixels: float) -> Tensor:
    # A slice [n, 1, h, w] is a volume of one plane.
    geometry = ImageGeometry(tuple(images.shape[-3:]), (1.0, 1.0, 1.0))
    return gaussian_smooth(images, geometry, fwhm_pixels)


def _as_slices(images: Tensor) -> Tensor:
    return images.reshape(-1, 1, *images.shape[-2:])


def _cubes(volume: Tensor, side: int) -> list[Tensor]:
    """Two cubes on the axis of the body from ``[channels, z, y, x]``, at a third and two thirds of its length."""
    wide = [max(side - size, 0) for size in volume.shape[1:]]
    volume = torch.nn.functional.pad(volume, [pad for gap in reversed(wide) for pad in (gap // 2, gap - gap // 2)])
    depth, height, width = (size - side for size in volume.shape[1:])
    y, x = height // 2, width // 2
    return [volume[:, z : z + side, y : y + side, x : x + side] for z in sorted({depth // 3, depth - depth // 3})]


def _padded(image: Tensor, multiple: int) -> Tensor:
    height, width = (-size % multiple for size in image.shape[-2:])
    return torch.nn.functional.pad(image, (width // 2, width - width // 2, height // 2, height - height // 2))
