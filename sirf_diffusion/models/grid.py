"""The grid adapter: between the image's voxels and the voxels that a network was trained on, with exact adjoints.

A network needs images of its own voxel size whose sides are multiples of a power of two. The latent image is the image
on such a grid. It covers the whole field of view of the image; what it adds around it is air: zero in the clean
image, with noise of its own in a noisy one, like every other voxel of the latent image. Padding belongs to the latent
grid for that reason: padding single slices on their way into the network would surround noise by noiseless margins,
which no network has seen in training.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..geometry.checks import check_choice, check_count, check_real
from ..geometry.images import ImageGeometry

logger = logging.getLogger(__name__)

PLANES = ("transverse", "three", "alternating", "volume")
#: Those that look at slices of all three orientations.
THREE_ORIENTATIONS = ("three", "alternating")
#: First image voxel of z, y and x, and the one after the last.
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
#: Shape of a latent grid, and the part of it that a box is.
Window = tuple[tuple[int, ...], tuple[slice, ...]]
#: Voxel sizes that differ by less are not resampled: networks are trained with scale changes of 10 %.
SAME_VOXEL_SIZE = 0.05


def checked_box(value: Any) -> Box | None:
    """A box as a file has it; ValueError if it is none."""
    if value is None:
        return None
    pairs = tuple(tuple(check_count("box", end, 0) for end in pair) for pair in value)
    if len(pairs) != 3 or not all(len(pair) == 2 and pair[0] < pair[1] for pair in pairs):
        raise ValueError(f"box must be three ranges (first, end), found {value!r}")
    return pairs


class GridAdapter:
    """Linear maps between an image grid and a network's grid; voxel ``size // 2`` of an axis has its centre on both.

    Axes whose voxel size agrees with the network's within 5 % are padded and not resampled: then `to_image` after
    `to_latent` returns the same numbers. Others are interpolated linearly, each axis by an explicit matrix. When the
    voxels get larger, the interpolating triangle is as wide as the larger voxel, so that activity is averaged and not
    picked. Constants stay constant inside the field of view in both directions.

    Parameters
    ----------
    geometry, voxel_size
        The image grid, and the network's voxel size ``(z, y, x)`` in mm.
    multiple, axial_multiple
        The latent sizes of the axes that slices lie in are multiples of this; that of z, if it is another.
    planes
        ``"transverse"``: slices lie in y and x, and z is left as it is. ``"three"``, ``"alternating"``: slices lie in
        all three pairs of axes. ``"volume"``: the network takes the volume.
    extent
        If given, only a centred square of this side in mm, in y and x, is covered; the image is zero outside it.
    box
        If given, the first image voxel of z, y and x and the one after the last: only these are covered, and what
        lies around them up to a multiple; the image is zero outside.
    """

    def __init__(
        self,
        geometry: ImageGeometry,
        voxel_size: tuple[float, float, float],
        multiple: int = 1,
        planes: str = "transverse",
        extent: float | None = None,
        box: Box | None = None,
        axial_multiple: int | None = None,
    ) -> None:
        check_choice("planes", planes, PLANES)
        if planes != "transverse" and geometry.shape[0] == 1:
            raise ValueError(
                f"planes={planes!r} needs a volume, found an image of one plane; use planes='transverse' with a "
                "network of slices"
            )
        if extent is not None:
            check_real("extent (mm)", extent, open_below=True)
        self.geometry, self.planes, self.extent, self.box = geometry, planes, extent, box
        #: With a box, what that is of the latent grid without it.
        self.window: Window | None = None
        multiples = (1 if planes == "transverse" else axial_multiple or multiple, multiple, multiple)
        axial, *in_plane = zip(geometry.shape, geometry.voxel_size, voxel_size, strict=True)
        self._axes = (
            _keep(*axial[:2]) if planes == "transverse" else _axis(*axial, multiples[0], None),
            *(_axis(*axis, multiple, extent) for axis in in_plane),
        )
        z, y, x = self._axes
        # STIR's origin is the centre of the first plane, but of the middle voxel in y and x.
        origin_z = geometry.origin[0] + geometry.shape[0] // 2 * geometry.voxel_size[0] - z.size // 2 * z.spacing
        origin = (origin_z, *geometry.origin[1:])
        if box is not None:
            places = [
                _latent_range(axis, *size, *ends, step)
                for axis, size, ends, step in zip(
                    (z, y, x), zip(geometry.shape, geometry.voxel_size, strict=True), box, multiples, strict=True
                )
            ]
            (low_z, _), *in_plane = places
            moved = (
                low_z,
                *(low + (high - low) // 2 - axis.size // 2 for axis, (low, high) in zip((y, x), in_plane, strict=True)),
            )
            origin = tuple(o + n * axis.spacing for o, n, axis in zip(origin, moved, (z, y, x), strict=True))
            self.window = (z.size, y.size, x.size), tuple(slice(*place) for place in places)
            z, y, x = (axis.cropped(low, high) for axis, (low, high) in zip((z, y, x), places, strict=True))
            self._axes = (z, y, x)
        self.latent_geometry = ImageGeometry((z.size, y.size, x.size), (z.spacing, y.spacing, x.spacing), origin)

    @property
    def resamples(self) -> bool:
        """Whether voxel sizes differ, so that the maps interpolate."""
        return any(axis.to_latent is not None for axis in self._axes)

    @property
    def latent_inside(self) -> Tensor:
        """Boolean latent image: which voxels have their centre in the image's field of view."""
        z, y, x = (axis.inside for axis in self._axes)
        return z[:, None, None] & y[:, None] & x

    @property
    def covered(self) -> Tensor:
        """Boolean image: which voxels the latent image tells; the others are zero in `to_image`."""
        z, y, x = (axis.covered for axis in self._axes)
        return z[:, None, None] & y[:, None] & x

    def to_latent(self, x: Tensor) -> Tensor:
        """``P x``: image ``[..., z, y, x]`` to latent image, zero outside the field of view."""
        _check_shape(x, self.geometry.shape, "image")
        return self._apply(x, [(axis.to_latent, axis.padding) for axis in self._axes])

    def to_latent_adjoint(self, u: Tensor) -> Tensor:
        """``P^T u``, with ``<P x, u> = <x, P^T u>``."""
        _check_shape(u, self.latent_geometry.shape, "latent image")
        return self._apply(u, [(_transposed(axis.to_latent), axis.cropping) for axis in self._axes])

    def to_image(self, u: Tensor) -> Tensor:
        """``R u``: latent image to image; the inverse of `to_latent`, approximately where it interpolates."""
        _check_shape(u, self.latent_geometry.shape, "latent image")
        return self._apply(u, [(axis.to_image, axis.cropping) for axis in self._axes])

    def to(self, device: torch.device | str) -> GridAdapter:
        """The same adapter for tensors on another device."""
        moved = object.__new__(GridAdapter)
        moved.__dict__.update(self.__dict__, _axes=tuple(axis.to(device) for axis in self._axes))
        return moved

    def log(self) -> None:
        """Say what is done to the image, if it is more than padding."""
        if self.resamples:
            old, new = self.geometry, self.latent_geometry
            logger.warning(
                "the image is resampled for the network: voxels of %s mm (%s) become %s mm (%s)",
                " x ".join(f"{v:.4g}" for v in old.voxel_size),
                " x ".join(map(str, old.shape)),
                " x ".join(f"{v:.4g}" for v in new.voxel_size),
                " x ".join(map(str, new.shape)),
            )
        if self.box is not None:
            sizes = (" x ".join(map(str, grid.shape)) for grid in (self.latent_geometry, self.geometry))
            logger.info("the network looks at the object only: %s voxels (image %s)", *sizes)
        elif not bool(self.covered.all()):
            logger.warning("the network covers the centre of the image only: it is zero outside")

    @staticmethod
    def _apply(x: Tensor, maps: list[tuple[Tensor | None, tuple[int, int]]]) -> Tensor:
        # x first and z last: the last axis is the fastest to multiply along, and padding is done in one copy.
        if any(any(padding) for _, padding in maps):
            x = torch.nn.functional.pad(x, [side for _, padding in reversed(maps) for side in padding])
        for axis, (matrix, _) in zip((-3, -2, -1), maps, strict=True):
            if matrix is not None:
                x = _multiply(matrix.to(x), x, axis)
        return x


