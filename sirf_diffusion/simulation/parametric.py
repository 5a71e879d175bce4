"""Parametric phantoms: what chests and heads of super-ellipsoids have in common.

The second generator of the package. It has nothing in common with the heads of `head`: no template, no function, no
table; its shapes are super-ellipsoids bent by sums of cosine waves. A score model that was trained on one of the two
meets the other as something that it has never seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Volume = NDArray[np.float32]


@dataclass(frozen=True)
class Tissue:
    """Attenuation at 511 keV in 1/cm, and T1-weighted signal (muscle 0.5)."""

    mu: float
    signal: float


@dataclass(frozen=True)
class ParametricAnatomy:
    """One subject; arrays ``[z, y, x]`` with x to the left, y to the back and z to the feet.

    ``organs`` are volume fractions by name, which sum to the fraction of the voxel inside the body; ``mr`` is a
    T1-weighted image without lesions, ``mu`` attenuation at 511 keV in 1/cm; voxels are isotropic, in mm.
    """

    organs: dict[str, Volume]
    mr: Volume
    mu: Volume
    voxel_size: float
    seed: int

    @property
    def labels(self) -> NDArray[np.uint8]:
        """1 plus the position in ``organs`` of what fills most of a voxel; 0 in air."""
        shares = np.stack([1 - sum(self.organs.values()), *self.organs.values()])
        return np.argmax(shares, axis=0).astype(np.uint8)


@dataclass
class Shaper:
    """Draws organs on one grid, in the subject's own bent coordinates."""

    rng: np.random.Generator
    x: Volume
    y: Volume
    z: Volume
    voxel_size: float
    shape: tuple[int, int, int]
    organs: dict[str, Volume] = field(default_factory=dict)

    def blob(
        self, centre: tuple[float, float, float], radii: tuple[float, float, float], power: float = 2.0,
        jitter: float = 4.0,
    ) -> Volume:  # fmt: skip
        """Membership of a super-ellipsoid (mm) whose place and size vary from subject to subject."""
        at = np.asarray(centre) + self.rng.normal(0, jitter, 3)
        size = np.asarray(radii) * np.exp(self.rng.normal(0, 0.12, 3))
        r = sum(np.abs((c - a) / s) ** power for c, a, s in zip((self.x, self.y, self.z), at, size, strict=True))
        return self.edge((1 - r ** (1 / power)) * float(size.min()))

    def edge(self, depth: Volume) -> Volume:
        """Share of a voxel that is inside, from the depth under the surface in mm: linear over one voxel."""
        return np.clip(0.5 + depth / self.voxel_size, 0, 1).astype(np.float32)

    def put(self, name: str, share: Volume) -> None:
        """Let an organ take this share of the body from what has been drawn there."""
        body = sum(self.organs.values()) if self.organs else np.ones(self.shape, np.float32)
        taken = share * body
        for other in self.organs:
            self.organs[other] = self.organs[other] * (1 - share)
        self.organs[name] = self.organs.get(name, 0) + taken


