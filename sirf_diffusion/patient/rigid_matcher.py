"""Two images compared by SimpleITK under rigid motions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .readers import SourceImage
from .resampling import PatientGrid, grid_over, resample, share_inside

#: Voxel sizes in mm at which images are compared: fine enough for PET.
_FIXED_SPACING, _MOVING_SPACING = 4.0, 3.0
_MARGIN = 20.0
#: Less of the patient along an axis does not hold six parameters.
MIN_EXTENT = 40.0
#: Share of the patient in the fixed image that the moving one must cover.
MIN_COVERAGE = 0.5

_NEAR = 10.0
NO_MOTION = (0.0,) * 6


class RigidMatcher:
    """Two images ready to be compared by SimpleITK; motions are three angles (radians) and three shifts (mm)."""

    def __init__(self, sitk: Any, fixed: SourceImage, moving: SourceImage) -> None:
        self.sitk = sitk
        self.box, values = _around_the_patient(fixed)
        self.centre, self.points = _patient(self.box, values)
        self.fixed = _as_itk(sitk, values, self.box)
        self.grid = grid = grid_over(moving, (_MOVING_SPACING,) * 3)
        moved = resample(moving, grid)
        # A few bright voxels (vessels, coils) must not take up most of the histogram.
        moved = np.clip(moved, *np.quantile(moved, (0.001, 0.999))).astype(np.float32)
        self.moving = _as_itk(sitk, moved, grid)
        self.moving_centre = _patient(grid, moved)[0]

    def starts(self, before: float | None) -> list[tuple[float, ...]]:
        """As the files say, and with centres of mass on each other where that is another start."""
        shift = tuple(m - f for m, f in zip(self.moving_centre, self.centre, strict=True))
        centred = (0.0, 0.0, 0.0, *shift)
        if before is None:
            return [centred]
        return [NO_MOTION] if math.hypot(*shift) < _NEAR else [NO_MOTION, centred]

    def disturbed(self, parameters: tuple[float, ...], angles: Any, shift: Any) -> tuple[float, ...]:
        more = (*(math.radians(a) for a in angles), *shift)
        return tuple(p + m for p, m in zip(parameters, more, strict=True))

    def distance(self, first: tuple[float, ...], second: tuple[float, ...]) -> float:
        """Mean distance in mm of the patient's points after the two motions."""
        return float(np.linalg.norm(self._moved(first) - self._moved(second), axis=0).mean())

    def covered(self, parameters: tuple[float, ...]) -> float:
        """Share of the patient in the fixed image that the moving one covers, in [0, 1]."""
        grid = self.grid
        return share_inside(self._moved(parameters), grid.affine, grid.shape)

    def metric(self, parameters: tuple[float, ...]) -> float | None:
        """Mutual information in nats; None where less than half of the patient is in the moving image."""
        if self.covered(parameters) < MIN_COVERAGE:  # a few voxels in common may well agree
            return None
        method = self._method()
        method.SetInitialTransform(self._transform(parameters))
        try:
            return -method.MetricEvaluate(self.fixed, self.moving)
        except RuntimeError:
            return None

    def optimise(self, start: tuple[float, ...], fine: bool = True) -> tuple[tuple[float, ...], float]:
        """Motion and mutual information at the end, without the finest resolution if not ``fine``.

        Those of ``start`` if the images part on the way; minus infinity if they do not overlap.
        """
        method, transform = self._method(), self._transform(start)
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=4.0, minStep=0.01, numberOfIterations=120, relaxationFactor=0.5
        )
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([4, 2, 1] if fine else [4, 2])
        method.SetSmoothingSigmasPerLevel([8.0, 4.0, 0.0] if fine else [8.0, 4.0])
        method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
        method.SetInitialTransform(transform, inPlace=True)
        try:
            method.Execute(self.fixed, self.moving)
            end = tuple(transform.GetParameters())
        except RuntimeError:
            end = start
        value = self.metric(end)
        return end, -math.inf if value is None else value

    def _moved(self, parameters: tuple[float, ...]) -> NDArray[np.float64]:
        matrix = rigid_matrix([math.degrees(v) for v in parameters[:3]], parameters[3:], self.centre)
        return matrix[:3, :3] @ self.points + matrix[:3, 3:]

    def _method(self) -> Any:
        method = self.sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=32)
        method.SetMetricSamplingStrategy(method.NONE)
        method.SetInterpolator(self.sitk.sitkLinear)
        return method

    def _transform(self, parameters: tuple[float, ...]) -> Any:
        transform = self.sitk.Euler3DTransform()
        transform.SetCenter(self.centre)
        transform.SetParameters(parameters)
        return transform


def _around_the_patient(fixed: SourceImage) -> tuple[PatientGrid, NDArray[np.float32]]:
    """The part of an image that the patient is in, with a margin of air: most of a scanner's view is empty."""
    grid = grid_over(fixed, (_FIXED_SPACING,) * 3)
    values = np.clip(resample(fixed, grid), 0, None)
    inside = _mask(values)
    box = []
    for axis, size in enumerate(values.shape):
        found = np.flatnonzero(inside.any(axis=tuple(k for k in range(3) if k != axis)))
        if (extent := (found[-1] + 1 - found[0]) * _FIXED_SPACING) < MIN_EXTENT:
            raise ValueError(
                f"registration needs at least {MIN_EXTENT:g} mm of the patient along each axis, found {extent:g} mm "
                f"along {'zyx'[axis]}: give an anatomical image that is aligned already"
            )
        margin = round(_MARGIN / _FIXED_SPACING)
        box.append(slice(max(0, int(found[0]) - margin), min(size, int(found[-1]) + 1 + margin)))
    values = values[tuple(box)]
    return grid.cropped(tuple(box)), np.clip(values, 0, np.quantile(values[inside[tuple(box)]], 0.999))


def _mask(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(values, 1.0)
    return smooth > 0.2 * np.quantile(smooth, 0.995)


def _patient(grid: PatientGrid, values: NDArray[np.float32]) -> tuple[tuple[float, ...], NDArray[np.float64]]:
    """Centre of mass and some points of what is not air, LPS mm."""
    index = np.argwhere(_mask(np.clip(values, 0, None))).T
    points = grid.affine[:3, :3] @ index + grid.affine[:3, 3:]
    return tuple(float(v) for v in points.mean(1)), points[:, :: max(1, points.shape[1] // 500)]


def _as_itk(sitk: Any, values: NDArray[np.float32], grid: PatientGrid) -> Any:
    image = sitk.GetImageFromArray(np.ascontiguousarray(values, np.float32))
    spacing = np.asarray(grid.voxel_size)
    image.SetSpacing([float(v) for v in spacing[::-1]])
    image.SetOrigin([float(v) for v in grid.first])
    image.SetDirection((grid.affine[:3, :3] / spacing)[:, ::-1].ravel().tolist())
    return image


def rigid_matrix(rotation_deg: Any, shift: Any, centre: Any) -> NDArray[np.float64]:
    """Fixed to moving coordinates, in ITK's order: turned about y, then x, then z."""
    a, b, c = (math.radians(v) for v in rotation_deg)
    about_x = np.asarray([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    about_y = np.asarray([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
    about_z = np.asarray([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = about_z @ about_x @ about_y
    matrix[:3, 3] = np.asarray(shift) + centre - matrix[:3, :3] @ centre
    return matrix
