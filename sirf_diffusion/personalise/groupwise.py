"""A 4D atlas: the mean shape and the mean time course of the dynamic PET of several subjects.

After Bieth et al. (Atlas construction for dynamic (4D) PET using diffeomorphic transformations, 2013): every frame of
every subject is registered to the template's frame, and what the frames say of a subject's shape is averaged as
velocities. Template and deformations take turns.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..patient.deformable import Demons, demons, head_of, image_of, linear_part, normalised, one_thread, unit
from ..patient.image import SourceImage, simpleitk, usable
from ..patient.readers import read_frames, read_labels, read_source
from ..patient.registration import matrix_of
from ..patient.resampling import grid_over, resample
from ..patient.velocity import Field, as_transform, exponential, logarithm
from .atlas import Atlas

logger = logging.getLogger(__name__)

Array = NDArray[np.float32]
#: Rounds of deforming all subjects onto the template and making it anew.
ROUNDS = 3
_DEMONS = Demons(coarse=60, half=40, displacement=1.5, update=0.0)
_SMOOTHED_MM = 3.0
_LARGEST_LABEL = 65535


@dataclass
class Subject:
    """Frames ``[time, z, y, x]`` of one subject, and what brings them onto the template.

    ``mr`` and ``labels`` ``[z, y, x]`` are on the same grid, if there are any.
    """

    frames: Array
    mr: Array | None = None
    labels: NDArray[np.uint16] | None = None
    motions: list[Any] = field(default_factory=list)
    affine: Any = None
    velocity: Field | None = None

    def carried(self, values: NDArray[Any], like: Any, frame: int | None = None, labels: bool = False) -> Array:
        """An image of the subject on the template's grid."""
        sitk = simpleitk()
        parts = [] if frame is None else [self.motions[frame]]
        parts.append(self.affine)
        if self.velocity is not None:
            parts.append(as_transform(exponential(self.velocity, like), like))
        kind = sitk.sitkNearestNeighbor if labels else sitk.sitkLinear
        image = image_of(values, like.GetSpacing())
        return sitk.GetArrayFromImage(sitk.Resample(image, like, sitk.CompositeTransform(parts), kind))

    def displacement(self, like: Any) -> Array:
        """Where each voxel of the template lies in the subject, without motion: mm, ``[z, y, x, 3]`` (x, y, z)."""
        sitk = simpleitk()
        parts = [self.affine]
        if self.velocity is not None:
            parts.append(as_transform(exponential(self.velocity, like), like))
        whole = sitk.TransformToDisplacementField(
            sitk.CompositeTransform(parts), sitk.sitkVectorFloat64, like.GetSize(), like.GetOrigin(), like.GetSpacing()
        )
        return sitk.GetArrayFromImage(whole)


def build_atlas(
    subjects: Sequence[Subject],
    voxel_size: Sequence[float],
    *,
    rounds: int = ROUNDS,
    progress: Callable[[], None] = lambda: None,
    kept: Callable[[str, Callable[[], NDArray[Any]]], NDArray[Any]] = lambda name, make: make(),
) -> Atlas:
    """Make the atlas of subjects with as many frames each; what brings each onto it is kept in the subjects.

    Each frame is moved rigidly onto its subject's mean first (motion). Then affine, with a mean affine map of identity,
    and ``rounds`` times: each frame of each subject is registered to the template's frame by diffeomorphic demons, the
    velocities of a subject's frames are averaged by how little noise they have, those of all subjects made to have mean
    zero, and the template is made anew.

    Parameters
    ----------
    subjects, voxel_size
        At least one, frames in the same order, axes and voxel size: ``(z, y, x)`` in mm.
    rounds
        0 gives the affine average.
    progress
        Called after each subject in each round, and once for each subject before: ``(rounds + 1) * len(subjects)``
        times.
    kept
        Gives the array of a name, or makes it: `~sirf_diffusion.files.work.KeptArrays` of a folder, so that a run that
        was stopped goes on.
    """
    counts = {len(s.frames) for s in subjects}
    if len(counts) != 1:
        raise ValueError(f"an atlas needs subjects with the same frames, found numbers of frames {sorted(counts)}")
    for number, subject in enumerate(subjects, 1):
        if not np.isfinite(subject.frames).all() or any(not f.max() > 0 for f in subject.frames):
            raise ValueError(f"subject {number} has a frame that is empty or not finite: leave that frame out of all")
    spacing = tuple(float(v) for v in voxel_size[::-1])
    shape = np.max([s.frames.shape[1:] for s in subjects], axis=0)
    like = image_of(np.zeros(shape, np.float32), spacing)
    with one_thread():
        for number, subject in enumerate(subjects):
            motions = kept(f"motions-{number}", partial(_motions, subject.frames, spacing))
            subject.motions = [_affine(matrix) for matrix in motions]
            subject.affine, subject.velocity = simpleitk().AffineTransform(3), None
            progress()
        if len(subjects) > 1:
            for subject, matrix in zip(subjects, kept("affine", partial(_aligned, subjects, like)), strict=True):
                subject.affine = _affine(matrix)
        scales = [float(s.frames.mean(0)[head_of(s.frames.mean(0))].mean()) for s in subjects]
        template = _template(subjects, scales, like)
        for turn in range(rounds if len(subjects) > 1 else 0):
            for number, subject in enumerate(subjects):
                make = partial(_velocity, subject, template, like)
                subject.velocity = kept(f"velocity-{turn}-{number}", make)
                progress()
            middle = np.mean([s.velocity for s in subjects], axis=0)
            for subject in subjects:
                subject.velocity = subject.velocity - middle
            template = _template(subjects, scales, like)
        return Atlas(template, tuple(voxel_size), _mean_mr(subjects, like), _vote(subjects, like))


