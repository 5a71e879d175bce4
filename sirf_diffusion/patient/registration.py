"""Rigid registration of an anatomical image to an emission or attenuation image; warns where it may have failed."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .image import SourceImage, simpleitk
from .resampling import PatientGrid, grid_over, resample, share_inside, smoothed

logger = logging.getLogger(__name__)

#: A start from elsewhere must come back to within this distance, mean over the patient, mm.
MAX_DISAGREEMENT = 5.0
MAX_ROTATION, MAX_SHIFT = 30.0, 50.0
#: Nats. An MR and a PET of one head share 0.4 to 0.7, images of different things less than this.
MIN_INFORMATION = 0.1
#: Less of the patient along an axis does not hold six parameters, mm.
MIN_EXTENT = 40.0
#: Share of the patient in the fixed image that the moving one must cover: a few voxels in common may well agree.
MIN_COVERAGE = 0.5
#: Where the other starts begin: turned about the axes (degrees) and moved (mm).
_OTHER_STARTS = ((5.0, -5.0, 6.0, 7.0, -6.0, 8.0), (-6.0, 5.0, -5.0, -7.0, 7.0, -6.0))
#: Voxel sizes at which the images are compared (fine enough for PET), and air kept around the patient, mm.
_FIXED_SPACING, _MOVING_SPACING, _MARGIN = 4.0, 3.0, 20.0
#: Centres of mass as near as this are no other start, mm.
_NEAR = 10.0


@dataclass(frozen=True)
class Registration:
    """A rigid motion that puts the moving image onto the fixed one, and how far it is to be trusted.

    Attributes
    ----------
    rotation_deg, shift_mm, centre
        Euler angles about the patient's axes x, y, z (to the left, to the back, to the head), and motion (x, y, z) of
        the centre about which is turned, the fixed image's centre of mass, LPS mm.
    metric_before, metric_after
        Mutual information of the two images in nats; None before if they did not overlap.
    disagreement_mm
        Greatest mean distance, over the fixed image's patient, between this result and those of the other starts.
    warnings
        Reasons to distrust it; empty if there are none.
    """

    rotation_deg: tuple[float, float, float]
    shift_mm: tuple[float, float, float]
    centre: tuple[float, float, float]
    metric_before: float | None
    metric_after: float
    disagreement_mm: float
    warnings: tuple[str, ...] = ()

    @property
    def matrix(self) -> NDArray[np.float64]:
        """``[4, 4]``: LPS coordinates of a point in the moving image to where it belongs, in those of the fixed one."""
        return np.linalg.inv(rigid_matrix(self.rotation_deg, self.shift_mm, self.centre))

    def describe(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {
            "rotation_deg_xyz": [round(v, 4) for v in self.rotation_deg],
            "shift_mm_xyz": [round(v, 4) for v in self.shift_mm],
            "centre_mm_lps": [round(v, 4) for v in self.centre],
            "matrix_lps": self.matrix.round(8).tolist(),
            "mutual_information_before": self.metric_before,
            "mutual_information_after": self.metric_after,
            "disagreement_of_starts_mm": round(self.disagreement_mm, 3),
            "warnings": list(self.warnings),
        }


def register(fixed: SourceImage, moving: SourceImage) -> Registration:
    """Find the rigid motion with the greatest mutual information (Mattes et al. 2003, doi:10.1109/TMI.2003.809072).

    ``fixed`` is an emission image (an early OSEM image will do) or attenuation image, ``moving`` an MR or CT image.
    Three resolutions (16, 8 and 4 mm), all voxels of a box around the patient in the fixed image, 32 bins. It begins
    where the files say that the images lie and, where that is another place, with their centres of mass on each other;
    the better result is taken. From there it is disturbed by about 10 mm and 9 degrees, twice, and has to come back:
    for images that have nothing in common it does not. Deterministic for a given number of threads. There is a warning,
    logged as well, for each reason to distrust the result. Raises ImportError without SimpleITK, and ValueError if less
    than 40 mm of the patient are seen along an axis, or no motion makes the two overlap.
    """
    pair = _Pair(fixed, moving)
    before = pair.information(np.zeros(6))
    starts = [np.zeros(6)] if before is not None else []
    if before is None or np.linalg.norm(pair.to_moving) >= _NEAR:
        starts.append(np.concatenate([np.zeros(3), pair.to_moving]))
    information = itemgetter(1)
    motion, after = max((pair.optimised(start) for start in starts), key=information)
    again = [pair.optimised(motion + other, fine=False) for other in _OTHER_STARTS]
    motion, after = max([(motion, after), *again], key=information)
    if after == -math.inf:
        raise ValueError(
            "registration failed: the anatomical image covers less than half of the patient in the emission or "
            "attenuation image; align it beforehand"
        )
    if before is not None and after <= before:
        motion, after = np.zeros(6), before
    distance = max(np.linalg.norm(pair.moved(motion) - pair.moved(other), axis=0).mean() for other, _ in again)
    numbers = tuple(float(v) for v in motion)
    result = Registration(numbers[:3], numbers[3:], pair.centre, before, after, float(distance))
    result = replace(result, warnings=tuple(_doubts(result)))
    logger.info(
        "registration: rotation %s degrees, shift %s mm (x, y, z), mutual information %s -> %.4f, other starts within "
        "%.1f mm",
        motion[:3].round(2),
        motion[3:].round(2),
        before,
        after,
        distance,
    )
    if result.warnings:
        logger.warning("do not trust this registration: %s. Look at report.png", "; ".join(result.warnings))
    return result


def rigid_matrix(rotation_deg: Any, shift: Any, centre: Any) -> NDArray[np.float64]:
    """Fixed to moving coordinates ``[4, 4]``: turned by degrees about y, then x, then z (ITK's order), and shifted."""
    return matrix_of(_transform((*rotation_deg, *shift), centre))


def matrix_of(transform: Any) -> NDArray[np.float64]:
    """The matrix ``[4, 4]`` of an affine or rigid transform."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    matrix[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    return matrix


def _doubts(result: Registration) -> list[str]:
    doubts = []
    before, after = result.metric_before, result.metric_after
    lost = result.disagreement_mm > MAX_DISAGREEMENT
    # Images that were aligned already do not improve either, but other starts come back to where they were.
    if lost and before is not None and after <= before:
        doubts.append(f"no motion improved the mutual information of {before:.4f}")
    if after < MIN_INFORMATION:
        doubts.append(f"the mutual information is only {after:.4f}: the images have little in common")
    if lost:
        doubts.append(f"starts from elsewhere ended {result.disagreement_mm:.1f} mm away: it is not well determined")
    if (largest := max(map(abs, result.rotation_deg))) > MAX_ROTATION:
        doubts.append(f"a rotation of {largest:.0f} degrees is implausible")
    # Where the two did not overlap they are from different scanners, and any distance is possible.
    if before is not None and (distance := math.hypot(*result.shift_mm)) > MAX_SHIFT:
        doubts.append(f"a shift of {distance:.0f} mm is implausible")
    return doubts


class _Pair:
    """Two images ready to be compared by SimpleITK; motions are three angles in degrees and three shifts in mm."""

    def __init__(self, fixed: SourceImage, moving: SourceImage) -> None:
        self.sitk = simpleitk()
        box, values = _around_the_patient(fixed)
        self.centre, self.points = _patient(box, values)
        self.fixed = self._as_itk(values, box)
        self.grid = grid_over(moving, (_MOVING_SPACING,) * 3)
        values = resample(moving, self.grid)
        # A few bright voxels (vessels, coils) must not take up most of the histogram.
        values = np.clip(values, *np.quantile(values, (0.001, 0.999))).astype(np.float32)
        self.moving = self._as_itk(values, self.grid)
        self.to_moving = np.subtract(_patient(self.grid, values)[0], self.centre)

    def information(self, motion: NDArray[np.float64]) -> float | None:
        """Mutual information in nats; None where less than half of the patient is in the moving image."""
        if share_inside(self.moved(motion), self.grid.affine, self.grid.shape) < MIN_COVERAGE:
            return None
        method = information_method(_transform(motion, self.centre))
        try:
            return -method.MetricEvaluate(self.fixed, self.moving)
        except RuntimeError:
            return None

    def optimised(self, start: NDArray[np.float64], fine: bool = True) -> tuple[NDArray[np.float64], float]:
        """Motion and mutual information at the end, without the finest resolution if not ``fine``.

        Those of ``start`` if the images part on the way; minus infinity if they do not overlap.
        """
        method = information_method(transform := _transform(start, self.centre), 3 if fine else 2)
        try:
            method.Execute(self.fixed, self.moving)
            found = np.asarray(transform.GetParameters())
            end = np.concatenate([np.degrees(found[:3]), found[3:]])
        except RuntimeError:
            end = start
        value = self.information(end)
        return end, -math.inf if value is None else value

    def moved(self, motion: NDArray[np.float64]) -> NDArray[np.float64]:
        """The patient's points ``[3, n]`` after a motion, LPS mm."""
        matrix = rigid_matrix(motion[:3], motion[3:], self.centre)
        return matrix[:3, :3] @ self.points + matrix[:3, 3:]

    def _as_itk(self, values: NDArray[np.float32], grid: PatientGrid) -> Any:
        image = self.sitk.GetImageFromArray(np.ascontiguousarray(values, np.float32))
        image.SetSpacing(grid.voxel_size[::-1])
        image.SetOrigin(grid.first)
        image.SetDirection((grid.affine[:3, :3] / grid.voxel_size)[:, ::-1].ravel().tolist())
        return image


def information_method(transform: Any, num_levels: int = 0) -> Any:
    """SimpleITK's method for the mutual information of all voxels, 32 bins; optimised over so many resolutions.

    The transform is changed in place.
    """
    method = simpleitk().ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=32)
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(simpleitk().sitkLinear)
    method.SetInitialTransform(transform, inPlace=True)
    if num_levels:
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=4.0, minStep=0.01, numberOfIterations=120, relaxationFactor=0.5
        )
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([4, 2, 1][:num_levels])
        method.SetSmoothingSigmasPerLevel([8.0, 4.0, 0.0][:num_levels])
        method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    return method


