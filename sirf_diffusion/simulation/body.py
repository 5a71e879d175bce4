"""Chests with upper abdomen, of parametric organs."""

from __future__ import annotations

import numpy as np

from .parametric import ParametricAnatomy, Shaper, Tissue, begin, finish

#: Organs in the order of their labels.
TISSUES = {
    "fat": Tissue(0.090, 1.1), "muscle": Tissue(0.096, 0.5), "lung": Tissue(0.028, 0.05),
    "mediastinum": Tissue(0.096, 0.7), "blood": Tissue(0.096, 0.3), "myocardium": Tissue(0.096, 0.55),
    "liver": Tissue(0.096, 0.65), "stomach": Tissue(0.096, 0.4), "spleen": Tissue(0.096, 0.45),
    "kidney": Tissue(0.096, 0.5), "marrow": Tissue(0.115, 0.8), "bone": Tissue(0.140, 0.15),
}  # fmt: skip

#: What a hot lesion adds, in units of the median uptake.
HOT_LESIONS = (3.0, 12.0)

#: Uptake relative to blood, by tracer and organ: the range that it is drawn from, log-uniformly.
BODY_TRACERS: dict[str, dict[str, tuple[float, float]]] = {
    "fdg": {
        "fat": (0.1, 0.3), "muscle": (0.3, 0.8), "lung": (0.2, 0.45), "mediastinum": (0.6, 1.0), "blood": (0.9, 1.1),
        "myocardium": (0.8, 8.0), "liver": (1.1, 1.8), "stomach": (0.8, 2.0), "spleen": (0.9, 1.5),
        "kidney": (1.5, 5.0), "marrow": (0.6, 1.6), "bone": (0.2, 0.6),
    },
    "psma": {
        "fat": (0.1, 0.3), "muscle": (0.2, 0.5), "lung": (0.15, 0.4), "mediastinum": (0.5, 1.0), "blood": (0.9, 1.1),
        "myocardium": (0.8, 1.3), "liver": (2.0, 7.0), "stomach": (1.0, 3.0), "spleen": (2.0, 7.0),
        "kidney": (10.0, 30.0), "marrow": (0.3, 0.8), "bone": (0.2, 0.6),
    },
    "any": dict.fromkeys(TISSUES, (0.05, 5.0)),
}  # fmt: skip


def simulate_thorax(
    seed: int, shape: tuple[int, int, int] = (136, 112, 176), voxel_size: float = 2.5
) -> ParametricAnatomy:
    """Draw one chest with upper abdomen; the default covers 340 x 280 x 440 mm ``(z, y, x)``.

    ``seed``, the subject's number, is the only source of randomness; ``voxel_size`` in mm, from 1 to 10.

    Raises
    ------
    ValueError
        If the seed is negative or the voxel size out of range.
    """
    s = begin(30, seed, shape, voxel_size, (2.0, 5.0))
    _torso(s)
    _chest(s)
    _abdomen(s)
    _skeleton(s)
    return finish(s, TISSUES, seed)


def _torso(s: Shaper) -> None:
    """Skin, subcutaneous fat, muscle; narrowing towards the neck."""
    taper = 1 - 0.35 / (1 + np.exp((s.z + 150) / 18))
    half = np.asarray([165.0, 108.0]) * np.exp(s.rng.normal(0, 0.06, 2))
    r = (np.abs(s.x / half[0]) ** 2.4 + np.abs(s.y / half[1]) ** 2.4) ** (1 / 2.4)
    depth = (taper - r) * half[1]
    s.organs["fat"] = s.edge(depth)
    s.put("muscle", s.edge(depth - s.rng.uniform(6, 25)))


def _chest(s: Shaper) -> None:
    """Lungs, mediastinum, great vessels, heart with its wall. z runs towards the feet: the chest has negative z."""
    for side in (-1, 1):
        dome = s.blob((72 * side, -2, -55), (58, 78, 105), power=2.3)
        floor = s.edge(45 - 0.004 * (s.x - 70 * side) ** 2 * 2 - s.z + s.rng.normal(0, 6) + (12 if side > 0 else 0))
        s.put("lung", dome * floor)
    s.put("mediastinum", s.blob((0, 0, -70), (30, 55, 100)))
    s.put("blood", s.blob((18, 42, -10), (12, 12, 240), jitter=2.0))
    s.put("blood", s.blob((10, 0, -95), (30, 24, 14), jitter=3.0))
    centre = np.asarray((38.0, -28.0, 8.0)) + s.rng.normal(0, 4, 3)
    radius, wall = s.rng.uniform(30, 38), s.rng.uniform(9, 13)
    axis = np.asarray((0.65, -0.55, 0.52))
    offsets = [c - a for c, a in zip((s.x, s.y, s.z), centre, strict=True)]
    along = sum(o * a for o, a in zip(offsets, axis, strict=True))
    across = sum(o**2 for o in offsets) - along**2
    r = np.sqrt(np.clip(across, 0, None) + (along / 1.35) ** 2)
    open_base = s.edge(along + 26)
    s.put("blood", s.blob((4, -24, -8), (32, 28, 34)))
    s.put("myocardium", s.edge(radius - r) * open_base)
    s.put("blood", s.edge(radius - wall - r) * open_base)


def _abdomen(s: Shaper) -> None:
    """Liver on the right (negative x), stomach and spleen on the left, kidneys at the back."""
    liver = s.blob((-62, -8, 95), (78, 78, 62), power=2.4)
    liver = np.maximum(liver, s.blob((5, -38, 80), (62, 38, 32)))
    s.put("liver", liver)
    s.put("stomach", s.blob((62, -28, 92), (38, 36, 38)))
    s.put("stomach", s.blob((60, -30, 90), (24, 22, 24)) * np.float32(s.rng.uniform(0, 0.6)))
    s.put("spleen", s.blob((108, 42, 88), (24, 38, 45)))
    for side in (-1, 1):
        kidney = s.blob((58 * side, 55, 135 + 6 * side), (25, 23, 50), jitter=3.0)
        s.put("kidney", kidney)


def _skeleton(s: Shaper) -> None:
    """Vertebrae with discs, ribs as slanted rings of a shell around the chest, the breastbone."""
    spacing, phase = s.rng.uniform(26, 31), s.rng.uniform(0, 30)
    disc = s.edge(9.5 - np.abs((s.z + phase) % spacing - spacing / 2) + 0 * s.x)
    column = s.blob((0, 66, 0), (19, 16, 900), power=2.5, jitter=2.0)
    s.put("bone", column * disc)
    s.put("marrow", s.blob((0, 66, 0), (15, 12, 900), power=2.5, jitter=1.0) * disc)
    shell = np.abs((np.abs(s.x / 138) ** 2.2 + np.abs((s.y - 2) / 90) ** 2.2) ** (1 / 2.2) - 0.93) * 90
    slanted = (s.z - 0.35 * s.y + phase) % spacing
    ribs = s.edge(5.0 - shell) * s.edge(6.0 - np.abs(slanted - spacing / 2)) * s.edge(60 - s.z)
    s.put("bone", ribs)
    s.put("marrow", s.edge(2.0 - shell) * s.edge(2.5 - np.abs(slanted - spacing / 2)) * s.edge(60 - s.z))
    s.put("bone", s.blob((0, -84, -60), (18, 6, 70), power=4.0, jitter=2.0))
