"""Segments: groups of sinograms with the same range of ring differences."""

from __future__ import annotations

import logging
from dataclasses import dataclass

_logger = logging.getLogger(__name__)


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

    @property
    def average_ring_difference(self) -> float:
        """Mean of the extreme ring differences, in rings."""
        return (self.min_ring_difference + self.max_ring_difference) / 2

    @property
    def axial_positions_per_ring(self) -> int:
        """1 for uncompressed segments, 2 where ring differences are combined (planes lie half a ring apart)."""
        return 1 if self.min_ring_difference == self.max_ring_difference else 2


def span_of(segments: tuple[Segment, ...]) -> int | None:
    """Number of ring differences per segment, ``None`` if there is no single one.

    An even span counts segment 0 as ``span + 1`` ring differences, as STIR does. The outermost segments may be cut
    short, so they count only where there are no others.
    """
    size = {abs(s.num): s.max_ring_difference - s.min_ring_difference + 1 for s in segments}
    first, last = size[0], max(size)
    inner = {size[k] for k in range(1, last)} or {size[k] for k in range(1, last + 1)}
    if not inner or inner == {first}:
        return first
    if len(inner) > 1:
        return None
    (span,) = inner
    if span % 2 == 0 and first == span + 1:
        return span
    return first if last == 1 and span < first else None


def describe_segments(segments: tuple[Segment, ...]) -> str:
    """One line for messages."""
    return ", ".join(
        f"{s.num:+d} [{s.min_ring_difference}, {s.max_ring_difference}] x {s.num_axial_positions}" for s in segments
    )


def segments_of_span(num_rings: int, span: int, max_ring_difference: int) -> tuple[Segment, ...]:
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
