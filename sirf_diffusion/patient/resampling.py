"""Grids in the patient whose axes are STIR's, and resampling into them: one way for training and reconstruction."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..geometry.exam import HEAD_FIRST_SUPINE, POSITIONS, Position
from ..geometry.images import ImageGeometry
from .image import SourceImage, optional

#: Rotations below this (as a cosine's distance from 1: a third of a degree) and voxel sizes that agree this well are
#: taken as equal: interpolation would blur more than that matters.
_ALIGNED, _SAME_SIZE = 2e-5, 2e-3


@dataclass(frozen=True)
class PatientGrid:
    """A grid in the patient whose axes are STIR's: ``(z, y, x)``, voxel sizes in mm.

    ``first`` is the centre of voxel ``(0, 0, 0)`` in LPS mm; the patient's position decides where STIR's axes point.
    """

    shape: tuple[int, int, int]
    voxel_size: tuple[float, float, float]
    first: tuple[float, float, float]
    position: Position = HEAD_FIRST_SUPINE

    @property
    def affine(self) -> NDArray[np.float64]:
        """``(k, j, i, 1)`` to LPS mm."""
        affine = np.eye(4)
        affine[:3, :3] = _directions(self.position) * np.asarray(self.voxel_size)
        affine[:3, 3] = self.first
        return affine

    def cropped(self, box: tuple[slice, slice, slice]) -> PatientGrid:
        """The part inside a box of indices."""
        corner = self.affine @ np.asarray([*(s.start for s in box), 1.0])
        return replace(self, shape=tuple(s.stop - s.start for s in box), first=tuple(corner[:3]))


@dataclass(frozen=True)
class Lattice:
    """Where voxels lie, LPS mm: all that resampling asks of a grid."""

    shape: tuple[int, ...]
    affine: NDArray[np.float64]


def stir_grid(geometry: ImageGeometry, position: Position = HEAD_FIRST_SUPINE) -> PatientGrid:
    """Where the voxels of an image of STIR's lie in a patient of this position, as STIR itself has it."""
    z, y, x = geometry.origin
    (_, ny, nx), (_, dy, dx) = geometry.shape, geometry.voxel_size
    first = _directions(position) @ np.asarray([z, y - ny // 2 * dy, x - nx // 2 * dx])
    return PatientGrid(geometry.shape, geometry.voxel_size, tuple(float(v) for v in first), position)


def grid_over(image: SourceImage, voxel_size: tuple[float, float, float]) -> PatientGrid:
    """The grid with this voxel size that covers an image, on its own voxels where axes and sizes agree."""
    corners = np.asarray(np.meshgrid(*[(-0.5, n - 0.5) for n in image.values.shape], indexing="ij")).reshape(3, -1)
    directions = _directions(HEAD_FIRST_SUPINE)
    points = directions.T @ (image.affine[:3, :3] @ corners + image.affine[:3, 3:])
    low, high = points.min(1), points.max(1)
    # half a voxel of slack: an extent of 10.1 voxels gives 10
    shape = np.maximum(1, np.ceil((high - low) / voxel_size - 0.5)).astype(int)
    middle = (low + high) / 2
    first = directions @ (middle - (shape - 1) / 2 * np.asarray(voxel_size))
    return PatientGrid(tuple(int(n) for n in shape), voxel_size, tuple(first))


def resample(image: SourceImage, grid: PatientGrid | Lattice, *, labels: bool = False) -> NDArray[np.float32]:
    """Values ``[z, y, x]`` of an image on a grid, zero outside it: linear, after averaging where voxels get larger.
    Of a label image, the nearest label.

    Axes that agree with the grid's, with the same voxel sizes and whole shifts, are exchanged, mirrored and cropped
    only: every voxel keeps its value.
    """
    to_source = _without_rounding(np.linalg.inv(image.affine) @ grid.affine)[:3]
    if image.values.shape == grid.shape and np.array_equal(to_source, np.eye(4)[:3]):
        return image.values.astype(np.float32)
    sitk = optional("SimpleITK", "resampling images")
    # Both images in indices, whose order is x, y, z in ITK: the transform alone says where they lie.
    transform = sitk.AffineTransform(to_source[::-1, 2::-1].ravel().tolist(), to_source[::-1, 3].tolist())
    nearest = labels or np.array_equal(to_source, np.round(to_source))
    values = image.values if labels else smoothed(image.values, _averaging(to_source))
    moved = sitk.Resample(
        sitk.GetImageFromArray(np.ascontiguousarray(values, np.float32)),
        grid.shape[::-1],
        transform,
        sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear,
    )
    return sitk.GetArrayFromImage(moved)


def interpolates(image: SourceImage, affine: NDArray[np.float64]) -> bool:
    """Whether `resample` to a grid of this affine gives other values than the image's own."""
    to_source = _without_rounding(np.linalg.inv(image.affine) @ affine)
    return not np.array_equal(to_source, np.round(to_source))


def smoothed(values: NDArray[np.float32], sd: NDArray[np.float64]) -> NDArray[np.float32]:
    """Values convolved with a Gaussian of these standard deviations in voxels, by axis."""
    sitk = optional("SimpleITK", "resampling images")
    if sd.max() <= 0.1:
        return values
    image = sitk.GetImageFromArray(np.ascontiguousarray(values, np.float32))
    return sitk.GetArrayFromImage(sitk.DiscreteGaussian(image, (sd[::-1] ** 2).tolist(), 256, [1e-4] * 3, False))


def coverage(image: SourceImage | PatientGrid | Lattice, grid: SourceImage | PatientGrid | Lattice) -> float:
    """Share of a grid that lies inside an image, in [0, 1]; by at least 24 points along an axis that has them."""
    step = [max(1, n // 24) for n in grid.shape]
    index = np.asarray(np.meshgrid(*[np.arange(0, n, s) for n, s in zip(grid.shape, step, strict=True)]))
    points = grid.affine[:3, :3] @ index.reshape(3, -1) + grid.affine[:3, 3:]
    return share_inside(points, image.affine, image.shape)


def in_common(first: SourceImage | PatientGrid | Lattice, second: SourceImage | PatientGrid | Lattice) -> float:
    """Volume that two images share, over the largest that images of their extents could share, in [0, 1].

    So one plane of a wide field of view has all in common with a whole head around its middle.
    """

    def volume(image: SourceImage | PatientGrid | Lattice) -> float:
        return float(abs(np.linalg.det(image.affine[:3, :3])) * np.prod(image.shape))

    large, small = sorted((first, second), key=volume, reverse=True)
    extents = [np.abs(image.affine[:3, :3]) @ np.asarray(image.shape) for image in (large, small)]
    most = min(volume(small), float(np.prod(np.minimum(*extents))))
    return min(1.0, coverage(large, small) * volume(small) / most)


def share_inside(points: NDArray[np.float64], affine: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Share of points ``[3, n]`` in LPS mm that lie inside an image's voxels."""
    return float(are_inside(points, affine, shape).mean())


def are_inside(points: NDArray[np.float64], affine: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which of the points ``[3, n]`` in LPS mm lie inside an image's voxels."""
    to_index = np.linalg.inv(affine)
    source = to_index[:3, :3] @ points + to_index[:3, 3:]
    inside = (source > -0.5 - 1e-6) & (source < np.asarray(shape)[:, None] - 0.5 + 1e-6)
    return inside.all(axis=0)


def _directions(position: Position) -> NDArray[np.float64]:
    """Directions of STIR's axes z, y, x in LPS coordinates: columns."""
    x, y, z = POSITIONS[position]
    return np.asarray([[0.0, 0.0, x], [0.0, y, 0.0], [z, 0.0, 0.0]])


def _without_rounding(to_source: NDArray[np.float64]) -> NDArray[np.float64]:
    """Replace what is an exchange of axes up to rounding by exactly that, with whole shifts where they nearly are."""
    exact = np.round(to_source[:3, :3])
    is_exchange = bool((np.abs(exact).sum(0) == 1).all() and (np.abs(exact).sum(1) == 1).all())
    difference = np.abs(to_source[:3, :3] - exact)
    along = np.abs(exact) == 1
    tilted = np.sqrt(2 * _ALIGNED)
    if not is_exchange or difference[along].max() > _SAME_SIZE or difference[~along].max() > tilted:
        return to_source
    shift = to_source[:3, 3]
    whole = np.round(shift)
    result = to_source.copy()
    result[:3, :3] = exact
    if np.abs(shift - whole).max() < 0.05:
        result[:3, 3] = whole
    return result


def _averaging(to_source: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviations, in voxels, for the axes on which the new voxels are larger: FWHM^2 = new^2 - old^2."""
    steps = np.abs(to_source[:, :3]).max(axis=1)
    return np.sqrt(np.clip(steps**2 - 1, 0, None)) / 2.3548
