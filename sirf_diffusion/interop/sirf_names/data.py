"""Images and acquisition data with the names and semantics of ``sirf.STIR``, held in PyTorch tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...files.interfile import read_image, read_projection_data, write_image, write_projection_data
from ...geometry.images import ImageGeometry
from ...geometry.projdata import ProjDataGeometry
from ...geometry.scanners import get_scanner

Self = TypeVar("Self", bound="DataContainer")


class error(Exception):
    """What SIRF raises for wrong arguments."""

    @property
    def value(self) -> str:
        """The message."""
        return str(self)


class DataContainer:
    """Values on a grid with vector arithmetic; the base of :class:`ImageData` and :class:`AcquisitionData`.

    ``tensor`` is the float32 data without SIRF's axis of TOF bins, ``geometry`` the grid. Arithmetic needs equal grids.
    """

    _leading: tuple[int, ...] = ()

    def __init__(self) -> None:
        self._tensor: Tensor | None = None
        self._geometry: Any = None

    @classmethod
    def of(cls: type[Self], tensor: Tensor, geometry: Any) -> Self:
        """A container around a tensor (not a copy)."""
        made = cls()
        made._tensor, made._geometry = tensor.detach().to("cpu", torch.float32).contiguous(), geometry
        return made

    @property
    def tensor(self) -> Tensor:
        """The data, shared with the container."""
        if self._tensor is None:
            raise error(f"this {type(self).__name__} is empty: read a file or make it from another one")
        return self._tensor

    @property
    def geometry(self) -> Any:
        """The grid of the data."""
        self.tensor  # noqa: B018 - raises for an empty container
        return self._geometry

    def clone(self: Self) -> Self:
        """An independent copy."""
        return self.of(self.tensor.clone(), self._geometry)

    copy = clone

    def get_uniform_copy(self: Self, value: float = 1.0) -> Self:
        """A container on the same grid, filled with ``value``."""
        return self.of(torch.full_like(self.tensor, float(value)), self._geometry)

    def fill(self: Self, value: Any) -> Self:
        """Overwrite the values with a number, an array of the same shape or another container; returns itself."""
        if isinstance(value, type(self)):
            self._check_same(value)
            self.tensor.copy_(value.tensor)
        elif isinstance(value, np.ndarray):
            if value.shape != self.shape:
                raise ValueError(
                    f"cannot fill {type(self).__name__} of size {self.shape} with data of size {value.shape}"
                )
            self.tensor.copy_(
                torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32)).reshape(self.tensor.shape)
            )
        elif isinstance(value, (Real, np.number)):
            self.tensor.fill_(float(value))
        else:
            raise TypeError(
                f"cannot fill {type(self).__name__} with {type(value).__name__}: give a number, array or container"
            )
        return self

    def dimensions(self) -> tuple[int, ...]:
        """Shape of :meth:`as_array`."""
        return (*self._leading, *self.tensor.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Same as :meth:`dimensions`."""
        return self.dimensions()

    @property
    def size(self) -> int:
        """Number of values."""
        return self.tensor.numel()

    def as_array(self) -> np.ndarray:
        """A copy of the values as a NumPy array."""
        return self.asarray().copy()

    def asarray(self) -> np.ndarray:
        """The values as a NumPy array that shares memory with the container."""
        return self.tensor.numpy().reshape(self.dimensions())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.asarray()
        return array.astype(dtype) if dtype is not None and dtype != array.dtype else (array.copy() if copy else array)

    def max(self) -> float:
        """Largest value."""
        return float(self.tensor.max())

    def min(self) -> float:
        """Smallest value."""
        return float(self.tensor.min())

    def sum(self) -> float:
        """Sum of all values, accumulated in double precision."""
        return float(self.tensor.sum(dtype=torch.float64))

    def norm(self) -> float:
        """Euclidean norm."""
        return math.sqrt(self.dot(self))

    def dot(self, other: DataContainer) -> float:
        """Inner product, accumulated in double precision."""
        self._check_same(other)
        return float((self.tensor.double() * other.tensor.double()).sum())

    def abs(self: Self) -> Self:
        """Absolute values."""
        return self.of(self.tensor.abs(), self._geometry)

    def exp(self: Self) -> Self:
        """Exponential of each value."""
        return self.of(self.tensor.exp(), self._geometry)

    def log(self: Self) -> Self:
        """Natural logarithm of each value."""
        return self.of(self.tensor.log(), self._geometry)

    def sqrt(self: Self) -> Self:
        """Square root of each value."""
        return self.of(self.tensor.sqrt(), self._geometry)

    def power(self: Self, other: Any, out: Self | None = None) -> Self:
        """Each value to a power."""
        return self._binary(other, torch.pow, out)

    def add(self: Self, other: Any, out: Self | None = None) -> Self:
        """Sum with a number, array or container."""
        return self._binary(other, torch.add, out)

    def subtract(self: Self, other: Any, out: Self | None = None) -> Self:
        """Difference to a number, array or container."""
        return self._binary(other, torch.sub, out)

    def multiply(self: Self, other: Any, out: Self | None = None) -> Self:
        """Product with a number, array or container, value by value."""
        return self._binary(other, torch.mul, out)

    def divide(self: Self, other: Any, out: Self | None = None) -> Self:
        """Ratio to a number, array or container, value by value."""
        return self._binary(other, torch.div, out)

    def maximum(self: Self, other: Any, out: Self | None = None) -> Self:
        """Larger of each pair of values."""
        return self._binary(other, torch.maximum, out)

    def minimum(self: Self, other: Any, out: Self | None = None) -> Self:
        """Smaller of each pair of values."""
        return self._binary(other, torch.minimum, out)

    def sapyb(self: Self, a: Any, y: Self, b: Any, out: Self | None = None) -> Self:
        """Linear combination ``a * self + b * y``; ``a`` and ``b`` are numbers or containers."""
        result = self.multiply(a).add(y.multiply(b))
        return result if out is None else out.fill(result)

    def __add__(self: Self, other: Any) -> Self:
        return self.add(other)

    __radd__ = __add__

    def __sub__(self: Self, other: Any) -> Self:
        return self.subtract(other)

    def __rsub__(self: Self, other: Any) -> Self:
        return (-self).add(other)

    def __mul__(self: Self, other: Any) -> Self:
        return self.multiply(other)

    __rmul__ = __mul__

    def __truediv__(self: Self, other: Any) -> Self:
        return self.divide(other)

    def __rtruediv__(self: Self, other: Any) -> Self:
        return self.power(-1).multiply(other)

    def __neg__(self: Self) -> Self:
        return self.multiply(-1)

    def __iadd__(self: Self, other: Any) -> Self:
        return self.add(other, out=self)

    def __isub__(self: Self, other: Any) -> Self:
        return self.subtract(other, out=self)

    def __imul__(self: Self, other: Any) -> Self:
        return self.multiply(other, out=self)

    def __itruediv__(self: Self, other: Any) -> Self:
        return self.divide(other, out=self)

    def _binary(self: Self, other: Any, operation: Callable[[Tensor, Tensor], Tensor], out: Self | None) -> Self:
        if isinstance(other, DataContainer):
            self._check_same(other)
            second = other.tensor
        elif isinstance(other, np.ndarray):
            second = self.clone().fill(other).tensor
        elif isinstance(other, (Real, np.number)):
            second = torch.tensor(float(other))
        else:
            raise TypeError(f"cannot combine {type(self).__name__} with {type(other).__name__}")
        result = self.of(operation(self.tensor, second), self._geometry)
        return result if out is None else out.fill(result)

    def _check_same(self, other: DataContainer) -> None:
        if type(other) is not type(self) or other.tensor.shape != self.tensor.shape:
            found = f"{type(other).__name__} of size {other.dimensions()}"
            raise error(f"{found} does not match {type(self).__name__} of size {self.dimensions()}")


