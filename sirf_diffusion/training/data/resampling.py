"""Resampling into the axes and voxels of a file of training volumes: STIR's axes, given voxel size."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .import_images import SourceImage

#: Directions of STIR's axes z, y, x in LPS coordinates, for a patient who lies head first and supine: columns.
_DIRECTIONS = np.asarray([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
#: Rotations below this (as a cosine's distance from 1: a third of a degree) and voxel sizes that agree this well are
#: taken as equal: interpolation would blur more than that matters.
_ALIGNED, _SAME_SIZE = 2e-5, 2e-3


@dataclass(frozen=True)
class PatientGrid:
    """A grid in the patient whose axes are STIR's.

    Attributes
    ----------
    shape
        ``(z, y, x)``.
    voxel_size
        ``(z, y, x)`` in mm.
    first
        Centre of voxel ``(0, 0, 0)`` in LPS mm.
    """

    shape: tuple[int, int, int]
    voxel_size: tuple[float, float, float]
    first: tuple[float, float, float]

    @property
    def affine(self) -> NDArray[np.float64]:
        """``(k, j, i, 1)`` to LPS mm."""
        affine = np.eye(4)
        affine[:3, :3] = _DIRECTIONS * np.asarray(self.voxel_size)
        affine[:3, 3] = self.first
        return affine

    def cropped(self, box: tuple[slice, slice, slice]) -> PatientGrid:
        """The part inside a box of indices."""
        corner = self.affine @ np.asarray([*(s.start for s in box), 1.0])
        return replace(self, shape=tuple(s.stop - s.start for s in box), first=tuple(corner[:3]))


def grid_over(image: SourceImage, voxel_size: tuple[float, float, float]) -> PatientGrid:
    """The grid with this voxel size that covers an image, on its own voxels where axes and sizes agree."""
    corners = np.asarray(np.meshgrid(*[(-0.5, n - 0.5) for n in image.values.shape], indexing="ij")).reshape(3, -1)
    points = _DIRECTIONS.T @ (image.affine[:3, :3] @ corners + image.affine[:3, 3:])
    low, high = points.min(1), points.max(1)
    # half a voxel of slack: an extent of 10.1 voxels gives 10
    shape = np.maximum(1, np.ceil((high - low) / voxel_size - 0.5)).astype(int)
    middle = (low + high) / 2
    first = _DIRECTIONS @ (middle - (shape - 1) / 2 * np.asarray(voxel_size))
    return PatientGrid(tuple(int(n) for n in shape), voxel_size, tuple(first))


def resample(image: SourceImage, grid: PatientGrid) -> NDArray[np.float32]:
    """Values of an image on a grid, interpolated linearly, after averaging where the voxels get larger.

    Axes that agree with the grid's, with the same voxel sizes and whole shifts, are exchanged, mirrored and cropped
    only: every voxel keeps its value.

    Parameters
    ----------
    image
        The image.
    grid
        Where its values are wanted.

    Returns
    -------
    numpy.ndarray
        ``[z, y, x]`` float32, zero outside the image.
    """
    from scipy.ndimage import affine_transform

    to_source = np.linalg.inv(image.affine) @ grid.affine
    to_source = _without_rounding(to_source)
    values = _averaged(image.values, to_source)
    moved = affine_transform(
        values, to_source[:3, :3], to_source[:3, 3], output_shape=grid.shape, order=1, mode="constant", cval=np.nan
    )
    # Voxels at the very edge are inside, but have no neighbour to interpolate with: they take the nearest value.
    missing = np.isnan(moved)
    if missing.any():
        moved = np.where(missing, _at_the_edge(values, to_source, missing), moved)
    return moved.astype(np.float32)


def coverage(image: SourceImage, grid: PatientGrid) -> float:
    """Share of a grid that lies inside an image, in [0, 1]."""
    to_source = np.linalg.inv(image.affine) @ grid.affine
    step = [max(1, n // 24) for n in grid.shape]
    points = np.asarray(np.meshgrid(*[np.arange(0, n, s) for n, s in zip(grid.shape, step, strict=True)]))
    source = to_source[:3, :3] @ points.reshape(3, -1) + to_source[:3, 3:]
    inside = (source > -0.5 - 1e-6) & (source < np.asarray(image.values.shape)[:, None] - 0.5 + 1e-6)
    return float(inside.all(axis=0).mean())


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


def _averaged(values: NDArray[np.float32], to_source: NDArray[np.float64]) -> NDArray[np.float32]:
    """Smooth along the axes on which the new voxels are larger: FWHM^2 = new^2 - old^2."""
    from scipy.ndimage import gaussian_filter

    steps = np.abs(to_source[:3, :3]).max(axis=1)
    sd = np.sqrt(np.clip(steps**2 - 1, 0, None)) / 2.3548
    return gaussian_filter(values, sd, mode="nearest") if sd.max() > 0.1 else values


def _at_the_edge(
    values: NDArray[np.float32], to_source: NDArray[np.float64], missing: NDArray[np.bool_]
) -> NDArray[np.float32]:
    result = np.zeros(missing.shape, np.float32)
    limits = np.asarray(values.shape)[:, None]
    for k in np.flatnonzero(missing.any(axis=(1, 2))):
        where = np.argwhere(missing[k]).T
        points = np.vstack([np.full(where.shape[1], k), where])
        source = to_source[:3, :3] @ points + to_source[:3, 3:]
        near = ((source > -0.5 - 1e-6) & (source < limits - 0.5 + 1e-6)).all(axis=0)
        index = np.clip(np.round(source[:, near]), 0, limits - 1).astype(int)
        result[k, where[0][near], where[1][near]] = values[tuple(index)]
    return result
