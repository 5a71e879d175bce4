"""Deformable registration of two subjects' images of one kind, with measures of quality to reject a failed one by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .image import simpleitk
from .registration import information_method

Array = NDArray[np.float32]
#: Changes when the same images begin to give another deformation: a stopped build is not gone on with across it.
REVISION = 2
#: Size of the largest voxels that demons begin with, mm; voxels that an image must have along each axis.
_COARSEST, LEAST_VOXELS = 16.0, 16
#: How often the linear part is fitted anew to a deformation of the coarse voxels.
_REFINEMENTS = 8
#: Least determinant of the Jacobian that is left; standard deviation, in voxels, of what is smoothed; rounds at most.
_LEAST_JACOBIAN, _UNFOLDING, _ROUNDS = 0.02, 2.0, 40
#: Share of the affine part's mutual information that the whole registration must have.
_AS_GOOD = 0.98
#: Reach, in voxels, over which contrast is normalised: coils and scanners change slowly, anatomy does not.
_REACH = 4.0


@dataclass(frozen=True)
class Limits:
    """What a registration must keep to be used, see `Quality`.

    Of simulated heads right pairs reach 0.73 to 1 nats, an inverse within 2 to 6 mm, an overlap of 0.94, a similarity
    from 0.74 to 0.91; noise, a chest, another weighting, or a head upside down or back to front (0.50) miss a limit.
    """

    jacobian: float = 0.0
    inverse_mm: float = 6.5
    overlap: float = 0.85
    information: float = 0.4
    similarity: float = 0.67


@dataclass(frozen=True)
class Quality:
    """Measurements of a registration.

    Attributes
    ----------
    jacobian, largest_jacobian
        Least and greatest determinant of the Jacobian on the whole grid; 0 and less is a fold.
    information_affine, information
        Mutual information in nats after the affine part, and after all of it.
    inverse_mm
        Median distance over what is judged between a point and itself after this deformation and that of the two images
        exchanged.
    overlap
        Dice coefficient of both heads.
    similarity
        Correlation of the images over what is judged, their contrast normalised locally.
    """

    jacobian: float
    largest_jacobian: float
    information_affine: float
    information: float
    inverse_mm: float
    overlap: float
    similarity: float

    def reasons(self, limits: Limits | None = None) -> list[str]:
        """Why the registration must not be used; empty if it may. What is not a number is never good enough."""
        limits, found = limits or Limits(), []
        if not self.jacobian > limits.jacobian:
            found.append(f"the deformation folds (least Jacobian {self.jacobian:.2f})")
        # The affine part alone may be all there is to find: the same head once more.
        if not self.information > max(_AS_GOOD * self.information_affine, limits.information):
            found.append(
                f"mutual information {self.information:.2f}, {self.information_affine:.2f} after the affine part: must "
                f"not fall below that, and be above {limits.information:g}"
            )
        if not self.inverse_mm <= limits.inverse_mm:
            found.append(f"not the inverse of the way back by {self.inverse_mm:.1f} mm (limit {limits.inverse_mm:g})")
        if not self.overlap >= limits.overlap:
            found.append(f"the heads overlap by {self.overlap:.2f} only (limit {limits.overlap:g})")
        if not self.similarity >= limits.similarity:
            found.append(f"structures correlate by {self.similarity:.2f} only (limit {limits.similarity:g})")
        return found

    def to_dict(self) -> dict[str, float]:
        """All of it, ready for JSON and HDF5."""
        return {name: round(value, 5) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Deformation:
    """Where each voxel of the fixed image lies in the moving one; ``field`` is a displacement of SimpleITK, in mm."""

    field: Any
    moving_size: tuple[int, ...]
    quality: Quality

    def warp(self, values: NDArray[Any], *, labels: bool = False) -> Array:
        """An image on the moving image's grid ``[z, y, x]``, on that of the fixed one: linear, labels the nearest."""
        if values.shape != self.moving_size:
            raise ValueError(f"an image of shape {values.shape} cannot be warped: expected {self.moving_size}")
        sitk = simpleitk()
        image = image_of(values, self.field.GetSpacing())
        kind = sitk.sitkNearestNeighbor if labels else sitk.sitkLinear
        transform = sitk.DisplacementFieldTransform(sitk.Image(self.field))
        return sitk.GetArrayFromImage(sitk.Resample(image, _like(self.field), transform, kind))

    @property
    def jacobian(self) -> Array:
        """Determinant of the Jacobian ``[z, y, x]``."""
        return _jacobian(self.field)


