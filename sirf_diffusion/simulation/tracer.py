"""Activity: how a tracer distributes over a simulated head."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .head import DEEP_GREY, Array, HeadAnatomy, smooth_field
from .lesions import Lesion, draw_lesions


@dataclass(frozen=True)
class TracerContrast:
    """Uptake ranges relative to grey matter (1), drawn uniformly for every subject.

    The default is [18F]FDG: grey to white matter between 1.6 and 5, and a tail (``reversed_share``) of subjects
    with white matter at or above grey so that the score does not force the usual contrast upon unusual data.

    Attributes
    ----------
    white, reversed_white, reversed_share
        Uptake of white matter, the other range of it, and how often that one is drawn.
    other
        Uptake of the tissues around the brain, by name.
    deep, cerebellum
        Factors on deep grey structures and on the cerebellum.
    regions
        Factors on single structures (``caudate``, ``putamen``, ``thalamus``, ``cerebellum``) instead of those.
    regional_sd
        Size of the slow variation over the brain (SD of its logarithm).
    max_lesions
        Lesions per subject, at most.
    logarithmic
        Draw all of these log-uniformly: for ranges that span more than one order of magnitude.
    """

    white: tuple[float, float] = (0.2, 0.62)
    reversed_white: tuple[float, float] = (0.8, 1.6)
    reversed_share: float = 0.12
    other: dict[str, tuple[float, float]] = field(
        default_factory=lambda: {
            "csf": (0.02, 0.2), "skull": (0.02, 0.35), "scalp": (0.05, 0.6), "eyes": (0.05, 0.4), "glands": (0.1, 0.9),
            "face_bone": (0.05, 0.35), "mucosa": (0.1, 1.2), "fat": (0.02, 0.25), "muscle": (0.1, 0.6),
        }
    )  # fmt: skip
    deep: tuple[float, float] = (0.85, 1.35)
    cerebellum: tuple[float, float] = (0.65, 1.1)
    regions: dict[str, tuple[float, float]] = field(default_factory=dict)
    regional_sd: float = 0.1
    max_lesions: int = 4
    logarithmic: bool = False

    def draw(self, rng: np.random.Generator, span: tuple[float, float]) -> float:
        """One value from a range."""
        if self.logarithmic:
            return float(np.exp(rng.uniform(*np.log(span))))
        return rng.uniform(*span)


def simulate_activity(
    anatomy: HeadAnatomy, seed: int, contrast: TracerContrast | None = None, psf_fwhm: float | None = None
) -> Array:
    """One activity distribution on an anatomy, without its lesions; see `draw_activity`."""
    return draw_activity(anatomy, seed, contrast, psf_fwhm)[0]


def draw_activity(
    anatomy: HeadAnatomy, seed: int, contrast: TracerContrast | None = None, psf_fwhm: float | None = None,
    lesions: list[Lesion] | None = None,
) -> tuple[Array, list[Lesion]]:  # fmt: skip
    """Draw one activity distribution on an anatomy.

    Parameters
    ----------
    anatomy, seed
        The subject, and which draw of uptakes and lesions.
    contrast
        Uptake ranges, default FDG.
    psf_fwhm
        FWHM in mm of the Gaussian blur that a scanner leaves, default drawn between 3.5 and 5.
    lesions
        What is put in, instead of what would be drawn.

    Returns
    -------
    activity, lesions
        ``[z, y, x]`` float32, non-negative, grey matter about 1; and the lesions that are in it.
    """
    from scipy.ndimage import gaussian_filter

    contrast = contrast or TracerContrast()
    rng = np.random.default_rng([21, anatomy.seed, seed])
    shape = anatomy.t1.shape
    uptake = {name: contrast.draw(rng, span) for name, span in contrast.other.items()}
    is_reversed = rng.random() < contrast.reversed_share
    uptake["white"] = contrast.draw(rng, contrast.reversed_white if is_reversed else contrast.white)
    uptake["grey"] = 1.0

    usual = {True: contrast.deep, False: contrast.cerebellum}
    activity = np.zeros(shape, np.float32)
    for name, fraction in anatomy.tissues.items():
        variation = rng.uniform(0.02, 0.1) * smooth_field(rng, shape, rng.uniform(10, 20) / anatomy.voxel_size)
        activity += fraction * np.float32(uptake[name]) * np.exp(variation)
    for name, mask in anatomy.regions.items():
        factor = contrast.draw(rng, contrast.regions.get(name, usual[name in DEEP_GREY]))
        activity *= 1 + (factor - 1) * mask * anatomy.brain
    activity *= np.exp(contrast.regional_sd * smooth_field(rng, shape, 28.0 / anatomy.voxel_size) * anatomy.brain)
    drawn = draw_lesions(rng, anatomy, contrast.max_lesions)
    lesions = drawn if lesions is None else lesions
    change = np.ones(shape, np.float32)
    for lesion in lesions:
        lesion.multiply(change, lesion.factor)
    activity *= change

    fwhm = rng.uniform(3.5, 5.0) if psf_fwhm is None else psf_fwhm
    blurred = gaussian_filter(activity, fwhm / 2.3548 / anatomy.voxel_size, mode="constant")
    return np.clip(blurred, 0, None).astype(np.float32), lesions
