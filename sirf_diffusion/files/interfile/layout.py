"""The layout that a projection-data header describes: axes, segments, scanner, arc correction."""

from __future__ import annotations

import logging
import math
import os

from ...geometry.projdata import ProjDataGeometry, Segment
from .header import Header, InterfileError
from .scanner import read_scanner

_logger = logging.getLogger(__name__)

_BY_VIEW = ("tangential coordinate", "axial coordinate", "view", "segment")
_BY_SINOGRAM = ("tangential coordinate", "view", "axial coordinate", "segment")


def read_layout(path: str | os.PathLike) -> tuple[Header, ProjDataGeometry, list[Segment], bool]:
    """Header, layout with its segments sorted, segments in the file's order, and whether each is stored view by view.

    Raises
    ------
    InterfileError, UnsupportedError
        See :func:`sirf_diffusion.files.interfile.read_projection_data`.
    """
    header = Header(path)
    _check_supported(header)
    labels = _storage_labels(header)
    num_tangential, num_views = (header.size("matrix size", labels.index(k) + 1) for k in (_BY_VIEW[0], "view"))
    stored = _read_segments(header, labels)
    arc_corrected = _is_arc_corrected(header)
    try:
        scanner = read_scanner(header)
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
    _warn_of_view_mashing(header, geometry)
    return header, geometry, stored, labels == _BY_VIEW


def _check_supported(header: Header) -> None:
    if "list" in header.text("data format", "").lower():
        raise header.unsupported(f"list-mode data ('data format := {header.text('data format')}')")
    if "%sms-mi version number" in header:
        raise header.unsupported("a Siemens header ('%sms-mi version number')", "STIR or SIRF to convert it")
    if header.text("imaging modality", "PT").lower() in ("nm", "nucmed"):
        raise header.unsupported("SPECT data ('imaging modality := NM')")
    dimensions = header.integer("number of dimensions")
    tof_mashing = max(header.integer(f"{prefix}TOF mashing factor", 1, minimum=0) for prefix in ("", "%"))
    if dimensions == 5:
        raise header.unsupported("time-of-flight data ('number of dimensions := 5')", "STIR or SIRF")
    if tof_mashing > 1:
        raise header.unsupported(f"time-of-flight data ('TOF mashing factor := {tof_mashing}')", "STIR or SIRF")
    if dimensions != 4:
        raise header.error(f"key 'number of dimensions' must be 4 for projection data, found {dimensions}")
    kind = header.text("PET data type")
    if kind.lower() != "emission":
        raise header.error(f"key 'PET data type' must be Emission for projection data, found {kind}")
    frames = header.integer("number of time frames", 1, minimum=1)
    if frames > 1:
        raise header.unsupported(f"several time frames ('number of time frames := {frames}')", "STIR to extract one")
    key = "Scanner geometry (BlocksOnCylindrical/Cylindrical/Generic)"
    shape = header.text(key, "Cylindrical")
    if shape.lower() != "cylindrical":
        raise header.unsupported(f"a scanner that is no cylinder ('{key} := {shape}')", "STIR or SIRF")


def _storage_labels(header: Header) -> tuple[str, ...]:
    labels = tuple(" ".join(header.text("matrix axis label", index=k).lower().split()) for k in (1, 2, 3, 4))
    if labels not in (_BY_VIEW, _BY_SINOGRAM):
        raise header.error(
            f"keys 'matrix axis label' [1] to [4] must be {', '.join(_BY_VIEW)}, or with [2] and [3] exchanged; "
            f"found {', '.join(labels)}"
        )
    return labels


def _read_segments(header: Header, labels: tuple[str, ...]) -> list[Segment]:
    """Segments in the file's order, numbered by sorting their ring differences."""
    num = header.size("matrix size", 4)
    sizes = header.integers("matrix size", labels.index("axial coordinate") + 1, minimum=1)
    low, high = (header.integers(f"{k} ring difference per segment") for k in ("minimum", "maximum"))
    for what, values in (("axial sizes", sizes), ("minimum ring differences", low), ("maximum ring differences", high)):
        if len(values) != num:
            raise header.error(f"{num} segments ('matrix size [4]') need {num} {what}, found {len(values)}")
    ranges = [(min(pair), max(pair)) for pair in zip(low, high, strict=True)]
    if ranges != list(zip(low, high, strict=True)):
        _logger.warning("%s: exchanged minimum and maximum ring differences where minimum > maximum", header.path)
    ranks = sorted(range(num), key=lambda i: sum(ranges[i]))
    sums = [sum(ranges[i]) for i in ranks]
    if 0 not in sums or len(set(sums)) != num:
        raise header.error(
            f"ring differences per segment {ranges} must differ from segment to segment, and one segment (0) must be "
            "symmetric about 0"
        )
    numbers = {i: rank - sums.index(0) for rank, i in enumerate(ranks)}
    return [Segment(numbers[i], *ranges[i], sizes[i]) for i in range(num)]


def _is_arc_corrected(header: Header) -> bool:
    corrections = header.words("applied corrections") if "applied corrections" in header else []
    if not corrections:
        _logger.warning("%s: no key 'applied corrections'; taken as arc-corrected data, as STIR does", header.path)
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


def _warn_of_view_mashing(header: Header, geometry: ProjDataGeometry) -> None:
    if geometry.scanner.max_num_views % geometry.num_views:
        _logger.warning(
            "%s: %d views are not a divisor of the scanner's %d; view angles are not adjusted for mashing, as in STIR",
            header.path,
            geometry.num_views,
            geometry.scanner.max_num_views,
        )
