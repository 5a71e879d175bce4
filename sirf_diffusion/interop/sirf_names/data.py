"""Images and acquisition data with the names and semantics of ``sirf.STIR``."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ...files.interfile import (
    read_exam_info,
    read_image,
    read_projection_data,
    read_projection_data_geometry,
    write_image,
    write_projection_data,
)
from ...geometry.exam import ExamInfo
from ...geometry.images import ImageGeometry
from ...geometry.projdata import ProjDataGeometry
from ...geometry.scanners import get_scanner
from .containers import DataContainer, error
from .zoom import grid_after_zoom, zoomed

Read = TypeVar("Read")

# SIRF's images are equal if the sum of squared differences is at most this share of the larger sum of squares.
_EQUAL = 1e-6


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
        if isinstance(arg, (str, os.PathLike)):
            self.read_from_file(arg)
            return
        if not isinstance(arg, (AcquisitionData, ImageData)):
            raise error(f"wrong argument {arg!r} for ImageData: give a file name, AcquisitionData or ImageData")
        made = arg.create_uniform_image() if isinstance(arg, AcquisitionData) else arg.clone()
        self._tensor, self._geometry, self.exam = made.tensor, made.geometry, made.exam

    def initialise(
        self,
        dim: tuple[int, int, int],
        vsize: tuple[float, float, float] = (1.0, 1.0, 1.0),
        origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> None:
        """Erase and set size, voxel sizes and origin in mm, all as ``(z, y, x)``."""
        self._geometry, self.exam = ImageGeometry(dim, vsize, origin), ExamInfo()
        self._tensor = torch.zeros(self._geometry.shape)

    def read_from_file(self, filename: str | os.PathLike[str]) -> None:
        """Replace the contents by those of a file."""
        (self._tensor, self._geometry), self.exam = _read(read_image, filename), _read(read_exam_info, filename)

    def write(self, filename: str) -> None:
        write_image(filename, self.tensor, self.geometry, exam=self.exam)

    def voxel_sizes(self) -> tuple[float, float, float]:
        """Voxel sizes ``(z, y, x)`` in mm."""
        return self.geometry.voxel_size

    @property
    def spacing(self) -> tuple[float, float, float]:
        return self.voxel_sizes()

    def equal(self, other: ImageData) -> bool:
        """Whether grid and values are the same up to rounding."""
        if not isinstance(other, ImageData):
            raise error(f"cannot compare ImageData with {type(other).__name__}")
        if self.geometry != other.geometry:
            return False
        x, y = self.tensor.double(), other.tensor.double()
        return float((x - y).square().sum()) <= _EQUAL * max(float(x.square().sum()), float(y.square().sum()))

    __eq__ = equal  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]

    def zoom_image(
        self,
        zooms: tuple[float, float, float] = (1.0, 1.0, 1.0),
        offsets_in_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
        size: tuple[int, int, int] = (-1, -1, -1),
        scaling: str = "preserve_sum",
    ) -> ImageData:
        """A zoomed image; everything is ``(z, y, x)``.

        Parameters
        ----------
        zooms
            Old over new voxel size.
        offsets_in_mm
            By how much the centre moves.
        size
            Voxels of the new image; -1 for as many as before.
        scaling
            ``"preserve_sum"``, ``"preserve_values"`` or ``"preserve_projections"``.
        """
        return self._zoomed(grid_after_zoom(self.geometry, zooms, offsets_in_mm, size), scaling)

    def zoom_image_as_template(self, template_image: ImageData, scaling: str = "preserve_sum") -> ImageData:
        """The image on another one's grid."""
        return self._zoomed(template_image.geometry, scaling)

    def _zoomed(self, geometry: ImageGeometry, scaling: str) -> ImageData:
        return ImageData.of(zoomed(self.tensor, self.geometry, geometry, scaling), geometry, self.exam)