def _transform(motion: Any, centre: Any) -> Any:
    transform = simpleitk().Euler3DTransform()
    transform.SetCenter([float(v) for v in centre])
    transform.SetParameters([*(math.radians(v) for v in motion[:3]), *(float(v) for v in motion[3:])])
    return transform


def _around_the_patient(fixed: SourceImage) -> tuple[PatientGrid, NDArray[np.float32]]:
    """The part of an image that the patient is in, with a margin of air: most of a scanner's view is empty."""
    grid = grid_over(fixed, (_FIXED_SPACING,) * 3)
    values = np.clip(resample(fixed, grid), 0, None)
    inside = np.argwhere(_mask(values))
    first, last = inside.min(0), inside.max(0) + 1
    for axis, extent in zip("zyx", (last - first) * _FIXED_SPACING, strict=True):
        if extent < MIN_EXTENT:
            raise ValueError(
                f"registration needs at least {MIN_EXTENT:g} mm of the patient along each axis, found {extent:g} mm "
                f"along {axis}: give an anatomical image that is aligned already"
            )
    bright = np.quantile(values[tuple(inside.T)], 0.999)
    margin = round(_MARGIN / _FIXED_SPACING)
    low, high = np.maximum(first - margin, 0), np.minimum(last + margin, values.shape)
    box = tuple(map(slice, low.tolist(), high.tolist()))
    return grid.cropped(box), np.clip(values[box], 0, bright)


def _mask(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    smooth = smoothed(values, np.ones(3))
    return smooth > 0.2 * np.quantile(smooth, 0.995)


def _patient(grid: PatientGrid, values: NDArray[np.float32]) -> tuple[tuple[float, ...], NDArray[np.float64]]:
    """Centre of mass and some points of what is not air, LPS mm."""
    index = np.argwhere(_mask(np.clip(values, 0, None))).T
    points = grid.affine[:3, :3] @ index + grid.affine[:3, 3:]
    return tuple(float(v) for v in points.mean(1)), points[:, :: max(1, points.shape[1] // 500)]