def begin(stream: int, seed: int, shape: tuple[int, int, int], voxel_size: float, bend: tuple[float, float]) -> Shaper:
    """An empty grid in a subject's own coordinates: scaled, and bent by ``bend`` mm (SD, drawn from this range)."""
    if seed < 0:
        raise ValueError(f"seed must not be negative, found {seed}")
    if not 1.0 <= voxel_size <= 10.0:
        raise ValueError(f"voxel_size must lie between 1 and 10 mm, found {voxel_size}")
    rng = np.random.default_rng([stream, seed])
    axes = [(np.arange(n, dtype=np.float32) - n // 2) * voxel_size for n in shape]
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    width, height = rng.uniform(0.87, 1.13), rng.uniform(0.9, 1.1)
    fields = [waves(rng, shape, voxel_size, 90.0) for _ in range(3)]
    x, y, z = (
        (c / s + rng.uniform(*bend) * f).astype(np.float32)
        for c, s, f in zip((x, y, z), (width, width, height), fields, strict=True)
    )
    return Shaper(rng, x, y, z, voxel_size, shape)


def draw_parametric_activity(
    anatomy: ParametricAnatomy, draw: int, uptake: Mapping[str, tuple[float, float]], hot: tuple[float, float],
    psf_fwhm: float | None = None, in_mr: float = 0.5,
) -> tuple[Volume, Volume, NDArray[np.uint8]]:  # fmt: skip
    """Activity on an anatomy, the MR image that goes with it, and the map of its lesions, all ``[z, y, x]``.

    Parameters
    ----------
    anatomy, draw
        The subject, and which draw of uptakes and lesions.
    uptake, hot
        Ranges by organ, drawn from log-uniformly; that of what a hot lesion adds, in units of the median uptake.
    psf_fwhm
        FWHM in mm of the scanner's blur, default drawn between 4 and 7.
    in_mr
        Share of the lesions that show in the MR image. The map has 1 for hot and 3 for cold ones, one more without.
    """
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng([31, anatomy.seed, draw])
    shape, size = anatomy.mr.shape, anatomy.voxel_size
    activity = np.zeros(shape, np.float32)
    for name, share in anatomy.organs.items():
        low, high = np.log(uptake[name])
        texture = np.exp(rng.uniform(0.03, 0.15) * waves(rng, shape, size, rng.uniform(20, 50)))
        activity += np.float32(np.exp(rng.uniform(low, high))) * share * texture
    mr, lesions = anatomy.mr.copy(), np.zeros(shape, np.uint8)
    inside = np.flatnonzero(sum(anatomy.organs.values()) > 0.9)
    background = float(np.median(activity.flat[inside]))
    for _ in range(rng.integers(0, 7)):
        place = np.unravel_index(inside[rng.integers(inside.size)], shape)
        is_hot, shows = rng.random() < 0.75, rng.random() < in_mr
        radius = rng.uniform(4, 18, 3) / size
        box = tuple(slice(max(0, int(p - 2 * r)), int(p + 2 * r) + 2) for p, r in zip(place, radius, strict=True))
        here = np.ogrid[tuple(slice(b.start, min(b.stop, n)) for b, n in zip(box, shape, strict=True))]
        r = np.sqrt(sum(((h - p) / q) ** 2 for h, p, q in zip(here, place, radius, strict=True)))
        share = np.clip(0.5 + (1 - r) * radius.min(), 0, 1).astype(np.float32)
        if is_hot:
            activity[box] += share * np.float32(background * rng.uniform(*hot))
        else:
            activity[box] *= 1 - share * np.float32(rng.uniform(0.5, 1))
        brightness = np.float32(rng.uniform(-0.3, 0.6))
        if shows:
            mr[box] += share * brightness
        lesions[box][share > 0.5] = (1 if is_hot else 3) + (not shows)
    fwhm = rng.uniform(4.0, 7.0) if psf_fwhm is None else psf_fwhm
    blurred = gaussian_filter(np.clip(activity, 0, None), fwhm / math.sqrt(8 * math.log(2)) / size, mode="constant")
    return np.clip(blurred, 0, None).astype(np.float32), np.clip(mr, 0, None).astype(np.float32), lesions


def finish(shaper: Shaper, tissues: Mapping[str, Tissue], seed: int) -> ParametricAnatomy:
    """The anatomy of what has been drawn: organs in the order of ``tissues``, attenuation, MR with field and noise."""
    rng, shape = shaper.rng, shaper.shape
    organs = {name: shaper.organs[name].astype(np.float32) for name in tissues}
    mu = sum(np.float32(tissues[name].mu) * share for name, share in organs.items())
    image = sum(np.float32(tissues[name].signal * rng.uniform(0.85, 1.15)) * share for name, share in organs.items())
    image = image * np.exp(0.1 * waves(rng, shape, shaper.voxel_size, 200.0))
    mr = np.abs(image + 0.02 * rng.standard_normal(shape)).astype(np.float32)
    return ParametricAnatomy(organs, mr, mu, shaper.voxel_size, seed)


def waves(rng: np.random.Generator, shape: tuple[int, ...], voxel_size: float, length: float) -> Volume:
    """A smooth random field of about unit variance: 24 cosine waves with wavelengths of ``length`` mm and more."""
    along, across = [], []
    for _ in range(24):
        direction = rng.standard_normal(3)
        direction *= 2 * np.pi * voxel_size / (length * rng.uniform(1, 3) * np.linalg.norm(direction))
        phase = rng.uniform(0, 2 * np.pi)
        # cos(a + b + c) as the real part of a product of three factors: one exponential per axis, not per voxel
        z, y, x = (np.exp(1j * d * np.arange(n)).astype(np.complex64) for d, n in zip(direction, shape, strict=True))
        plane = (y[:, None] * x[None, :] * np.complex64(np.exp(1j * phase))).ravel()
        along += [z.real, -z.imag]
        across += [plane.real, plane.imag]
    return (np.stack(along, 1) @ np.stack(across)).reshape(shape) / np.float32(np.sqrt(12))
