"""Projection data of cylindrical PET scanners in STIR Interfile (``.hs`` and ``.s``)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable

import numpy as np
import torch

from ...geometry.exam import ExamInfo
from ...geometry.projdata import ProjDataGeometry, Segment
from ...geometry.scanners import standardise
from .exam import exam_lines, frame_lines
from .header import Header, InterfileError
from .keys import DATA_TYPES
from .scanner import read_scanner, scanner_lines
from .values import check_finite, encoded, output_paths, read_values, scale_factors, write_pair

_BY_VIEW = ("tangential coordinate", "axial coordinate", "view", "segment")
_BY_SINOGRAM = ("tangential coordinate", "view", "axial coordinate", "segment")


def read_projection_data(path: str | os.PathLike[str]) -> tuple[torch.Tensor, ProjDataGeometry]:
    """Read non-TOF projection data of a cylinder: ``float32`` ``[sinogram, view, tangential]`` and its layout.

    ``NAME#2`` is the second time frame of dynamic data. Both of STIR's storage orders, integers of 1 to 8 bytes and
    floats of 4 or 8, either byte order, a scale factor and data offsets are understood. The scanner is that of
    'originating system', with all values that the header (``.hs``) gives taken from the header. Segments are put in the
    order 0, +1, -1, +2, ... whatever their order in the file, so that data of different files can be combined.

    Raises InterfileError if a key is missing or has no meaning, the data file is missing or short, or values are not
    finite, and UnsupportedError for time-of-flight, list-mode, SPECT and Siemens headers, scanners made of blocks, and
    several time frames of which none is chosen.
    """
    header = Header(path)
    geometry, stored, by_view = _read_layout(header)
    scale = scale_factors(header, len(stored), header.frame)
    # STIR has the first factor for all time frames.
    if (scale != scale[0]).any() or scale[0] != scale_factors(header, len(stored), 1)[0]:
        where = "differs between segments or time frames"
        raise header.error(f"key 'image scaling factor' {where}; projection data need a single one")
    data = _in_segment_order(read_values(header, geometry.num_bins, in_turn=True), stored, geometry, by_view)
    with np.errstate(over="ignore", invalid="ignore"):
        data *= scale[0]
    check_finite(header, data)
    header.warn_of_unread_keys()
    return torch.from_numpy(data), geometry


def read_projection_data_geometry(path: str | os.PathLike[str]) -> ProjDataGeometry:
    """Layout that a header (``.hs``) describes, as of a template; its data file need not exist.

    Raises InterfileError, UnsupportedError as :func:`read_projection_data`, but for the data.
    """
    return _read_layout(Header(path))[0]


def write_projection_data(
    path: str | os.PathLike[str],
    data: torch.Tensor,
    geometry: ProjDataGeometry,
    number_format: str = "float",
    exam: ExamInfo | None = None,
) -> None:
    """Write projection data ``[sinogram, view, tangential]`` as STIR does: little-endian, ``.hs`` and ``.s``.

    Segments in the layout's order, the views of each one after another. The rest is as of `write_image`.
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


def _read_layout(header: Header) -> tuple[ProjDataGeometry, list[Segment], bool]:
    """Layout with its segments sorted, segments in the file's order, and whether each is stored view by view."""
    _check_supported(header)
    labels = tuple(header.text("matrix axis label", index=k) for k in (1, 2, 3, 4))
    if labels not in (_BY_VIEW, _BY_SINOGRAM):
        raise header.error(
            f"keys 'matrix axis label' [1] to [4] must be {', '.join(_BY_VIEW)}, or with [2] and [3] exchanged; "
            f"found {', '.join(labels)}"
        )
    num_tangential, num_views = (header.size("matrix size", labels.index(k) + 1) for k in (_BY_VIEW[0], "view"))
    stored = _read_segments(header, header.integers("matrix size", labels.index(_BY_VIEW[1]) + 1, minimum=1))
    arc_corrected = _is_arc_corrected(header)
    try:
        scanner = read_scanner(header)
        if not arc_corrected and scanner.max_num_non_arccorrected_bins < num_tangential:
            key, most = "maximum number of non-arc-corrected bins", scanner.max_num_non_arccorrected_bins
            raise header.error(f"key '{key}' is {most}, less than the {num_tangential} tangential positions")
        geometry = ProjDataGeometry(
            scanner=scanner,
            segments=tuple(sorted(stored, key=lambda segment: (abs(segment.num), segment.num < 0))),
            num_views=num_views,
            num_tangential_positions=num_tangential,
            arc_corrected=arc_corrected,
            tangential_spacing=_bin_size(header, scanner.default_bin_size) if arc_corrected else None,
            bed_position=(
                header.number("start horizontal bed position (mm)", 0.0),
                header.number("start vertical bed position (mm)", 0.0),
            ),
        )
    except InterfileError:
        raise
    except ValueError as problem:
        raise header.error(str(problem)) from problem
    if scanner.max_num_views % num_views:
        header.warn(
            f"{num_views} views are not a divisor of the scanner's {scanner.max_num_views}; view angles are not "
            "adjusted for mashing, as in STIR"
        )
    return geometry, stored, labels == _BY_VIEW


