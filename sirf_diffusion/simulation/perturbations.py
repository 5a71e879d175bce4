"""Perturbations of images: to train a model on images that are wrong in a known way."""

from __future__ import annotations

import numpy as np

from .head import Array

#: Period in mm and relative amplitude of the stripes.
STRIPE_PERIOD, STRIPE_AMPLITUDE = 20.0, 0.3
#: Share of the emitting voxels that are the centre of a spike, and height of the spikes in mean activities.
SPIKE_SHARE, SPIKE_HEIGHT = 0.003, (1.0, 3.0)


def with_stripes(image: Array, voxel_size: float, seed: int = 0) -> Array:
    r"""Activity ``[..., y, x]`` times :math:`1 + 0.3 \cos(2 \pi y / 20\,\mathrm{mm})`, ``y`` from the middle row.

    The same in every image: a network can learn it, and what it has learnt is something that adaptation can undo.
    """
    y = (np.arange(image.shape[-2]) - image.shape[-2] // 2) * voxel_size
    factor = 1 + STRIPE_AMPLITUDE * np.cos(2 * np.pi * y / STRIPE_PERIOD)
    return (image * factor[:, None]).astype(np.float32)


def with_spikes(image: Array, voxel_size: float, seed: int = 0) -> Array:
    """Activity ``[..., y, x]`` with hot spots of about one voxel where chance puts them, one in 330 voxels.

    They are as high as noise spikes of an image at low counts, one to three times the mean activity, and as
    unpredictable: a network learns that spikes occur, not where.
    """
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng([44, seed])
    emitting = image > 0.2 * image.max()
    spikes = np.where(rng.random(image.shape) < SPIKE_SHARE, rng.uniform(*SPIKE_HEIGHT, image.shape), 0.0)
    spikes = spikes * emitting * image[emitting].mean()
    width = 0.6  # voxels: the least that the grid can show
    peak = (2 * np.pi * width**2) ** (3 / 2 if image.ndim > 2 and image.shape[0] > 1 else 1)
    return (image + gaussian_filter(spikes * peak, width, mode="constant")).astype(np.float32)


#: Perturbations by name.
PERTURBATIONS = {"stripes": with_stripes, "spikes": with_spikes}
