"""The layout that a projection-data header describes: axes, segments, scanner, arc correction."""

from __future__ import annotations

import logging
import math

from ...geometry.projdata import ProjDataGeometry, Segment
from ...geometry.scanners import standardise
from .header import Header, InterfileError
from .keys import DATA_TYPES
from .scanner import read_scanner

_logger = logging.getLogger(__name__)

BY_VIEW = ("tangential coordinate", "axial coordinate", "view", "segment")
_BY_SINOGRAM = ("tangential coordinate", "view", "axial coordinate", "segment")


def read_layout(header: Header) -> tuple[ProjDataGeometry, list[Segment], bool]:
    """Layout with its segments sorted, segments in the file's order, and whether each is stored view by view.

    Raises
    ------
    InterfileError, UnsupportedError
        See :func:`sirf_diffusion.files.interfile.read_projection_data`.
    """
    _check_supported(header)
    labels = tuple(header.text("matrix axis label", index=k) for k in (1, 2, 3, 4))
    if labels not in (BY_VIEW, _BY_SINOGRAM):
        raise header.error(
            f"keys 'matrix axis label' [1] to [4] must be {', '.join(BY_VIEW)}, or with [2] and [3] exchanged; "
            f"found {', '.join(labels)}"
        )
    num_tangential, num_views = (header.size("matrix size", labels.index(k) + 1) for k in (BY_VIEW[0], "view"))
    stored = _read_segments(header, header.integers("matrix size", labels.index(BY_VIEW[1]) + 1, minimum=1))
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
        _logger.warning(
            "%s: %d views are not a divisor of the scanner's %d; view angles are not adjusted for mashing, as in STIR",
            header.path,
            num_views,
            scanner.max_num_views,
        )
    return geometry, stored, labels == BY_VIEW


def _check_supported(header: Header) -> None:
    if "list" in header.text("data format", "").lower():
        raise header.unsupported(f"list-mode data ('data format := {header.text('data format')}')")
    if "%sms-mi version number" in header:
        raise header.unsupported("a Siemens header ('%sms-mi version number')", "STIR or SIRF to convert it")
    if standardise(header.text("imaging modality", "PT")) in ("nm", "nucmed", "spect"):
        raise header.unsupported("SPECT data ('imaging modality := NM')")
    dimensions = header.integer("number of dimensions", 2)
    if dimensions == 5:
        raise header.unsupported("time-of-flight data ('number of dimensions := 5')", "STIR or SIRF")
    if dimensions != 4:
        raise header.error(f"key 'number of dimensions' must be 4 for projection data, found {dimensions}")
    if (kind := header.choice("PET data type", DATA_TYPES, "Image")) != "Emission":
        raise header.error(f"key 'PET data type' must be Emission for projection data, found {kind}")
    if (frames := header.integer("number of time frames", 1)) > 1:
        raise header.unsupported(f"several time frames ('number of time frames := {frames}')", "STIR to extract one")
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
        _logger.warning("%s: exchanged minimum and maximum ring differences where minimum > maximum", header.path)
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
        _logger.warning("%s: no 'applied corrections'; taken as arc-corrected data, as STIR does", header.path)
        return True
    arc = {"arc correction", "arc corrected"}
    others = [word for word in corrections if word not in arc | {"none"}]
    if others:
        _logger.warning("%s: 'applied corrections' %s make no difference here", header.path, ", ".join(others))
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
        _logger.warning("%s: '%s' gives bins of %g mm, the scanner's are %g mm", header.path, key, value, default)
    return value
