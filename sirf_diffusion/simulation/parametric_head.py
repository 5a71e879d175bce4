"""Heads of parametric shapes: other skulls, other folds, other proportions than the heads of `head`."""

from __future__ import annotations

import numpy as np

from .parametric import ParametricAnatomy, Shaper, Tissue, begin, finish, waves

#: Tissues in the order of their labels.
TISSUES = {
    "skin": Tissue(0.091, 1.1), "muscle": Tissue(0.096, 0.5), "skull": Tissue(0.140, 0.15), "csf": Tissue(0.096, 0.2),
    "white": Tissue(0.096, 1.0), "grey": Tissue(0.096, 0.7), "deep_grey": Tissue(0.096, 0.78),
    "cerebellum": Tissue(0.096, 0.75), "eye": Tissue(0.096, 0.3), "gland": Tissue(0.096, 0.7),
}  # fmt: skip

#: What a hot lesion adds, in units of the median uptake.
HOT_LESIONS = (0.7, 4.0)

#: Uptake by tracer and tissue: the range that it is drawn from, log-uniformly.
HEAD_TRACERS: dict[str, dict[str, tuple[float, float]]] = {
    "fdg": {
        "skin": (0.05, 0.4), "muscle": (0.1, 0.5), "skull": (0.03, 0.3), "csf": (0.03, 0.2), "white": (0.22, 0.55),
        "grey": (0.95, 1.05), "deep_grey": (0.8, 1.4), "cerebellum": (0.6, 1.1), "eye": (0.05, 0.3),
        "gland": (0.2, 0.8),
    },
    "amyloid": {
        "skin": (0.1, 0.6), "muscle": (0.1, 0.5), "skull": (0.1, 0.7), "csf": (0.1, 0.4), "white": (1.1, 2.2),
        "grey": (0.6, 1.6), "deep_grey": (0.7, 1.6), "cerebellum": (0.5, 1.0), "eye": (0.05, 0.4),
        "gland": (0.2, 1.0),
    },
    "dpa714": {
        "skin": (0.3, 1.3), "muscle": (0.3, 1.0), "skull": (0.2, 1.0), "csf": (0.3, 1.0), "white": (0.65, 1.1),
        "grey": (0.95, 1.05), "deep_grey": (0.9, 1.6), "cerebellum": (0.85, 1.25), "eye": (0.2, 0.8),
        "gland": (0.5, 2.5),
    },
    "any": dict.fromkeys(TISSUES, (0.05, 3.0)) | {"grey": (0.3, 3.0), "white": (0.3, 3.0)},
}  # fmt: skip


def simulate_parametric_head(
    seed: int, shape: tuple[int, int, int] = (112, 128, 112), voxel_size: float = 2.0
) -> ParametricAnatomy:
    """Draw one head; the default covers 224 x 256 x 224 mm ``(z, y, x)``.

    ``seed``, the subject's number, is the only source of randomness; ``voxel_size`` in mm, from 1 to 10.
    """
    s = begin(32, seed, shape, voxel_size, (1.5, 4.0))
    brain = _shells(s)
    _cerebrum(s, brain)
    _inside(s)
    _below(s)
    return finish(s, TISSUES, seed)


def _shells(s: Shaper) -> np.ndarray:
    """Skin, neck and face, skull; returns the depth under the surface of the brain in mm. z runs to the feet."""
    radii = np.asarray([68.0, 86.0, 66.0]) * np.exp(s.rng.normal(0, 0.04, 3))
    power = s.rng.uniform(2.0, 2.6)
    centre = (0.0, 6.0, -32.0)
    r = sum(np.abs((c - a) / h) ** power for c, a, h in zip((s.x, s.y, s.z), centre, radii, strict=True)) ** (1 / power)
    depth = (1 - r) * float(radii.min())
    skull, skin, csf = s.rng.uniform(4, 9), s.rng.uniform(3, 9), s.rng.uniform(1, 4)
    face = s.blob((0, -38, 42), (55, 52, 68), power=2.4, jitter=3.0)
    neck = s.blob((0, 22, 120), (55, 58, 130), power=2.4, jitter=3.0)
    s.organs["skin"] = np.maximum.reduce([s.edge(depth + csf + skull + skin), face, neck])
    s.put("muscle", np.maximum(s.blob((0, -34, 42), (48, 44, 60), power=2.4), s.blob((0, 24, 122), (48, 50, 128))))
    s.put("skull", s.edge(depth + csf + skull))
    s.put("csf", s.edge(depth + csf))
    return depth


def _cerebrum(s: Shaper, depth: np.ndarray) -> None:
    """A folded ribbon: furrows where one wave field is near zero, grey matter along them and under the surface."""
    fold = np.abs(waves(s.rng, s.shape, s.voxel_size, s.rng.uniform(12, 18)))
    furrow_depth = s.rng.uniform(14, 22)
    # the distance from a furrow in mm: the value of the wave over its typical slope
    distance = fold * s.rng.uniform(4.5, 6.0) + np.clip(depth - furrow_depth, 0, None) * 2
    thickness = s.rng.uniform(2.5, 4.0)
    base = s.edge(22 - s.z)
    s.put("white", s.edge(depth) * base)
    s.put("grey", np.maximum(s.edge(thickness - depth), s.edge(thickness + 0.5 - distance)) * s.edge(depth) * base)
    furrows = s.edge(s.rng.uniform(0.2, 0.9) - distance) * s.edge(depth)
    midline = s.edge(1.2 - np.abs(s.x)) * s.edge(-20 - s.z) * s.edge(depth)
    s.put("csf", np.maximum(furrows, midline) * base)


def _inside(s: Shaper) -> None:
    """Ventricles, deep grey matter, on both sides."""
    opening = s.rng.uniform(0.7, 1.6)
    for side in (-1, 1):
        s.put("csf", s.blob((9 * side, 4, -28), (4.5 * opening, 30, 9 * opening), jitter=1.5))
        s.put("deep_grey", s.blob((13 * side, -16, -26), (4.5, 12, 9), jitter=1.5))
        s.put("deep_grey", s.blob((25 * side, -6, -18), (6, 14, 9), jitter=1.5))
        s.put("deep_grey", s.blob((10 * side, 20, -20), (8, 12, 8), jitter=1.5))


def _below(s: Shaper) -> None:
    """Cerebellum, brainstem, eyes, glands."""
    s.put("cerebellum", s.blob((0, 54, 30), (48, 27, 24), power=2.3, jitter=3.0))
    leaves = s.blob((0, 50, 28), (34, 14, 13), jitter=2.0)
    s.put("white", leaves * s.edge(3.0 * np.abs(np.sin(s.z / 3.2)) - 1.2 + 0 * s.x))
    s.put("white", s.blob((0, 28, 40), (12, 11, 45), jitter=1.5))
    for side in (-1, 1):
        s.put("eye", s.blob((31 * side, -72, 22), (12, 12, 12), jitter=1.5))
        s.put("gland", s.blob((50 * side, -8, 60), (9, 14, 18), jitter=2.0))