def _motions(frames: Array, spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Rigid motion ``[time, 4, 4]`` of each frame onto the mean of all, the mean being made anew once."""
    sitk = simpleitk()
    moved, motions = frames, [sitk.Euler3DTransform() for _ in frames]
    for _ in range(2 if len(frames) > 1 else 0):
        target = image_of(_smooth(moved.mean(0), spacing), spacing)
        motions = [linear_part(target, image_of(_smooth(f, spacing), spacing), rigid=True) for f in frames]
        pairs = zip(frames, motions, strict=True)
        moved = np.stack([sitk.GetArrayFromImage(sitk.Resample(image_of(f, spacing), target, m)) for f, m in pairs])
    return np.stack([matrix_of(m) for m in motions])


def _aligned(subjects: Sequence[Subject], like: Any) -> NDArray[np.float64]:
    """Affine maps ``[subject, 4, 4]`` of the subjects onto their mean, with a mean of identity."""
    from scipy.linalg import expm, logm

    sitk = simpleitk()
    means = [s.frames.mean(0) for s in subjects]
    images = [image_of(unit(m), like.GetSpacing()) for m in means]
    template = images[0]
    for _ in range(2):
        matrices = np.stack([matrix_of(linear_part(template, image)) for image in images])
        matrices = matrices @ np.linalg.inv(expm(np.mean([logm(m).real for m in matrices], axis=0)).real)
        pairs = zip(images, matrices, strict=True)
        carried = [sitk.GetArrayFromImage(sitk.Resample(image, like, _affine(m))) for image, m in pairs]
        template = image_of(np.mean(carried, axis=0), like.GetSpacing())
    return matrices


def _velocity(subject: Subject, template: Array, like: Any) -> Field:
    """Velocity of a subject's shape: that of each frame's registration, weighted by how little noise the frame has."""
    spacing, velocities, weights = like.GetSpacing(), [], []
    for number, (frame, target) in enumerate(zip(subject.frames, template, strict=True)):
        now = Subject(subject.frames, motions=subject.motions, affine=subject.affine)
        moving = now.carried(frame, like, number)
        smooth = _smooth(moving, spacing)
        inside = head_of(target)
        weights.append(float(smooth[inside].mean() / max(float((moving - smooth)[inside].std()), 1e-6)) ** 2)
        pair = [normalised(image_of(unit(_smooth(v, spacing)), spacing)) for v in (target, moving)]
        displacement = simpleitk().GetArrayFromImage(demons(*pair, _DEMONS))
        velocities.append(logarithm(displacement.astype(np.float64), like))
    return np.average(velocities, axis=0, weights=weights)


def _template(subjects: Sequence[Subject], scales: Sequence[float], like: Any) -> Array:
    """Mean of all subjects' frames in the template's shape, each subject divided by its scale."""
    frames = [
        np.stack([s.carried(f, like, k) for k, f in enumerate(s.frames)]) / scale
        for s, scale in zip(subjects, scales, strict=True)
    ]
    return np.clip(np.mean(frames, axis=0), 0, None).astype(np.float32)


def _mean_mr(subjects: Sequence[Subject], like: Any) -> Array | None:
    known = [s.carried(unit(s.mr), like) for s in subjects if s.mr is not None]
    return np.mean(known, axis=0).astype(np.float32) if known else None


def _vote(subjects: Sequence[Subject], like: Any) -> NDArray[np.uint16] | None:
    """Each voxel's most frequent label."""
    known = [s.carried(s.labels, like, labels=True).astype(np.uint16) for s in subjects if s.labels is not None]
    if not known:
        return None
    kinds = np.unique(known)
    votes = np.stack([np.sum([labels == kind for labels in known], axis=0) for kind in kinds])
    return kinds[votes.argmax(0)]


def _smooth(values: Array, spacing: Sequence[float]) -> Array:
    sitk = simpleitk()
    return sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(image_of(values, spacing), _SMOOTHED_MM))


def _affine(matrix: NDArray[np.float64]) -> Any:
    return simpleitk().AffineTransform(matrix[:3, :3].ravel().tolist(), matrix[:3, 3].tolist())


def read_subjects(
    dynamic: Sequence[Sequence[Path]], voxel_size: Sequence[float], *, mrs: Sequence[Path] = (),
    labels: Sequence[Path] = (),
) -> list[Subject]:  # fmt: skip
    """Subjects from files: for each a dynamic image, or its frames; MRs and label images in the same order."""
    for name, others in (("--mr", mrs), ("--labels", labels)):
        if others and len(others) != len(dynamic):
            raise ValueError(f"{name}: {len(others)} images for {len(dynamic)} subjects: give one for each")
    subjects = []
    for number, paths in enumerate(dynamic):
        frames = [frame for path in paths for frame in usable(read_frames, path)]
        if others := sum(not frame.shares_grid(frames[0]) for frame in frames):
            logger.warning(
                "subject %d: %d of %d frames have another grid than the first, and are resampled onto its; are they of "
                "one scan?", number + 1, others, len(frames),
            )  # fmt: skip
        grid = grid_over(frames[0], tuple(voxel_size))
        stack = np.stack([np.clip(resample(frame, grid), 0, None) for frame in frames])
        mr = resample(usable(read_source, mrs[number]), grid) if mrs else None
        kinds = resample(_labels(labels[number]), grid, labels=True).astype(np.uint16) if labels else None
        subjects.append(Subject(stack, mr, kinds))
    return subjects


def _labels(path: Path) -> SourceImage:
    image = read_labels(path)
    if image.values.max() > _LARGEST_LABEL:
        raise ValueError(f"the label image {path} has labels above {_LARGEST_LABEL}: number its regions from 1")
    return image