def register_deformable(
    fixed: Array, moving: Array, voxel_size: Sequence[float], *, judged: Array | None = None, quick: bool = False
) -> Deformation:
    """Deform one subject's image onto another's: affine, then diffeomorphic demons.

    Affine by mutual information, and fitted anew to what coarse demons find; then symmetric forces on images whose
    contrast is normalised locally, with updates that are exponentials of smoothed velocity fields (Vercauteren et al.
    2009, doi:10.1016/j.neuroimage.2008.10.040), at several resolutions. Where the result folds it is smoothed until it
    does not. One thread, so that the result is the same on every machine of a kind.

    Parameters
    ----------
    fixed, moving
        Images of one kind (both T1-weighted, or both PET frames) ``[z, y, x]``, same axes, each at least 16 voxels
        along each; shapes may differ.
    voxel_size
        ``(z, y, x)`` of both in mm.
    judged
        Image on the moving image's grid: inverse and similarity count where it is above a half, and the whole head
        without it. Its PET, for a subject: necks and faces differ, and nobody looks there.
    quick
        Find the deformation on voxels twice as large: an eighth of the time.
    """
    sitk = simpleitk()
    for name, image in (("fixed", fixed), ("moving", moving)):
        if image.ndim != 3 or min(image.shape) < LEAST_VOXELS or not np.isfinite(image).all() or not image.max() > 0:
            raise ValueError(f"the {name} image, {image.shape}, cannot be registered: empty, not finite or small")
    spacing = tuple(float(v) for v in voxel_size[::-1])
    whole_target, source = (image_of(unit(image), spacing) for image in (fixed, moving))
    weight = None if judged is None else image_of(judged, spacing)
    with one_thread():
        target, source = (_shrunk(image, 2) if quick else image for image in (whole_target, source))
        affine = _linear_parts(target, source)
        aligned = sitk.Resample(source, target, affine)
        contrasts = normalised(target), normalised(aligned)
        # On the whole grid: there folds show that larger voxels hide.
        inner = _unfolded(_on_grid(demons(*contrasts), whole_target))
        whole = sitk.CompositeTransform([affine, sitk.DisplacementFieldTransform(sitk.Image(inner))])
        field = sitk.TransformToDisplacementField(
            whole, sitk.sitkVectorFloat64, whole_target.GetSize(), whole_target.GetOrigin(), spacing
        )
        jacobian = _jacobian(field)
        back = demons(*contrasts[::-1], coarser=1)
        warped = sitk.Resample(source, target, whole)
        head = head_of(sitk.GetArrayFromImage(target))
        there = head if weight is None else head & (sitk.GetArrayFromImage(sitk.Resample(weight, target, whole)) > 0.5)
        alike = [sitk.GetArrayFromImage(image)[there] for image in (contrasts[0], normalised(warped))]
        quality = Quality(
            float(jacobian.min()), float(jacobian.max()), information(target, aligned), information(target, warped),
            _inverse_error(_on_grid(inner, target), back, there), dice(head, head_of(sitk.GetArrayFromImage(warped))),
            float(np.corrcoef(*alike)[0, 1]) if there.any() else 0.0,
        )  # fmt: skip
        return Deformation(field, tuple(moving.shape), quality)


@contextmanager
def one_thread() -> Iterator[None]:
    """Here, SimpleITK computes on one thread, so that sums come out alike on every machine of a kind."""
    process = simpleitk().ProcessObject
    threads = process.GetGlobalDefaultNumberOfThreads()
    process.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        process.SetGlobalDefaultNumberOfThreads(threads)