def neighbouring(places: Tensor, size: int, reach: int) -> Tensor:
    """Numbers ``[n, 1 + 2 reach]`` of slices and of those before and after them; mirrored at the ends of the volume."""
    around = (places[:, None] + torch.arange(-reach, reach + 1)).abs()
    return (size - 1 - (size - 1 - around).abs()).clamp(0, size - 1)


@dataclass(frozen=True)
class _Axis:
    """One axis of the latent grid: either padding (negative: cropping) on the two sides, or a pair of matrices."""

    size: int
    spacing: float
    inside: Tensor
    covered: Tensor
    padding: tuple[int, int] = (0, 0)
    to_latent: Tensor | None = None
    to_image: Tensor | None = None

    @property
    def cropping(self) -> tuple[int, int]:
        return -self.padding[0], -self.padding[1]

    def to(self, device: torch.device | str) -> _Axis:
        return replace(
            self,
            inside=self.inside.to(device),
            covered=self.covered.to(device),
            to_latent=None if self.to_latent is None else self.to_latent.to(device),
            to_image=None if self.to_image is None else self.to_image.to(device),
        )

    def cropped(self, low: int, high: int) -> _Axis:
        """The part of the axis from one latent voxel to before another."""
        size, inside = high - low, self.inside[low:high]
        if self.to_latent is None or self.to_image is None:
            padding = (self.padding[0] - low, self.padding[1] - (self.size - high))
            number = torch.arange(len(self.covered))
            covered = self.covered & (number >= -padding[0]) & (number < size - padding[0])
            return _Axis(size, self.spacing, inside, covered, padding)
        to_image = self.to_image[:, low:high]
        covered = self.covered & (to_image.sum(1) > 1 - 1e-6)  # no voxel is interpolated with what is not there
        return _Axis(size, self.spacing, inside, covered, (0, 0), self.to_latent[low:high], to_image * covered[:, None])


