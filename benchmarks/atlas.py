"""How near the 4D atlas of synthetic dynamic subjects comes to the known mean shape and the known curves.

::

    python -m benchmarks.atlas --voxel-size 4        # 12 subjects, 4 frames

The subjects are one parametric head, deformed by smooth velocities of mean zero, with motion between the frames and
noise. Shape: the distance between where the atlas puts a voxel of the mean shape in a subject and where it is, less the
subject's best rigid motion, which is nobody's shape; mean over brains. Curves: of five regions, in the mean shape.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from sirf_diffusion.patient.deformable import image_of
from sirf_diffusion.patient.velocity import as_transform, exponential
from sirf_diffusion.personalise.groupwise import Subject, build_atlas
from sirf_diffusion.simulation.parametric_head import TISSUES, simulate_parametric_head

Array = NDArray[np.float32]
#: Activity of grey matter at the first and the last frame, by region: the four quarters of the cerebrum, cerebellum.
REGIONS = {1: (1.0, 0.6), 2: (0.9, 0.75), 3: (0.8, 1.1), 4: (1.1, 1.0), 5: (0.8, 0.4)}
#: Of tissues that are the same in all regions.
_OTHERS = {"white": (0.35, 0.45), "deep_grey": (0.7, 1.5)}


@dataclass(frozen=True)
class Cohort:
    """Subjects, where each voxel of the mean shape lies in them (mm), and the truth: frames, regions, a grid."""

    subjects: list[Subject]
    displacements: list[NDArray[np.float64]]
    frames: Array
    regions: NDArray[np.uint8]
    like: Any

    def shape_error(self) -> float:
        """Mean distance in mm, see above."""
        inside = self.regions > 0
        errors = []
        for subject, truth in zip(self.subjects, self.displacements, strict=True):
            place = np.stack(np.meshgrid(*map(np.arange, inside.shape), indexing="ij"), -1)[inside][:, ::-1]
            place = place * np.asarray(self.like.GetSpacing())
            a, b = (place + d[inside] for d in (subject.displacement(self.like), truth))
            a, b = a - a.mean(0), b - b.mean(0)
            u, _, v = np.linalg.svd(a.T @ b)
            errors.append(np.linalg.norm(a @ (u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v) - b, axis=1).mean())
        return float(np.mean(errors))

    def curve_errors(self, frames: Array) -> dict[int, float]:
        """Largest relative error of each region's curve, both images having the same mean over all regions."""
        inside = self.regions > 0
        scale = self.frames[:, inside].mean() / frames[:, inside].mean()
        errors = {}
        for region in REGIONS:
            found, true = (images[:, self.regions == region].mean(1) for images in (frames, self.frames))
            errors[region] = float(np.abs(scale * found / true - 1).max())
        return errors


def cohort(
    number: int, frames: int, voxel_size: float, *, deformation: float = 9.0, noise: float = 0.1, seed: int = 0
) -> Cohort:
    """So many subjects; ``deformation`` is the root mean square of velocities in mm, ``noise`` that at activity 1."""
    shape = tuple(round(mm / voxel_size) for mm in (224, 256, 224))
    rng, like = np.random.default_rng([72, seed]), image_of(np.zeros(shape, np.float32), (voxel_size,) * 3)
    labels, names = simulate_parametric_head(60, shape, voxel_size).labels, list(TISSUES)
    quarter = 1 + (np.arange(shape[1])[:, None] >= shape[1] // 2) * 2 + (np.arange(shape[2]) >= shape[2] // 2)
    brain = np.isin(labels, [names.index(name) + 1 for name in ("grey", "white", "deep_grey")])
    regions = np.where(brain, quarter[None], 5 * (labels == names.index("cerebellum") + 1)).astype(np.uint8)
    truth = np.repeat(0.25 * (labels > 0).astype(np.float32)[None], frames, 0)
    others = [(labels == names.index(name) + 1, ends) for name, ends in _OTHERS.items()]
    for here, ends in [*((regions == region, ends) for region, ends in REGIONS.items()), *others]:
        truth[:, here] = np.linspace(*ends, frames)[:, None]
    truth = np.stack([gaussian_filter(frame, 6 / 2.3548 / voxel_size) for frame in truth])
    edge = gaussian_filter(np.pad(np.ones([n - 8 for n in shape]), 4), 2.0)[..., None]

    def velocity() -> NDArray[np.float64]:
        field = np.stack([gaussian_filter(rng.standard_normal(shape), 24 / voxel_size) for _ in range(3)], -1)
        return deformation * edge * field / np.sqrt((field**2).sum(-1).mean())

    velocities = [velocity() for _ in range(number)]
    velocities = [v - np.mean(velocities, axis=0) for v in velocities]
    subjects = []
    for v in velocities:
        back, images = as_transform(exponential(-v, like), like), []
        for frame in truth:
            motion = sitk.Euler3DTransform()
            motion.SetParameters([*rng.normal(0, 0.02, 3), *rng.normal(0, 2.0, 3)])
            moved = sitk.Resample(image_of(frame, like.GetSpacing()), like, sitk.CompositeTransform([back, motion]))
            image = sitk.GetArrayFromImage(moved)
            sd = noise * np.sqrt(np.clip(image, 0, None))
            images.append(np.clip(image + sd * rng.standard_normal(shape), 0, None))
        own = sitk.Resample(image_of(regions, like.GetSpacing()), like, back, sitk.sitkNearestNeighbor)
        labels_of_it = sitk.GetArrayFromImage(own).astype(np.uint8)
        subjects.append(Subject(np.stack(images).astype(np.float32), labels=labels_of_it))
    return Cohort(subjects, [exponential(v, like) for v in velocities], truth, regions, like)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("subjects", 12), ("frames", 4), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--voxel-size", type=float, default=6.0)
    arguments = parser.parse_args(argv)
    known = cohort(arguments.subjects, arguments.frames, arguments.voxel_size)
    for rounds in (0, arguments.rounds):
        began = time.process_time()
        atlas = build_atlas(known.subjects, (arguments.voxel_size,) * 3, rounds=rounds)
        errors = {k: round(e, 3) for k, e in known.curve_errors(atlas.frames).items()}
        seconds = time.process_time() - began
        print(f"rounds {rounds}: shape {known.shape_error():.2f} mm, curves {errors}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
