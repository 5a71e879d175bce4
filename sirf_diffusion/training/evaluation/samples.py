"""Unconditional samples: what a model takes for an image when no data tell it anything."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from ...geometry.images import ImageGeometry
from ...models.score_model import ScoreModel

#: Noise level at which sampling ends with one last denoising.
LAST_SIGMA = 0.03


def unconditional_samples(
    model: ScoreModel, count: int, size: int, num_steps: int = 60, seed: int = 0, eta: float = 0.85
) -> Tensor:
    """Transverse slices ``[count, size, size]`` drawn from the prior alone, in network units.

    Of a network of volumes, the middle slices of cubes. A conditional model is shown no anatomical image.
    """
    guidance = -1.0 if model.in_channels == 2 else 0.0
    depth = size if model.spatial_dims == 3 else 1
    bound = model.on(ImageGeometry((depth, size, size), model.voxel_size), 1.0, guidance=guidance)
    schedule, generator = model.schedule, torch.Generator().manual_seed(seed)
    last = max(LAST_SIGMA, schedule.sigma(float(schedule.t_min)))
    times = [float(t) for t in schedule.timesteps(num_steps, schedule.t_of_sigma(last))]
    # The highest level of a variance-exploding schedule is far from 1.
    start = schedule.nu(times[0])
    u = start * torch.randn((count, *bound.latent_shape), generator=generator).to(bound.device)
    for t, t_next in pairwise(times):
        u0, eps = bound.predict(u, t)
        noise = torch.randn(u.shape, generator=generator).to(u)
        u = schedule.ddim_step(u0, eps, t, t_next, eta, noise)
    clean = bound.predict(u, times[-1])[0].clamp(min=0)
    return clean[:, clean.shape[1] // 2].cpu()


def save_sheet(images: Tensor, path: Path, columns: int = 4) -> None:
    """Contact sheet of slices ``[n, h, w]`` as a picture; 0 is white, 2.2 times the mean activity black."""
    from matplotlib.figure import Figure

    rows = -(-len(images) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.2 * rows), layout="constrained")
    for k, image in enumerate(images):
        axis = figure.add_subplot(rows, columns, k + 1)
        axis.imshow(image.numpy(), cmap="gray_r", vmin=0, vmax=2.2)
        axis.axis("off")
    figure.savefig(path, dpi=90)
