"""Whether an imported network denoises at all: a simple image at three noise levels, beside a Gaussian filter."""

from __future__ import annotations

import logging
import math
import os

import torch
from torch import Tensor

from ...geometry.gaussian import gaussian_smooth
from ...geometry.images import ImageGeometry
from ..score_model import ScoreModel

logger = logging.getLogger(__name__)

SIGMAS = (0.1, 0.3, 1.0)
#: An error more than this times the Gaussian filter's is far above it.
FAR_ABOVE = 1.5
_WIDTHS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # voxels


def check_denoising(path: str | os.PathLike[str]) -> dict[float, tuple[float, float]]:
    """Root mean square errors of a model and of the best Gaussian filter by noise level; a warning if far apart.

    The image has a mean of 1 over its emitting voxels, as `intensity_scale` makes all images.
    """
    model = ScoreModel.load(path)
    truth, geometry = _ellipses(model)
    bound = model.on(geometry, 1.0)
    ends = [model.schedule.sigma(float(t)) for t in (model.schedule.t_min, model.schedule.t_max)]
    generator, errors = torch.Generator().manual_seed(0), {}
    for sigma in SIGMAS:
        if not ends[0] <= sigma <= ends[1]:
            continue
        noisy = truth + sigma * torch.randn(truth.shape, generator=generator)
        widths = [factor * geometry.voxel_size[2] for factor in _WIDTHS]
        best = min(_error(gaussian_smooth(noisy, geometry, width), truth) for width in widths)
        errors[sigma] = _error(bound.denoise_at(noisy, sigma), truth), best
    told = "; ".join(f"{its:.3g} ({best:.3g}) at {sigma:g}" for sigma, (its, best) in errors.items())
    logger.info("error of the network, and of a Gaussian filter, by noise level: %s", told)
    if any(not its <= FAR_ABOVE * best for its, best in errors.values()):
        logger.warning(
            "the network denoises a simple image far worse than a Gaussian filter does (%s; the filter's error in "
            "brackets). Either its schedule or prediction is another one (--schedule, --prediction), or its training "
            "images were not scaled to a mean of 1",
            told,
        )
    return errors


def _error(image: Tensor, truth: Tensor) -> float:
    return float((image - truth).square().mean().sqrt())


def _ellipses(model: ScoreModel) -> tuple[Tensor, ImageGeometry]:
    """Ellipses of several activities, one slice or a volume, on the model's own grid."""
    side = model.multiple * math.ceil((64 if model.spatial_dims == 2 else 32) / model.multiple)
    depth = 1 if model.spatial_dims == 2 else side
    along = torch.linspace(-1, 1, side)
    z, y, x = torch.meshgrid(along if depth > 1 else torch.zeros(1), along, along, indexing="ij")
    image = torch.zeros(depth, side, side)
    for value, centre, radii in (
        (1.0, (0.0, 0.0), (0.75, 0.6)), (0.3, (0.1, -0.2), (0.3, 0.15)), (0.3, (0.1, 0.2), (0.3, 0.15)),
        (2.5, (-0.4, 0.0), (0.12, 0.2)), (1.8, (0.5, 0.1), (0.1, 0.1)),
    ):  # fmt: skip
        inside = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 + (z / 0.6) ** 2 <= 1
        image[inside] = value
    return image / image[image > 0].mean(), ImageGeometry((depth, side, side), model.voxel_size)
