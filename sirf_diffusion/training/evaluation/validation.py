"""Denoising error against noise level on held-out slices or cubes, beside the filters that need no training."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from ...geometry.gaussian import gaussian_smooth
from ...geometry.images import ImageGeometry
from ...models.networks import network_time
from ...models.schedules import NoiseSchedule, denoised_and_noise
from ..data.slice_stream import with_neighbours
from ..data.volume_file import VolumeFile
from ..recipes import Recipe

SIGMAS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
GAUSSIAN_FWHM_PIXELS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 10.0, 14.0, 20.0, 30.0)
#: Of non-local means: strengths ``h / sigma`` that are tried.
STRENGTHS = (0.3, 0.5, 0.7, 1.0)
REACH = 6
PATCH = 5
#: Volumes of a file that are validated on, at most.
MAX_VALIDATION_VOLUMES = 8
_BATCH = 48
_BATCH_OF_CUBES = 2

#: ``f(noisy [n, 1, h, w], sigma, plane, anatomy [n, 0 or 1, h, w]) -> clean [n, 1, h, w]``.
Denoiser = Callable[[Tensor, float, int, Tensor], Tensor]


@dataclass(frozen=True)
class ValidationSet:
    """Fixed slices with fixed noise, and their orientations.

    ``slices`` are ``[1, h, w]`` of intensity scale 1, or ``[2, h, w]`` with the anatomical image as second channel; for
    a network of volumes they are cubes, ``[1 or 2, d, h, w]``, of orientation 0; for one that is shown neighbouring
    slices, the middle one with them.
    """

    slices: list[Tensor]
    planes: list[int]
    schedule: NoiseSchedule

    @classmethod
    def from_volume(cls, volume: Tensor, recipe: Recipe, anatomy: Tensor | None = None) -> ValidationSet:
        """Four equidistant slices of each of the recipe's orientations of a volume ``[z, y, x]``; or two cubes.

        For a conditional network they come with the slices of ``anatomy``, zeros if there is none. Slices are padded by
        air to a multiple of what the network needs.
        """
        stack = [volume.float()]
        if recipe.conditional:
            stack.append(torch.zeros_like(stack[0]) if anatomy is None else anatomy.float())
        images = torch.stack(stack)
        if recipe.architecture.spatial_dims == 3:
            cubes = _cubes(images, max(recipe.crops))
            return cls(cubes, [0] * len(cubes), recipe.schedule)
        slices, orientations = [], []
        for plane in recipe.planes:
            for i in range(4):
                index = int(volume.shape[plane] * (0.25 + 0.55 * i / 3))
                slab = torch.stack([with_neighbours(volume, plane, index, recipe.neighbours) for volume in images])
                slices.append(_padded(slab, recipe.architecture.multiple))
                orientations.append(plane)
        return cls(slices, orientations, recipe.schedule)

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
            sigma: min(self.error(lambda u, *_, f=fwhm: smoothed_slices(u, f), sigma) for fwhm in GAUSSIAN_FWHM_PIXELS)
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
                noisy, truth = (images.reshape(-1, 1, *images.shape[-2:]) for images in (clean + sigma * noise, clean))
                for k, image in enumerate(non_local_means(noisy, sigma)):
                    totals[k] += float((image - truth).double().square().sum())
                count += clean.numel()
            errors[sigma] = math.sqrt(min(totals) / count)
        return errors

    @torch.inference_mode()
    def error(self, denoise: Denoiser, sigma: float, scale: float = 1.0) -> float:
        """Root mean squared error of a denoiser at a noise level, with all images times ``scale``."""
        return root_mean_square(
            denoise(scale * clean + sigma * noise, sigma, plane, anatomy) - scale * clean
            for clean, noise, anatomy, plane in self.groups(sigma)
        )

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


def validation_set(path: str | os.PathLike[str], recipe: Recipe, split: str = "validation") -> ValidationSet | None:
    """Slices, or cubes, of some volumes of a split of a data file; None if it has no volumes."""
    if split not in {info.split for info in VolumeFile(path).infos}:
        return None
    file = VolumeFile(path, split)
    chosen = np.unique(np.linspace(0, len(file) - 1, min(len(file), MAX_VALIDATION_VOLUMES)).round().astype(int))
    whole = ValidationSet([], [], recipe.schedule)
    for k in chosen.tolist():
        anatomy = file.volume(k, "anatomy") if recipe.conditional and file.infos[k].has_anatomy else None
        one = ValidationSet.from_volume(file.volume(k), recipe, anatomy)
        whole.slices.extend(one.slices)
        whole.planes.extend(one.planes)
    return whole


def root_mean_square(differences: Iterable[Tensor]) -> float:
    """Over all values of several tensors."""
    total, count = 0.0, 0
    for difference in differences:
        total += float(difference.double().square().sum())
        count += difference.numel()
    return math.sqrt(total / count)


def relative_error(errors: dict[Any, float], reference: dict[Any, float]) -> float:
    """Geometric mean over noise levels of error over that of the best Gaussian filter; early stopping watches it."""
    return math.exp(sum(math.log(errors[sigma] / reference[sigma]) for sigma in reference) / len(reference))


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


def non_local_means(images: Tensor, sigma: float, strengths: tuple[float, ...] = STRENGTHS) -> list[Tensor]:
    r"""Weighted mean over the pixels whose neighbourhoods look alike.

    ``sum_k w_k u_k / sum_k w_k`` over the displacements ``k`` of up to 6 pixels, with
    ``w_k = exp(-max(d_k^2 - 2 sigma^2, 0) / (h sigma)^2)`` and ``d_k^2`` the mean squared difference of the 5 x 5
    patches (Buades, Coll and Morel 2005, doi:10.1109/CVPR.2005.38). Neighbourhoods are mirrored at the border.

    Returns slices ``[n, 1, h, w]``, larger than 8 pixels, filtered with each of the strengths ``h``, in units of the
    noise's standard deviation ``sigma``.
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


def smoothed_slices(images: Tensor, fwhm_pixels: float) -> Tensor:
    """Slices ``[n, 1, h, w]``, or cubes, after a Gaussian filter: a slice is a volume of one plane."""
    geometry = ImageGeometry(tuple(images.shape[-3:]), (1.0, 1.0, 1.0))
    return gaussian_smooth(images, geometry, fwhm_pixels)


def _cubes(volume: Tensor, side: int) -> list[Tensor]:
    """Two cubes on the axis of the body from ``[channels, z, y, x]``, at a third and two thirds of its length."""
    wide = [max(side - size, 0) for size in volume.shape[1:]]
    volume = pad(volume, [n for gap in reversed(wide) for n in (gap // 2, gap - gap // 2)])
    depth, height, width = (size - side for size in volume.shape[1:])
    y, x = height // 2, width // 2
    return [volume[:, z : z + side, y : y + side, x : x + side] for z in sorted({depth // 3, depth - depth // 3})]


def _padded(image: Tensor, multiple: int) -> Tensor:
    height, width = (-size % multiple for size in image.shape[-2:])
    return pad(image, (width // 2, width - width // 2, height // 2, height - height // 2))