class AcquisitionData(DataContainer):
    """Projection data; arrays have SIRF's axes (TOF bin, sinogram, view, tangential position) with one TOF bin.

    As in SIRF the storage scheme is ``"file"`` unless ``set_storage_scheme("memory")`` was called before: then data
    offer no view of their values, and those read from a file cannot be filled. This engine keeps all in memory anyway.
    A header without its data serves as a template; what is wrong with the data is said when they are asked for.

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
    _scheme: ClassVar[str] = "file"

    def __init__(
        self,
        src: str | AcquisitionData | None = None,
        span: int = 1,
        max_ring_diff: int = -1,
        view_mash_factor: int = 1,
    ) -> None:
        super().__init__()
        self.supports_array_view = AcquisitionData._scheme == "memory"
        self.read_only = False
        self._file: Path | None = None
        if src is None:
            return
        if isinstance(src, os.PathLike) or (isinstance(src, str) and "." in src):
            self.read_from_file(src)
            self.read_only = AcquisitionData._scheme == "file"
            return
        if isinstance(src, AcquisitionData):
            self._geometry, self.exam = src.geometry, src.exam
        elif isinstance(src, str):
            self._geometry = _scanner_geometry(src, span, max_ring_diff, view_mash_factor)
        else:
            raise error(
                f"wrong source {src!r} for AcquisitionData: give a file name, a scanner name or AcquisitionData"
            )
        self._tensor = torch.zeros(self._geometry.shape)

    @property
    def tensor(self) -> Tensor:
        """The data, shared with the container; read from the file now if that was not done yet."""
        if self._tensor is None and self._file is not None:
            values, found = _read(read_projection_data, self._file)
            if found != self._geometry:
                raise error(f"{self._file} has another layout than when it was opened: read it again")
            self._tensor = values
        return super().tensor

    @staticmethod
    def set_storage_scheme(scheme: str) -> None:
        """``"memory"`` or ``"file"``, for data made from now on."""
        if scheme not in ("memory", "file"):
            raise error(f"storage scheme must be 'memory' or 'file', found {scheme!r}")
        AcquisitionData._scheme = scheme

    @staticmethod
    def get_storage_scheme() -> str:
        return AcquisitionData._scheme

    def fill(self, value: Any) -> AcquisitionData:
        """Overwrite the values with a number, an array of the same shape or another container; returns itself."""
        if self.read_only:
            raise error("Cannot fill read-only object, consider filling a clone")
        return super().fill(value)

    def read_from_file(self, filename: str | os.PathLike[str]) -> None:
        """Replace the contents by those of a file, read-only."""
        self._file, self._tensor, self.read_only = Path(filename).absolute(), None, True
        self._geometry = _read(read_projection_data_geometry, self._file)
        self.exam = _read(read_exam_info, self._file)
        with suppress(OSError, ValueError):  # said when the values are asked for
            self._tensor = read_projection_data(self._file)[0]

    def write(self, filename: str) -> None:
        write_projection_data(filename, self.tensor, self.geometry, exam=self.exam)

    def get_uniform_copy(self, value: float = 0.0) -> AcquisitionData:
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
        return ImageData.of(torch.full(geometry.shape, float(value)), geometry, self.exam)


def _read(read: Callable[[Any], Read], filename: Any) -> Read:
    try:
        return read(filename)
    except (OSError, ValueError) as problem:  # InterfileError is a ValueError
        raise error(str(problem)) from problem


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


#: Scanners of STIR 6.5 whose data have bins of time of flight.
_WITH_TOF = {
    "Siemens mCT", "Siemens Vision 600", "Siemens Quadra", "GE Signa PET/MR", "GE Discovery 690",
    *(f"GE Discovery MI {rings} rings" for rings in (3, 4, 5, 6)),
    *(f"UPENN_{rings}rings{gaps}" for rings in (5, 6) for gaps in ("", "_no_gaps")), "test_scanner",
}  # fmt: skip


def _scanner_geometry(name: str, span: int, max_ring_diff: int, view_mash_factor: int) -> ProjDataGeometry:
    scanner, largest = get_scanner(name), max_ring_diff
    if scanner.name in _WITH_TOF:
        raise error(f"STIR's {scanner.name} measures time of flight, which this engine does not know: use SIRF")
    if largest < 0:
        largest = scanner.num_rings - 1
    try:
        full = ProjDataGeometry.from_scanner(name, span, largest)
    except ValueError as problem:
        raise error(str(problem)) from problem
    if view_mash_factor == 1:
        return full
    if full.num_views % view_mash_factor:
        raise error(f"view_mash_factor must divide the {full.num_views} views of {name}, found {view_mash_factor}")
    return ProjDataGeometry.from_scanner(name, span, largest, num_views=full.num_views // view_mash_factor)