def _check_supported(header: Header) -> None:
    if "list" in header.text("data format", "").lower():
        raise header.unsupported(f"list-mode data ('data format := {header.text('data format')}')")
    if standardise(header.text("imaging modality", "PT")) in ("nm", "nucmed", "spect"):
        raise header.unsupported("SPECT data ('imaging modality := NM')")
    dimensions = header.integer("number of dimensions", 2)
    if dimensions == 5:
        raise header.unsupported("time-of-flight data ('number of dimensions := 5')", "STIR or SIRF")
    if dimensions != 4:
        raise header.error(f"key 'number of dimensions' must be 4 for projection data, found {dimensions}")
    if (kind := header.choice("PET data type", DATA_TYPES, "Image")) != "Emission":
        raise header.error(f"key 'PET data type' must be Emission for projection data, found {kind}")
    key = "Scanner geometry (BlocksOnCylindrical/Cylindrical/Generic)"
    if (shape := header.text(key, "Cylindrical")) != "Cylindrical":
        raise header.unsupported(f"a scanner that is no cylinder ('{key} := {shape}')", "STIR or SIRF")


def _read_segments(header: Header, sizes: list[int]) -> list[Segment]:
    """Segments in the file's order, numbered by sorting their ring differences."""
    num = header.size("matrix size", 4)
    low, high = (header.integers(f"{k} ring difference per segment") for k in ("minimum", "maximum"))
    for what, values in (("axial sizes", sizes), ("minimum ring differences", low), ("maximum ring differences", high)):
        if len(values) != num:
            raise header.error(f"{num} segments ('matrix size [4]') need {num} {what}, found {len(values)}")
    ranges = [(min(pair), max(pair)) for pair in zip(low, high, strict=True)]
    if ranges != list(zip(low, high, strict=True)):
        header.warn("exchanged minimum and maximum ring differences where minimum > maximum")
    sums = sorted(map(sum, ranges))
    if 0 not in sums or len(set(sums)) != num:
        raise header.error(
            f"ring differences per segment {ranges[:20]} must differ from segment to segment, and one segment (0) must "
            "be symmetric about 0"
        )
    return [Segment(sums.index(sum(r)) - sums.index(0), *r, size) for r, size in zip(ranges, sizes, strict=True)]


def _is_arc_corrected(header: Header) -> bool:
    words = header.items("applied corrections") if "applied corrections" in header else []
    corrections = [standardise(word) for word in words if word]
    if not corrections:
        header.warn("no 'applied corrections'; taken as arc-corrected data, as STIR does")
        return True
    arc = {"arc correction", "arc corrected"}
    others = [word for word in corrections if word not in arc | {"none"}]
    if others:
        header.warn(f"'applied corrections' {', '.join(others)} make no difference here")
    return not arc.isdisjoint(corrections)


def _bin_size(header: Header, default: float) -> float:
    """Tangential spacing of arc-corrected data in mm."""
    key = "effective central bin size (cm)"
    value = 10 * header.number(key, -1.0)
    if value <= 0:
        if default <= 0:
            raise header.error(f"arc-corrected data need the key '{key}' or 'default bin size (cm)'")
        return default
    if default > 0 and not math.isclose(value, default, abs_tol=0.01):
        header.warn(f"'{key}' gives bins of {value:g} mm, the scanner's are {default:g} mm")
    return value