class ImageData(DataContainer):
    """A PET image ``[z, y, x]``.

    Parameters
    ----------
    arg
        Interfile header name, :class:`AcquisitionData` (an image that covers its field of view, with STIR's default
        voxel sizes), another image, or None for an empty one.
    """

    geometry: ImageGeometry

    def __init__(self, arg: str | AcquisitionData | ImageData | None = None) -> None:
        super().__init__()
        if arg is None:
            return
        if isinstance(arg, AcquisitionData):
            made: DataContainer = arg.create_uniform_image(0.0)
        elif isinstance(arg, ImageData):
            made = arg.clone()
        elif isinstance(arg, str) or hasattr(arg, "__fspath__"):
            made = ImageData.of(*read_image(arg))
        else:
            raise error(f"wrong argument {arg!r} for ImageData: give a file name, AcquisitionData or ImageData")
        self._tensor, self._geometry = made.tensor, made.geometry

    def initialise(
        self,
        dim: tuple[int, int, int],
        vsize: tuple[float, float, float] = (1.0, 1.0, 1.0),
        origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> None:
        """Erase and set size, voxel sizes and origin in mm, all as ``(z, y, x)``."""
        self._geometry = ImageGeometry(dim, vsize, origin)
        self._tensor = torch.zeros(self._geometry.shape)

    def read_from_file(self, filename: str) -> None:
        """Replace the contents by those of a file."""
        self._tensor, self._geometry = read_image(filename)

    def write(self, filename: str) -> None:
        """Write as Interfile (``.hv`` and ``.v``)."""
        write_image(filename, self.tensor, self._geometry)

    def voxel_sizes(self) -> tuple[float, float, float]:
        """Voxel sizes ``(z, y, x)`` in mm."""
        return self.geometry.voxel_size

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Same as :meth:`voxel_sizes`."""
        return self.voxel_sizes()


class AcquisitionData(DataContainer):
    """Projection data; arrays have SIRF's axes (TOF bin, sinogram, view, tangential position) with one TOF bin.

    Data are always kept in memory and can always be filled (SIRF: those read from a file are read-only by default).

    Parameters
    ----------
    src
        Interfile header name (with a dot), scanner name (without), other data (a zero-filled copy of its geometry),
        or None.
    span, max_ring_diff, view_mash_factor
        Axial compression, largest ring difference (-1 for all) and view mashing, for a scanner name.
    """

    _leading = (1,)
    geometry: ProjDataGeometry

    def __init__(
        self,
        src: str | AcquisitionData | None = None,
        span: int = 1,
        max_ring_diff: int = -1,
        view_mash_factor: int = 1,
    ) -> None:
        super().__init__()
        if src is None:
            return
        if isinstance(src, AcquisitionData):
            self._geometry, self._tensor = src.geometry, torch.zeros_like(src.tensor)
        elif hasattr(src, "__fspath__") or (isinstance(src, str) and "." in src):
            self._tensor, self._geometry = read_projection_data(src)
        elif isinstance(src, str):
            self._geometry = _scanner_geometry(src, span, max_ring_diff, view_mash_factor)
            self._tensor = torch.zeros(self._geometry.shape)
        else:
            raise error(
                f"wrong source {src!r} for AcquisitionData: give a file name, a scanner name or AcquisitionData"
            )

    @staticmethod
    def set_storage_scheme(scheme: str) -> None:
        """Accepts ``"memory"`` and ``"file"`` as SIRF does; this engine keeps all data in memory either way."""
        if scheme not in ("memory", "file"):
            raise error(f"storage scheme must be 'memory' or 'file', found {scheme!r}")

    @staticmethod
    def get_storage_scheme() -> str:
        """Always ``"memory"``."""
        return "memory"

    def read_from_file(self, filename: str) -> None:
        """Replace the contents by those of a file."""
        self._tensor, self._geometry = read_projection_data(filename)

    def write(self, filename: str) -> None:
        """Write as Interfile (``.hs`` and ``.s``)."""
        write_projection_data(filename, self.tensor, self._geometry)

    def get_uniform_copy(self, value: float = 0.0) -> AcquisitionData:
        """Data of the same geometry, filled with ``value``."""
        return super().get_uniform_copy(value)

    def create_uniform_image(self, value: float = 0.0, xy: int | tuple[int, int] | None = None) -> ImageData:
        """An image of the scanner's planes and STIR's default in-plane voxel size, filled with ``value``.

        Parameters
        ----------
        value
            Value of all voxels.
        xy
            In-plane size, one number or ``(y, x)``; covers the field of view if omitted.
        """
        ny, nx = (xy, xy) if isinstance(xy, int) else (xy or (None, None))
        geometry = default_image_geometry(self.geometry, ny, nx)
        return ImageData.of(torch.full(geometry.shape, float(value)), geometry)


def default_image_geometry(projdata: ProjDataGeometry, ny: int | None = None, nx: int | None = None) -> ImageGeometry:
    """STIR's default grid: planes half a ring apart, in-plane voxels of the scanner's default bin size."""
    scanner = projdata.scanner
    middle = next(segment for segment in projdata.segments if segment.num == 0)
    compressed = middle.max_ring_difference > middle.min_ring_difference
    planes = middle.num_axial_positions if compressed else 2 * middle.num_axial_positions - 1
    positions = projdata.tangential_positions()
    voxel = scanner.default_bin_size
    if not voxel or voxel <= 0:
        voxel = float(positions[len(positions) // 2 + 1] - positions[len(positions) // 2])
    default = 2 * math.ceil(float(positions.abs().max()) / voxel) + 1
    return ImageGeometry((planes, ny or default, nx or default), (scanner.ring_spacing / 2, voxel, voxel))


def _scanner_geometry(name: str, span: int, max_ring_diff: int, view_mash_factor: int) -> ProjDataGeometry:
    largest = max_ring_diff
    if largest < 0:
        largest = get_scanner(name).num_rings - 1
    full = ProjDataGeometry.from_scanner(name, span, largest)
    if view_mash_factor == 1:
        return full
    if full.num_views % view_mash_factor:
        raise error(f"view_mash_factor must divide the {full.num_views} views of {name}, found {view_mash_factor}")
    return ProjDataGeometry.from_scanner(name, span, largest, num_views=full.num_views // view_mash_factor)
