"""Activity: how a tracer distributes over a simulated head."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .head import DEEP_GREY, Array, HeadAnatomy, smooth_field


@dataclass(frozen=True)
class TracerContrast:
    """Uptake ranges relative to grey matter (1), drawn uniformly for every subject.

    The default is [18F]FDG: grey to white matter between 1.6 and 5, and a tail (``reversed_share``) of subjects
    with white matter at or above grey so that the score does not force the usual contrast upon unusual data.
    """

    white: tuple[float, float] = (0.2, 0.62)
    reversed_white: tuple[float, float] = (0.8, 1.6)
    reversed_share: float = 0.12
    other: dict[str, tuple[float, float]] = field(
        default_factory=lambda: {
            "csf": (0.02, 0.2),
            "skull": (0.02, 0.35),
            "scalp": (0.05, 0.6),
            "eyes": (0.05, 0.4),
            "glands": (0.1, 0.9),
            "face_bone": (0.05, 0.35),
            "mucosa": (0.1, 1.2),
            "fat": (0.02, 0.25),
            "muscle": (0.1, 0.6),
        }
    )
    deep: tuple[float, float] = (0.85, 1.35)
    cerebellum: tuple[float, float] = (0.65, 1.1)
    max_lesions: int = 4


def simulate_activity(
    anatomy: HeadAnatomy, seed: int, contrast: TracerContrast | None = None, psf_fwhm: float | None = None
) -> Array:
    """Draw one activity distribution on an anatomy.

    Parameters
    ----------
    anatomy
        The subject.
    seed
        Which draw of uptakes and lesions.
    contrast
        Uptake ranges, default FDG.
    psf_fwhm
        FWHM in mm of the Gaussian blur that a scanner leaves, default drawn between 3.5 and 5.

    Returns
    -------
    numpy.ndarray
        ``[z, y, x]`` float32, non-negative, grey matter about 1.
    """
    from scipy.ndimage import gaussian_filter

    contrast = contrast or TracerContrast()
    rng = np.random.default_rng([21, anatomy.seed, seed])
    shape = anatomy.t1.shape
    uptake = {name: rng.uniform(*span) for name, span in contrast.other.items()}
    is_reversed = rng.random() < contrast.reversed_share
    uptake["white"] = rng.uniform(*(contrast.reversed_white if is_reversed else contrast.white))
    uptake["grey"] = 1.0

    activity = np.zeros(shape, np.float32)
    for name, fraction in anatomy.tissues.items():
        variation = rng.uniform(0.02, 0.1) * smooth_field(rng, shape, rng.uniform(10, 20) / anatomy.voxel_size)
        activity += fraction * np.float32(uptake[name]) * np.exp(variation)
    for name, mask in anatomy.regions.items():
        factor = rng.uniform(*(contrast.deep if name in DEEP_GREY else contrast.cerebellum))
        activity *= 1 + (factor - 1) * mask * anatomy.brain
    activity *= np.exp(0.1 * smooth_field(rng, shape, 28.0 / anatomy.voxel_size) * anatomy.brain)
    activity *= _lesions(rng, anatomy, contrast.max_lesions)

    fwhm = rng.uniform(3.5, 5.0) if psf_fwhm is None else psf_fwhm
    blurred = gaussian_filter(activity, fwhm / 2.3548 / anatomy.voxel_size, mode="constant")
    return np.clip(blurred, 0, None).astype(np.float32)


def _lesions(rng: np.random.Generator, anatomy: HeadAnatomy, at_most: int) -> Array:
    """Factors of hot (1.3 to 2.5) and cold (0.1 to 0.7) ellipsoids with radii of 3 to 14 mm, mostly in the brain."""
    factor = np.ones(anatomy.t1.shape, np.float32)
    head = sum(anatomy.tissues.values())
    for _ in range(rng.integers(0, at_most + 1)):
        where = anatomy.brain if rng.random() < 0.8 else head
        candidates = np.flatnonzero(where > 0.5)
        if candidates.size == 0:
            continue
        centre = np.unravel_index(candidates[rng.integers(candidates.size)], factor.shape)
        radii = rng.uniform(3.0, 14.0) * rng.uniform(0.7, 1.3, 3) / anatomy.voxel_size
        reach = [int(np.ceil(1.6 * r)) + 1 for r in radii]
        box = tuple(slice(max(0, c - h), c + h + 1) for c, h in zip(centre, reach, strict=True))
        grid = np.meshgrid(
            *[np.arange(s.start, min(s.stop, n)) for s, n in zip(box, factor.shape, strict=True)], indexing="ij"
        )
        r = np.sqrt(sum(((g - c) / radius) ** 2 for g, c, radius in zip(grid, centre, radii, strict=True)))
        soft = 1 / (1 + np.exp(np.clip((r - 1) / 0.08, -30, 30)))
        change = rng.uniform(1.3, 2.5) if rng.random() < 0.6 else rng.uniform(0.1, 0.7)
        factor[box] *= 1 + (change - 1) * soft.astype(np.float32)
    return factor