def linear_part(fixed: Any, moving: Any, *, rigid: bool = False) -> Any:
    """The affine, or rigid, transform of SimpleITK with the greatest mutual information, from both centres of mass."""
    sitk = simpleitk()
    fixed, moving = (_shrunk(image, 2) for image in (fixed, moving))
    kind = sitk.Euler3DTransform if rigid else sitk.AffineTransform
    start = sitk.CenteredTransformInitializer(
        fixed, moving, kind() if rigid else kind(3), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    transform = kind(start)
    try:
        information_method(transform, 3).Execute(fixed, moving)
    except RuntimeError as error:
        raise ValueError("the linear part of the registration failed: the images do not overlap") from error
    return transform


@dataclass(frozen=True)
class Demons:
    """Iterations at voxels twice as large, at all of the resolution, and at each coarser one; smoothing in voxels.

    ``displacement`` and ``update`` are standard deviations of the smoothing of the displacement and of each update.
    """

    coarse: int = 100
    half: int = 80
    full: int = 12
    displacement: float = 1.0
    update: float = 1.0


def demons(fixed: Any, moving: Any, settings: Demons | None = None, *, coarser: int = 0) -> Any:
    """Displacement, on the fixed image's grid, that puts the moving image of SimpleITK onto it, coarse to fine.

    Without so many of the finest resolutions; each takes about eight times as long as the next coarser one.
    """
    sitk, settings, field = simpleitk(), settings or Demons(), None
    levels = max(0, round(math.log2(_COARSEST / fixed.GetSpacing()[0])) - 1) + 2
    iterations = [settings.coarse] * (levels - 2) + [settings.half, settings.full]
    for level, number in enumerate(iterations[: max(1, levels - coarser)]):
        pair = [_shrunk(image, 2 ** (levels - 1 - level)) for image in (fixed, moving)]
        method = sitk.DiffeomorphicDemonsRegistrationFilter()
        method.SetNumberOfIterations(number)
        method.SetStandardDeviations(settings.displacement)
        method.SetSmoothUpdateField(settings.update > 0)
        method.SetUpdateFieldStandardDeviations(max(settings.update, 0.1))
        method.SetMaximumUpdateStepLength(2.0)
        method.SetMaximumRMSError(0.0)
        if field is not None:
            field = sitk.Resample(field, pair[0], sitk.Transform(), sitk.sitkLinear, 0.0, field.GetPixelID())
        field = method.Execute(*pair) if field is None else method.Execute(*pair, field)
    return sitk.Resample(field, fixed, sitk.Transform(), sitk.sitkLinear, 0.0, field.GetPixelID())


def _linear_parts(fixed: Any, moving: Any) -> Any:
    """`linear_part`, and after it the linear maps nearest to what demons of coarse voxels still find in the head.

    Mutual information of whole heads leaves brains turned by some degrees against each other, which demons do not undo.
    """
    sitk = simpleitk()
    parts, head = [linear_part(fixed, moving)], head_of(sitk.GetArrayFromImage(fixed))
    places = np.argwhere(head)[:, ::-1] * np.array(fixed.GetSpacing()) + np.array(fixed.GetOrigin())
    points, contrast = np.column_stack([places, np.ones(len(places))]), normalised(fixed)
    for _ in range(_REFINEMENTS):
        aligned = sitk.Resample(moving, fixed, sitk.CompositeTransform(parts))
        found = sitk.GetArrayFromImage(demons(contrast, normalised(aligned), coarser=2))[head]
        solution = np.linalg.lstsq(points, places + found, rcond=None)[0]
        parts.append(sitk.AffineTransform(solution[:3].T.ravel().tolist(), solution[3].tolist()))
    return sitk.CompositeTransform(parts)


def _unfolded(displacement: Any) -> Any:
    """The displacement, smoothed around where it folds until it does not."""
    sitk, reach = simpleitk(), _UNFOLDING * displacement.GetSpacing()[0]
    for _ in range(_ROUNDS):
        folded = sitk.GetImageFromArray((_jacobian(displacement) <= _LEAST_JACOBIAN).astype(np.uint8))
        folded.CopyInformation(displacement)
        near = sitk.Cast(sitk.BinaryDilate(folded, [3] * 3), sitk.sitkFloat32)
        weight = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(near, reach)).clip(0, 1)[..., None]
        if not weight.any():
            break
        values, smooth = (
            sitk.GetArrayFromImage(v) for v in (displacement, sitk.SmoothingRecursiveGaussian(displacement, reach))
        )
        changed = sitk.GetImageFromArray((1 - weight) * values + weight * smooth, isVector=True)
        changed.CopyInformation(displacement)
        displacement = sitk.Cast(changed, displacement.GetPixelID())
    return displacement