def _latent_range(axis: _Axis, size: int, old: float, first: int, end: int, multiple: int) -> tuple[int, int]:
    """The latent voxels that cover the image's voxels from ``first`` to before ``end``, from multiple to multiple.

    So a box that is a few voxels smaller or larger mostly covers the same, and where it does not, a network that halves
    the sides of its images halves them at the same places: its answer for the voxels that both cover hardly changes.
    """
    centre = axis.size // 2 + 0.5
    low, high = (centre + (n - size // 2 - 0.5) * old / axis.spacing for n in (first, end))
    low, high = max(math.floor(low + 1e-6), 0), min(math.ceil(high - 1e-6), axis.size)
    low = min(low, axis.size - 1) // multiple * multiple
    return low, -(-max(high, low + 1) // multiple) * multiple


def _keep(size: int, spacing: float) -> _Axis:
    everything = torch.ones(size, dtype=torch.bool)
    return _Axis(size, spacing, everything, everything)


def _axis(size: int, old: float, new: float, multiple: int, extent: float | None) -> _Axis:
    same = abs(old - new) <= SAME_VOXEL_SIZE * new
    spacing = old if same else new
    # Half-sizes in mm below and above the centre of voxel size // 2.
    below, above = (size // 2 + 0.5) * old, (size - size // 2 - 0.5) * old
    wanted_below, wanted_above = (below, above) if extent is None else (min(below, extent / 2), min(above, extent / 2))
    latent_size = multiple
    while not (
        (latent_size // 2 + 0.5) * spacing >= wanted_below * (1 - 1e-9)
        and (latent_size - latent_size // 2 - 0.5) * spacing >= wanted_above * (1 - 1e-9)
    ):
        latent_size += multiple
    latent = (torch.arange(latent_size, dtype=torch.float64) - latent_size // 2) * spacing
    inside = (latent > -below) & (latent < above)
    left = latent_size // 2 - size // 2
    right = latent_size - size - left
    latent_below, latent_above = (latent_size // 2 + 0.5) * spacing, (latent_size - latent_size // 2 - 0.5) * spacing
    if same:
        number = torch.arange(size)
        return _Axis(latent_size, spacing, inside, (number >= -left) & (number < size + right), padding=(left, right))
    image = (torch.arange(size, dtype=torch.float64) - size // 2) * old
    covered = (image > -latent_below) & (image < latent_above)
    width = max(old, new)
    to_latent = _triangle(latent, inside, image, torch.ones_like(covered), width)
    # Latent voxels outside the field of view are air by definition, and do not darken the image's last voxels.
    to_image = _triangle(image, covered, latent, inside, width)
    return _Axis(latent_size, spacing, inside, covered, to_latent=to_latent, to_image=to_image)


def _triangle(to: Tensor, to_valid: Tensor, source: Tensor, source_valid: Tensor, width: float) -> Tensor:
    """Interpolation matrix ``[to, source]`` with rows that sum to one, or are zero where ``to_valid`` is false."""
    weights = (1 - (to[:, None] - source[None, :]).abs() / width).clamp(min=0) * source_valid
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-12) * to_valid[:, None]


def _transposed(matrix: Tensor | None) -> Tensor | None:
    return None if matrix is None else matrix.T


def _multiply(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    if axis == -1:
        return x @ matrix.T
    if axis == -2:
        return matrix @ x
    return (matrix @ x.flatten(-2)).unflatten(-1, x.shape[-2:])


def _check_shape(x: Tensor, shape: tuple[int, int, int], what: str) -> None:
    if tuple(x.shape[-3:]) != shape:
        raise ValueError(f"the {what} must have the shape [..., {', '.join(map(str, shape))}], found {tuple(x.shape)}")
