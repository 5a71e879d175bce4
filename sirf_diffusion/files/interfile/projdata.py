"""Projection data of cylindrical PET scanners in STIR Interfile (``.hs`` and ``.s``)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable

import numpy as np
import torch

from ...geometry.exam import ExamInfo
from ...geometry.projdata import ProjDataGeometry, Segment
from .exam import exam_lines, frame_lines
from .header import Header
from .layout import read_layout
from .scanner import scanner_lines
from .values import check_finite, encoded, output_paths, read_values, scale_factors, write_pair


def read_projection_data(path: str | os.PathLike) -> tuple[torch.Tensor, ProjDataGeometry]:
    """Read non-TOF projection data of a cylindrical scanner.

    Parameters
    ----------
    path
        Header (``.hs``). Both of STIR's storage orders, integers of 1 to 8 bytes and floats of 4 or 8, either byte
        order, a scale factor and a data offset are understood. The scanner is that of 'originating system', with all
        values that the header gives taken from the header.

    Returns
    -------
    data, geometry
        ``float32`` ``[sinogram, view, tangential]`` and its layout. Segments are put in the order 0, +1, -1, +2, ...
        whatever their order in the file, so that data of different files can be combined.

    Raises
    ------
    InterfileError
        If a key is missing or has no meaning, the data file is missing or short, or values are not finite.
    UnsupportedError
        For time-of-flight, list-mode, SPECT and Siemens headers, scanners made of blocks, and several time frames.
    """
    header = Header(path)
    geometry, stored, by_view = read_layout(header)
    scale = scale_factors(header, len(stored))
    if (scale != scale[0]).any():
        raise header.error("key 'image scaling factor' differs between segments; projection data need a single one")
    data = _in_segment_order(read_values(header, geometry.num_bins), stored, geometry, by_view)
    with np.errstate(over="ignore", invalid="ignore"):
        data *= scale[0]
    check_finite(header, data)
    header.warn_of_unread_keys()
    return torch.from_numpy(data), geometry


def read_projection_data_geometry(path: str | os.PathLike) -> ProjDataGeometry:
    """Layout that a header (``.hs``) describes, as of a template; its data file need not exist.

    Raises
    ------
    InterfileError, UnsupportedError
        As :func:`read_projection_data`, but for the data.
    """
    return read_layout(Header(path))[0]


def write_projection_data(
    path: str | os.PathLike,
    data: torch.Tensor,
    geometry: ProjDataGeometry,
    number_format: str = "float",
    exam: ExamInfo | None = None,
) -> None:
    """Write projection data as STIR does: little-endian, views of a segment one after another.

    Parameters
    ----------
    path
        Name that ends in ``.hs`` or has no suffix. Existing files are replaced, both or none.
    data
        ``[sinogram, view, tangential]`` of ``geometry.shape``, finite.
    geometry
        Its layout; segments are stored in its order.
    number_format
        ``"float"``, or ``"short"`` for half the size (see `encoded` for its precision).
    exam
        Exam information to keep with the data.

    Raises
    ------
    InterfileError
        If the shape does not match, a value is not finite or the files cannot be written.
    """
    header, data_file = output_paths(path, ".hs")
    array = data.detach().to("cpu", torch.float32).numpy()
    values, dtype, format_lines, scale = encoded(array, geometry.shape, number_format)
    segments = geometry.segments
    lines = [
        "!INTERFILE  :=",
        f"name of data file := {data_file.name}",
        f"originating system := {geometry.scanner.name}",
        "!version of keys := STIR6.0",
        "!GENERAL DATA :=",
        "!GENERAL IMAGE DATA :=",
        *exam_lines(exam or ExamInfo(), image=False),
        "!type of data := PET",
        "imagedata byte order := LITTLEENDIAN",
        "!PET STUDY (General) :=",
        "!PET data type := Emission",
        f"applied corrections := {{{'arc correction' if geometry.arc_corrected else 'None'}}}",
        *format_lines,
        "number of dimensions := 4",
        "matrix axis label [4] := segment",
        f"!matrix size [4] := {len(segments)}",
        "matrix axis label [3] := view",
        f"!matrix size [3] := {geometry.num_views}",
        "matrix axis label [2] := axial coordinate",
        f"!matrix size [2] := {_list(segment.num_axial_positions for segment in segments)}",
        "matrix axis label [1] := tangential coordinate",
        f"!matrix size [1] := {geometry.num_tangential_positions}",
        f"minimum ring difference per segment := {_list(segment.min_ring_difference for segment in segments)}",
        f"maximum ring difference per segment := {_list(segment.max_ring_difference for segment in segments)}",
        *scanner_lines(geometry.scanner, geometry.num_tangential_positions),
    ]
    if geometry.tangential_spacing is not None:
        lines.append(f"effective central bin size (cm) := {geometry.tangential_spacing / 10:.9g}")
    lines += [
        *frame_lines(exam or ExamInfo()),
        f"image scaling factor[1] := {scale:.9g}",
        f"start vertical bed position (mm) := {geometry.bed_position[1]:.9g}",
        f"start horizontal bed position (mm) := {geometry.bed_position[0]:.9g}",
        "!END OF INTERFILE :=",
    ]
    write_pair(header, data_file, lines, [values[part].swapaxes(0, 1) for part in geometry.segment_slices()], dtype)


def _list(values: Iterable[int]) -> str:
    return "{ " + ",".join(str(value) for value in values) + "}"


def _in_segment_order(
    values: np.ndarray, stored: list[Segment], geometry: ProjDataGeometry, by_view: bool
) -> np.ndarray:
    data = np.empty(geometry.shape, dtype=np.float32)
    places = {segment.num: part for segment, part in zip(geometry.segments, geometry.segment_slices(), strict=True)}
    start = 0
    for segment in stored:
        sinogram_shape = (segment.num_axial_positions, *geometry.shape[1:])
        block = values[start : start + math.prod(sinogram_shape)]
        start += block.size
        if by_view:
            view_shape = (geometry.num_views, segment.num_axial_positions, geometry.num_tangential_positions)
            block = block.reshape(view_shape).swapaxes(0, 1)
        with np.errstate(over="ignore", invalid="ignore"):
            data[places[segment.num]] = block.reshape(sinogram_shape)
    return data
