"""Score models whose denoiser is known exactly, with the surface of ``ScoreModel`` that samplers use."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models.intensity import intensity_scale as estimate
from sirf_diffusion.models.schedules import NoiseSchedule, VPSchedule


@dataclass
class Counter:
    evaluations: int = 0
    seconds: float = 0.0


class ToyModel:
    """``denoiser(w, sigma)`` estimates a clean image from ``w = u / gamma``, on the image's grid padded by ``pad``."""

    def __init__(self, denoiser, schedule: NoiseSchedule | None = None, pad: int = 0) -> None:
        self.denoiser, self.schedule, self.pad = denoiser, schedule or VPSchedule(), pad
        self.device = torch.device("cpu")
        self.geometry: ImageGeometry | None = None
        self.intensity_scale = float("nan")
        self.planes, self.extent, self.box, self.covered = "transverse", None, None, None
        self.hash, self.conditioning, self.precision, self.coarse = "toy", None, "float32", None
        self.counter = Counter()

    def on(self, geometry: ImageGeometry, intensity_scale: float) -> ToyModel:
        bound = copy.copy(self)
        bound.geometry, bound.intensity_scale, bound.counter = geometry, intensity_scale, Counter()
        return bound

    def for_data(self, objective, *, intensity_scale=None, **_) -> ToyModel:
        found = intensity_scale or estimate(objective.early_image(), objective.geometry)
        return self.on(objective.geometry, found)

    window = None

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        z, y, x = self.geometry.shape
        return z, y + 2 * self.pad, x + 2 * self.pad

    def predict(self, u: Tensor, t: float, turn: int | None = None) -> tuple[Tensor, Tensor]:
        gamma, nu = float(self.schedule.gamma(t)), float(self.schedule.nu(t))
        self.counter.evaluations += len(u)
        u0 = self.denoiser(u / gamma, nu / gamma)
        return u0, (u - gamma * u0) / nu

    def to_image(self, u: Tensor) -> Tensor:
        p = self.pad
        return self.intensity_scale * (u[..., p:-p, p:-p] if p else u)

    def to_latent(self, x: Tensor) -> Tensor:
        p = self.pad
        return torch.nn.functional.pad(x / self.intensity_scale, (p, p, p, p))


def identity(w: Tensor, sigma: float) -> Tensor:
    return w


@dataclass
class Gaussian:
    """Exact denoiser of independent voxels ``u_0 ~ N(mean, variance)``."""

    mean: float = 1.0
    variance: float = 0.25

    def __call__(self, w: Tensor, sigma: float) -> Tensor:
        weight = self.variance / (self.variance + sigma * sigma)
        return weight * w + (1 - weight) * self.mean


@dataclass
class Fixed:
    """A denoiser that always finds the same image."""

    image: Tensor

    def __call__(self, w: Tensor, sigma: float) -> Tensor:
        return self.image.expand_as(w).clone()


class Record:
    """Callback that keeps every step's record, with a copy of its images."""

    def __init__(self) -> None:
        self.steps = []
        self.images = []

    def __call__(self, record) -> None:
        self.steps.append(record)
        self.images.append(record.x.clone())


@dataclass
class StopAt:
    """Callback that raises at a step: a callback's own end, or what a user presses."""

    step: int
    error: type[BaseException] = StopIteration

    def __call__(self, record) -> None:
        if record.step == self.step:
            raise self.error