def information(fixed: Any, moving: Any) -> float:
    """Mutual information of two images of one grid, nats."""
    return -information_method(simpleitk().TranslationTransform(3)).MetricEvaluate(fixed, moving)


def dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Twice the common part over the sum of two masks; 0 where both are empty."""
    return 2 * float((first & second).sum()) / max(float(first.sum() + second.sum()), 1.0)


def image_of(values: NDArray[Any], spacing: Sequence[float]) -> Any:
    """An image of SimpleITK with its middle at 0."""
    image = simpleitk().GetImageFromArray(np.ascontiguousarray(values, np.float32))
    image.SetSpacing(spacing)
    image.SetOrigin([-0.5 * (n - 1) * s for n, s in zip(image.GetSize(), spacing, strict=True)])
    return image


def _like(field: Any) -> Any:
    sitk = simpleitk()
    image = sitk.Image(field.GetSize(), sitk.sitkFloat32)
    image.CopyInformation(field)
    return image


def unit(values: Array) -> Array:
    """Mean 1 over what is not air; a few bright voxels do not count."""
    values = np.clip(values, 0, np.quantile(values, 0.999))
    return (values / values[values > 0.2 * values.max()].mean()).astype(np.float32)


def normalised(image: Any) -> Any:
    """Contrast to the mean of the neighbourhood, over its standard deviation."""
    sitk = simpleitk()
    reach = _REACH * image.GetSpacing()[0]
    mean = sitk.SmoothingRecursiveGaussian(image, reach)
    variance = sitk.SmoothingRecursiveGaussian((image - mean) ** 2, reach)
    return (image - mean) / sitk.Sqrt(sitk.Maximum(variance, 0.0) + 0.02)


def _shrunk(image: Any, factor: int) -> Any:
    if factor == 1:
        return image
    sitk = simpleitk()
    factors = [min(factor, max(1, n // 4)) for n in image.GetSize()]
    return sitk.Shrink(sitk.SmoothingRecursiveGaussian(image, 0.5 * factor * image.GetSpacing()[0]), factors)


def _jacobian(field: Any) -> Array:
    return simpleitk().GetArrayFromImage(simpleitk().DisplacementFieldJacobianDeterminant(field)).astype(np.float32)


def head_of(values: Array) -> NDArray[np.bool_]:
    sitk = simpleitk()
    smooth = sitk.GetArrayFromImage(sitk.DiscreteGaussian(sitk.GetImageFromArray(values), 2.0))
    return smooth > 0.2 * np.quantile(smooth, 0.98)


def _on_grid(field: Any, grid: Any) -> Any:
    """A displacement field on another grid over the same volume."""
    sitk = simpleitk()
    return sitk.Resample(field, grid, sitk.Transform(), sitk.sitkLinear, 0.0, field.GetPixelID(), True)


def _inverse_error(there: Any, back: Any, head: NDArray[np.bool_]) -> float:
    """Median distance in mm of points of the head from themselves, there and back."""
    sitk = simpleitk()
    moved = sitk.Resample(
        back, there, sitk.DisplacementFieldTransform(sitk.Image(there)), sitk.sitkLinear, 0.0, back.GetPixelID()
    )
    left = np.linalg.norm(sitk.GetArrayFromImage(there) + sitk.GetArrayFromImage(moved), axis=-1)
    return float(np.median(left[head])) if head.any() else math.inf
