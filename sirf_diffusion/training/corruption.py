"""From clean slices to a training example: noise levels, noisy input, target and weight of the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..models.networks import memory_format, network_time
from ..models.schedules import prediction_target
from .recipes import Recipe


class Parted:
    """A batch in a dataclass whose fields are tensors, an image in each row, or None."""

    def part(self, index: int, parts: int) -> Any:
        """One of ``parts`` equal parts."""
        values = [getattr(self, item.name) for item in fields(self)]  # type: ignore[arg-type]
        size = len(values[0]) // parts
        chosen = slice(index * size, (index + 1) * size)
        return type(self)(*(None if value is None else value[chosen] for value in values))


@dataclass(frozen=True)
class Example(Parted):
    """What a network is shown (``images`` ``[B, in, (D,) H, W]``, ``time`` ``[B]``) and what is wanted of it."""

    images: Tensor
    time: Tensor
    planes: Tensor
    target: Tensor
    weight: Tensor | None

    def predicted_by(self, network: Any) -> Tensor:
        """What a network makes of the images."""
        return network(self.images, self.time, class_labels=self.planes)

    def loss(self, predicted: Tensor) -> Tensor:
        """Mean squared error, weighted image by image."""
        error = (predicted.float() - self.target).square()
        return error.mean() if self.weight is None else (error * over_images(self.weight, error)).mean()


def corrupted(
    recipe: Recipe, images: Tensor, planes: Tensor, step: int, device: torch.device, rank: int = 0, world: int = 1
) -> Example:
    """Training example of clean slices ``[n, 1 or 2, H, W]``, or patches ``[n, 1 or 2, D, H, W]``.

    The second channel is the anatomical image. All random choices of a step depend on the recipe's seed and the step
    alone: they are drawn for the batch of all processes, of which each takes its share, every ``world``-th slice.
    """
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    sigma = draw_noise_levels(recipe, generator)[rank::world]
    noise = torch.randn((recipe.batch_size, 1, *images.shape[2:]), generator=generator)[rank::world]
    u0, schedule = images[:, :1], recipe.schedule
    t = schedule.t_of_sigma(sigma)
    gamma, nu = (over_images(f(t), images) for f in (schedule.gamma, schedule.nu))
    shown = gamma * u0 + nu * noise
    if not schedule.variance_preserving:
        shown = shown / torch.sqrt(gamma * gamma + nu * nu)
    if recipe.conditional:
        kept = torch.rand(recipe.batch_size, generator=generator)[rank::world] >= recipe.condition_dropout
        shown = torch.cat((shown, images[:, 1:] * over_images(kept, images)), 1)
    target = prediction_target(recipe.prediction, u0, noise, gamma, nu)
    weight = None if recipe.weighting == "uniform" else edm_weights(recipe, t)
    time = network_time(recipe.time_input, schedule, t)
    shown = shown.contiguous(memory_format=memory_format(recipe.architecture))
    return Example(*(_moved(value, device) for value in (shown, time, planes, target, weight)))


def over_images(values: Tensor, images: Tensor) -> Tensor:
    """One value for each image, ``[n]``, in a shape that multiplies images ``[n, ...]``."""
    return values.reshape(-1, *[1] * (images.ndim - 1))


def draw_noise_levels(recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Noise levels ``sigma`` of a step, ``[batch_size]``."""
    size = recipe.batch_size
    low, high = (math.log(recipe.schedule.sigma(float(t))) for t in (recipe.schedule.t_min, recipe.schedule.t_max))
    normal = torch.randn(size, generator=generator) * recipe.log_sigma_sd + recipe.log_sigma_mean
    uniform = torch.rand(size, generator=generator) * (high - low) + low
    chosen = torch.where(torch.rand(size, generator=generator) < recipe.uniform_share, uniform, normal)
    return chosen.clamp(low + 1e-3, high - 1e-3).exp()


def edm_weights(recipe: Recipe, t: Tensor) -> Tensor:
    r"""Weight of the squared error of the *prediction* that gives the denoised image Karras' weight.

    ``(sigma^2 + s^2) / (sigma s)^2`` (Karras et al. 2022, arXiv:2206.00364, table 1) times the square of the factor by
    which an error of the prediction becomes one of the denoised image: ``nu`` for ``v``, ``nu / gamma`` for ``eps``, 1
    for ``x0``, ``nu^2 / gamma`` for the score.
    """
    gamma, nu, sigma = (f(t) for f in (recipe.schedule.gamma, recipe.schedule.nu, recipe.schedule.sigma))
    factor = {"v": nu, "eps": nu / gamma, "x0": torch.ones_like(nu), "score": nu * nu / gamma}[recipe.prediction]
    s = recipe.sigma_data
    return (sigma * sigma + s * s) / (sigma * s) ** 2 * factor**2


def _moved(value: Any, device: torch.device) -> Any:
    if value is None or device.type == "cpu":
        return value
    return value.pin_memory().to(device, non_blocking=True)
