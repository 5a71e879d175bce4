"""Cylindrical PET scanners and the layout of their projection data, in STIR's conventions.

Projection data are ``float32`` tensors ``[sinogram, view, tangential]``: the sinograms of all segments one after
another in storage order (0, +1, -1, +2, -2, ... as STIR and SIRF write them), each segment's sinograms by axial
position. The line of response of a bin has

``phi = view_angles()[view]``, ``s = tangential_positions()[k]``, ``m = axial_positions(segment)[a]``

and passes, at parameter ``t`` in mm, through ``x = s cos(phi) - t sin(phi)``, ``y = s sin(phi) + t cos(phi)`` and
``z = m + t tan(theta)`` relative to the axial centre of the scanner.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch

from .scanners import BlockStructure, Scanner, get_scanner

__all__ = ["BlockStructure", "ProjDataGeometry", "Scanner", "Segment"]

_logger = logging.getLogger(__name__)

_MOST = 100_000


@dataclass(frozen=True)
class ProjDataGeometry:
    """Layout of non-TOF projection data of a cylindrical scanner.

    Raises ValueError if a size is not positive, segments are missing or repeated, a tangential position lies beyond the
    ring, or axial positions do not fall between rings.

    Parameters
    ----------
    scanner, segments
        The scanner, and its segments in storage order; numbers are contiguous and contain 0.
    num_views, num_tangential_positions
        Views over 180 degrees; tangential size, positions are numbered from ``-(n // 2)``.
    arc_corrected
        True for equidistant tangential bins, false for bins ``s = R sin(k pi / num_detectors_per_ring)``.
    tangential_spacing
        In mm, of arc-corrected data; default: the scanner's ``default_bin_size``. ``None`` otherwise.
    bed_position
        Horizontal and vertical start position of the bed in mm; carried along, not used by the projector.
    """

    scanner: Scanner
    segments: tuple[Segment, ...]
    num_views: int
    num_tangential_positions: int
    arc_corrected: bool = False
    tangential_spacing: float | None = None
    bed_position: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", tuple(self.segments))
        numbers = sorted(segment.num for segment in self.segments)
        if 0 not in numbers or numbers != list(range(numbers[0], numbers[-1] + 1)):
            raise ValueError(f"segments must be numbered without gaps and contain 0, found {numbers}")
        for name in ("num_views", "num_tangential_positions"):
            if not 0 < getattr(self, name) <= _MOST:
                raise ValueError(f"{name} must be positive and at most {_MOST}, found {getattr(self, name)}")
        for segment in self.segments:
            compressed = segment.axial_positions_per_ring == 2
            most = 2 * self.scanner.num_rings - 1 if compressed else self.scanner.num_rings
            if segment.num_axial_positions > most:
                raise ValueError(
                    f"segment {segment.num} has {segment.num_axial_positions} axial positions, scanner "
                    f"'{self.scanner.name}' with {self.scanner.num_rings} rings has at most {most}"
                )
            if compressed and segment.num_axial_positions % 2 == 0:
                # The planes are centred on the scanner, so an even number would lie a quarter of a ring off.
                raise ValueError(
                    f"segment {segment.num} combines ring differences and needs an odd number of axial positions, "
                    f"found {segment.num_axial_positions}"
                )
        self._check_tangential()

    def _check_tangential(self) -> None:
        if self.arc_corrected:
            spacing = self.scanner.default_bin_size if self.tangential_spacing is None else self.tangential_spacing
            object.__setattr__(self, "tangential_spacing", spacing)
            if not (math.isfinite(spacing) and spacing > 0):
                raise ValueError(f"tangential_spacing of arc-corrected data must be positive, found {spacing} mm")
            extent = (self.num_tangential_positions // 2) * spacing
            if extent >= self.scanner.effective_ring_radius:
                raise ValueError(
                    f"{self.num_tangential_positions} arc-corrected bins of {spacing} mm reach "
                    f"{extent} mm from the axis, beyond the ring radius of {self.scanner.effective_ring_radius} mm"
                )
            return
        if self.tangential_spacing is not None:
            raise ValueError(
                f"tangential_spacing is for arc-corrected data only, found {self.tangential_spacing} mm for data that "
                "are not arc-corrected"
            )
        limit = self.scanner.max_num_non_arccorrected_bins or self.scanner.num_detectors_per_ring
        if self.num_tangential_positions > min(limit, self.scanner.num_detectors_per_ring):
            raise ValueError(
                f"num_tangential_positions is {self.num_tangential_positions}, scanner '{self.scanner.name}' has at "
                f"most {limit} bins that are not arc-corrected"
            )

    @classmethod
    def from_scanner(
        cls,
        scanner: Scanner | str,
        span: int,
        max_ring_difference: int,
        num_views: int | None = None,
        num_tangential_positions: int | None = None,
        arc_corrected: bool = False,
    ) -> ProjDataGeometry:
        """Layout of a scanner's data as STIR's ``ProjDataInfo::construct_proj_data_info`` makes it.

        Raises ValueError if ``span`` or ``max_ring_difference`` is outside its range, or the name is unknown.

        Parameters
        ----------
        scanner
            A scanner or the name of one (see :mod:`sirf_diffusion.geometry.scanners`).
        span
            Axial compression, positive. Odd: segment 0 combines ``span`` ring differences. Even, as GE's 2: segment 0
            combines ``span + 1``. All other segments combine ``span``, the last ones fewer if ``max_ring_difference``
            (from ``span // 2`` to ``num_rings - 1``) cuts them short.
        num_views, num_tangential_positions, arc_corrected
            Default: all views the scanner has, and its largest, or its default arc-corrected, size.

        Examples
        --------
        >>> ProjDataGeometry.from_scanner("Siemens mMR", span=11, max_ring_difference=60).shape
        (837, 252, 344)
        """
        if isinstance(scanner, str):
            scanner = get_scanner(scanner)
        if num_views is None:
            num_views = scanner.max_num_views
        if num_tangential_positions is None:
            num_tangential_positions = (
                scanner.default_num_arccorrected_bins if arc_corrected else scanner.max_num_non_arccorrected_bins
            )
        return cls(
            scanner=scanner,
            segments=_segments_of_span(scanner.num_rings, span, max_ring_difference),
            num_views=num_views,
            num_tangential_positions=num_tangential_positions,
            arc_corrected=arc_corrected,
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(num_sinograms, num_views, num_tangential_positions)``."""
        num_sinograms = sum(segment.num_axial_positions for segment in self.segments)
        return num_sinograms, self.num_views, self.num_tangential_positions

    @property
    def num_bins(self) -> int:
        """Number of elements of the data."""
        return math.prod(self.shape)

    @property
    def view_mashing(self) -> int:
        """Number of neighbouring views that were added; 1 where the scanner's views are no multiple of the data's."""
        unmashed = self.scanner.max_num_views
        return unmashed // self.num_views if unmashed % self.num_views == 0 else 1

    def segment_slices(self) -> list[slice]:
        """Where each segment lies along the sinogram axis, in storage order."""
        slices, start = [], 0
        for segment in self.segments:
            slices.append(slice(start, start + segment.num_axial_positions))
            start += segment.num_axial_positions
        return slices

    def view_angles(self) -> torch.Tensor:
        """Angle ``phi`` of each view in radians, float64 ``[views]``."""
        step = math.pi / self.num_views
        mashing_offset = math.pi / self.scanner.max_num_views * (self.view_mashing - 1) / 2
        return torch.arange(self.num_views, dtype=torch.float64) * step + self.scanner.view_offset + mashing_offset

    def tangential_positions(self) -> torch.Tensor:
        """Signed distance ``s`` of each bin from the axis in mm, float64 ``[tangential]``."""
        k = torch.arange(self.num_tangential_positions, dtype=torch.float64) - self.num_tangential_positions // 2
        if self.tangential_spacing is not None:
            return k * self.tangential_spacing
        return self.scanner.effective_ring_radius * torch.sin(k * (math.pi / self.scanner.num_detectors_per_ring))

    def axial_sampling(self, segment: Segment) -> float:
        """Distance between neighbouring planes of a segment in mm."""
        return self.scanner.ring_spacing / segment.axial_positions_per_ring

    def axial_positions(self, segment: Segment) -> torch.Tensor:
        """Position ``m`` of each plane relative to the scanner's axial centre in mm, float64 ``[axial]``."""
        a = torch.arange(segment.num_axial_positions, dtype=torch.float64)
        return (a - (segment.num_axial_positions - 1) / 2) * self.axial_sampling(segment)

    def tan_theta(self, segment: Segment) -> torch.Tensor:
        """``tan(theta) = delta / (2 sqrt(R^2 - s^2))`` with the mean ring difference delta in mm, ``[tangential]``."""
        delta = segment.average_ring_difference * self.scanner.ring_spacing
        s = self.tangential_positions()
        return delta / (2 * torch.sqrt(self.scanner.effective_ring_radius**2 - s**2))

    def differences(self, other: ProjDataGeometry) -> list[str]:
        """What differs between two geometries beyond the rounding of headers; empty where data can be combined."""
        found = []

        def compare(what: str, a: float, b: float, tolerance: float = 0.0) -> None:
            if abs(a - b) > tolerance:
                found.append(f"{what}: {a} against {b}")

        mine, its = self.scanner, other.scanner
        compare("number of rings", mine.num_rings, its.num_rings)
        compare("detectors per ring", mine.num_detectors_per_ring, its.num_detectors_per_ring)
        compare("effective ring radius (mm)", mine.effective_ring_radius, its.effective_ring_radius, 0.05)
        compare("ring spacing (mm)", mine.ring_spacing, its.ring_spacing, 0.01)
        compare("view offset (rad)", mine.view_offset, its.view_offset, 1e-4)
        compare("views", self.num_views, other.num_views)
        compare("tangential positions", self.num_tangential_positions, other.num_tangential_positions)
        if self.arc_corrected != other.arc_corrected:
            found.append(f"arc-corrected: {self.arc_corrected} against {other.arc_corrected}")
        elif self.tangential_spacing is not None and other.tangential_spacing is not None:
            compare("tangential spacing (mm)", self.tangential_spacing, other.tangential_spacing, 0.01)
        if self.segments != other.segments:
            texts = (", ".join(map(str, segments)) for segments in (self.segments, other.segments))
            found.append(f"segments: {' against '.join(texts)}")
        return found


@dataclass(frozen=True)
class Segment:
    """Sinograms of a range of ring differences (ring 2 minus ring 1), ``min <= max``."""

    num: int
    min_ring_difference: int
    max_ring_difference: int
    num_axial_positions: int

    def __post_init__(self) -> None:
        if self.num_axial_positions <= 0:
            raise ValueError(f"segment {self.num}: needs at least one axial position, found {self.num_axial_positions}")
        if self.min_ring_difference > self.max_ring_difference:
            raise ValueError(
                f"segment {self.num}: min_ring_difference {self.min_ring_difference} is larger than "
                f"max_ring_difference {self.max_ring_difference}"
            )

    def __str__(self) -> str:
        return f"{self.num:+d} [{self.min_ring_difference}, {self.max_ring_difference}] x {self.num_axial_positions}"

    @property
    def average_ring_difference(self) -> float:
        """Mean of the extreme ring differences, in rings."""
        return (self.min_ring_difference + self.max_ring_difference) / 2

    @property
    def axial_positions_per_ring(self) -> int:
        """1 for uncompressed segments, 2 where ring differences are combined (planes lie half a ring apart)."""
        return 1 if self.min_ring_difference == self.max_ring_difference else 2


def _segments_of_span(num_rings: int, span: int, max_ring_difference: int) -> tuple[Segment, ...]:
    """Segments 0, +1, -1, ... as STIR's ``ProjDataInfo::construct_proj_data_info`` makes them.

    Raises ValueError if ``span`` or ``max_ring_difference`` is outside its range, or together they leave the outermost
    segments a single ring difference.
    """
    if not 1 <= span <= 2 * num_rings - 1:
        raise ValueError(f"span must be between 1 and {2 * num_rings - 1} for {num_rings} rings, found {span}")
    if not span // 2 <= max_ring_difference <= num_rings - 1:
        raise ValueError(
            f"max_ring_difference must be between {span // 2} and {num_rings - 1} for span {span} and "
            f"{num_rings} rings, found {max_ring_difference}"
        )
    first = span // 2
    planes = num_rings if span == 1 else 2 * num_rings - 1
    segments = [Segment(0, -first, first, planes)]
    low = first + 1
    while low <= max_ring_difference:
        high = min(low + span - 1, max_ring_difference)
        if low == high and span > 1 and low < num_rings - 1:
            # STIR gives such a segment twice the planes that its rings have, beyond the ends of the scanner.
            raise ValueError(
                f"max_ring_difference {high} leaves a single ring difference to the outermost segments of span {span}; "
                f"choose {high - 1} or {high + 1}"
            )
        num = len(segments) // 2 + 1
        planes = num_rings - low if span == 1 else 2 * (num_rings - low) - 1
        segments += [Segment(num, low, high, planes), Segment(-num, -high, -low, planes)]
        low = high + 1
    full = span == 1 or segments[-1].max_ring_difference - segments[-1].min_ring_difference + 1 >= span
    if not full and max_ring_difference < num_rings - 1:
        _logger.warning(
            "span %d and max_ring_difference %d leave the outermost segments smaller than the others",
            span,
            max_ring_difference,
        )
    return tuple(segments)
