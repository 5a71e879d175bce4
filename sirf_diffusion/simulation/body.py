"""Chests with upper abdomen, and more varied trunks with arms, of parametric organs."""

from __future__ import annotations

import numpy as np

from .parametric import ParametricAnatomy, Shaper, Tissue, Volume, begin, finish

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

#: Of trunks: the same and bowel.
TRUNK_TISSUES = TISSUES | {"bowel": Tissue(0.096, 0.4)}
#: Density relative to water in their CT images.
DENSITIES = {
    "fat": 0.92, "muscle": 1.05, "lung": 0.28, "mediastinum": 1.03, "blood": 1.04, "myocardium": 1.05, "liver": 1.06,
    "stomach": 1.01, "spleen": 1.05, "kidney": 1.03, "marrow": 1.15, "bone": 1.5, "bowel": 1.0,
}  # fmt: skip
TRUNK_TRACERS = {name: ranges | {"bowel": (0.3, 3.0)} for name, ranges in BODY_TRACERS.items()}


def simulate_thorax(
    seed: int, shape: tuple[int, int, int] = (136, 112, 176), voxel_size: float = 2.5
) -> ParametricAnatomy:
    """Draw one chest with upper abdomen; the default covers 340 x 280 x 440 mm ``(z, y, x)``.

    ``seed``, the subject's number, is the only source of randomness; ``voxel_size`` in mm, from 1 to 10.
    """
    s = begin(30, seed, shape, voxel_size, (2.0, 5.0))
    _torso(s)
    _chest(s)
    _abdomen(s)
    _skeleton(s)
    return finish(s, TISSUES, seed)


def simulate_trunk(
    seed: int, shape: tuple[int, int, int] = (160, 112, 176), voxel_size: float = 2.5
) -> ParametricAnatomy:
    """Draw one trunk: a chest of `simulate_thorax` with more in it, and less alike.

    Lean and stout, with bowel, the arms up, down or out of sight, and anywhere between the neck and the hips. Arguments
    and errors are those of `simulate_thorax`.
    """
    s = begin(32, seed, shape, voxel_size, (2.0, 6.0))
    build = np.exp(s.rng.normal(0, [0.06, 0.08]))
    s.x, s.y = (c / np.float32(f) for c, f in zip((s.x, s.y), build, strict=True))
    s.z = s.z + np.float32(s.rng.uniform(-60, 60))
    _torso(s)
    _arms(s)
    _chest(s)
    _bowel(s)
    _abdomen(s)
    _skeleton(s)
    return finish(s, TRUNK_TISSUES, seed)


def breathe(activity: Volume, seed: int, draw: int, voxel_size: float) -> Volume:
    """Blur an activity ``[z, y, x]`` along z by up to 20 mm of breathing, most in the middle, least at the ends."""
    from scipy.ndimage import uniform_filter1d

    rng = np.random.default_rng([33, seed, draw])
    width = max(1, round(rng.uniform(0, 20) / voxel_size))
    z = (np.arange(len(activity)) - len(activity) / 2) * voxel_size - rng.uniform(-60, 60)
    share = np.exp(-0.5 * (z / 70) ** 2).astype(np.float32)[:, None, None]
    return activity + share * (uniform_filter1d(activity, width, axis=0, mode="nearest") - activity)


def _arms(s: Shaper) -> None:
    """Beside the trunk, beside the head, or not in sight."""
    where = s.rng.choice(["up", "down", "away"], p=[0.5, 0.35, 0.15])
    if where == "away":
        return
    for side in (-1, 1):
        centre, length = ((115 * side, 10, -190), 95) if where == "up" else ((205 * side, 25, 60), 320)
        arm = s.blob(centre, (40, 45, length), power=2.6, jitter=6.0)
        s.organs["fat"] = np.maximum(s.organs["fat"], arm * (1 - s.organs["muscle"]))
        s.put("muscle", s.blob(centre, (32, 36, length), power=2.6, jitter=2.0))
        s.put("bone", s.blob(centre, (9, 9, length), jitter=2.0))


def _bowel(s: Shaper) -> None:
    """Loops in front of the spine, below liver and stomach, in fat."""
    s.put("fat", s.blob((0, -8, 190), (125, 72, 130), power=2.4) * np.float32(s.rng.uniform(0.3, 1)))
    for _ in range(s.rng.integers(6, 16)):
        centre = (s.rng.uniform(-90, 90), s.rng.uniform(-55, 20), s.rng.uniform(140, 260))
        s.put("bowel", s.blob(centre, tuple(s.rng.uniform(12, 32, 3)), jitter=0.0))


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
