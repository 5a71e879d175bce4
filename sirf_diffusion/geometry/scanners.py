"""Cylindrical PET scanners: what one is, and the models that STIR knows by name.

The numbers are those of STIR 6.5 (``Scanner.cxx``), so that a header which only names its scanner means the same here
as there. Scanners that STIR describes by blocks, and HiDAC, are left out.
"""

from __future__ import annotations

import csv
import difflib
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

_MOST = {"num_rings": 2_000, "num_detectors_per_ring": 100_000}


@dataclass(frozen=True)
class BlockStructure:
    """How crystals are grouped. Needed only to hand a scanner back to STIR unchanged; the projector ignores it."""

    num_axial_blocks_per_bucket: int = 0
    num_transaxial_blocks_per_bucket: int = 0
    num_axial_crystals_per_block: int = 0
    num_transaxial_crystals_per_block: int = 0
    num_axial_crystals_per_singles_unit: int = 0
    num_transaxial_crystals_per_singles_unit: int = 0
    num_detector_layers: int = 1


@dataclass(frozen=True)
class Scanner:
    """A cylindrical PET scanner; ValueError if a size is not positive (or a depth negative), or the detectors are odd.

    Parameters
    ----------
    name
        Name as in STIR (first of its list of names).
    num_rings, num_detectors_per_ring
        Detector rings and (virtual crystals included) detectors in each; both positive, detectors even.
    inner_ring_radius, average_depth_of_interaction
        Radius of the front faces, and what is added to it to give where the lines of response end, mm.
    ring_spacing, default_bin_size
        Distance between the centres of neighbouring rings, and tangential sampling of arc-corrected data, mm.
    view_offset
        Intrinsic azimuthal tilt in radians: the angle of view 0 before view mashing.
    max_num_non_arccorrected_bins, default_num_arccorrected_bins
        Tangential sizes; 0 when unknown.
    blocks
        Grouping of the crystals, carried along for STIR's sake.
    """

    name: str
    num_rings: int
    num_detectors_per_ring: int
    inner_ring_radius: float
    average_depth_of_interaction: float
    ring_spacing: float
    default_bin_size: float
    view_offset: float = 0.0
    max_num_non_arccorrected_bins: int = 0
    default_num_arccorrected_bins: int = 0
    blocks: BlockStructure = field(default_factory=BlockStructure, compare=False)

    def __post_init__(self) -> None:
        for key in ("num_rings", "num_detectors_per_ring", "inner_ring_radius", "ring_spacing"):
            value, most = getattr(self, key), _MOST.get(key, 1e5)
            if not 0 < value <= most:
                raise ValueError(f"scanner '{self.name}': {key} must be positive and at most {most:g}, found {value}")
        for key in ("average_depth_of_interaction", "default_bin_size"):
            value = getattr(self, key)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"scanner '{self.name}': {key} must not be negative, found {value}")
        if not math.isfinite(self.view_offset):
            raise ValueError(f"scanner '{self.name}': view_offset must be finite, found {self.view_offset}")
        if self.num_detectors_per_ring % 2:
            raise ValueError(
                f"scanner '{self.name}': num_detectors_per_ring must be even, found {self.num_detectors_per_ring}"
            )

    @property
    def effective_ring_radius(self) -> float:
        """Inner ring radius plus average depth of interaction in mm."""
        return self.inner_ring_radius + self.average_depth_of_interaction

    @property
    def max_num_views(self) -> int:
        """Number of views without mashing."""
        return self.num_detectors_per_ring // 2


def standardise(text: str) -> str:
    """Fold a keyword or a name as Interfile does: case, ``!``, blanks, tabs and underscores do not matter."""
    return " ".join(text.replace("_", " ").replace("!", " ").split()).lower()


def find_scanner(name: str) -> Scanner | None:
    """Scanner of that name, ``None`` if there is none; see :func:`get_scanner`."""
    return _BY_NAME.get(standardise(name))


def get_scanner(name: str) -> Scanner:
    """Scanner of any name STIR accepts (and a few written-out ones, such as ``"Biograph Vision 600"``).

    Case, blanks and underscores do not matter. Raises ValueError if no such scanner is known.

    Examples
    --------
    >>> get_scanner("siemens_mMR").num_rings
    64
    """
    scanner = find_scanner(name)
    if scanner is None:
        close = difflib.get_close_matches(standardise(name), _BY_NAME, n=3)
        hint = f"did you mean {', '.join(repr(n) for n in close)}?" if close else "scanner_names() lists the known ones"
        raise ValueError(f"unknown scanner {name!r}; {hint}")
    return scanner


def scanner_names() -> list[str]:
    """First name of each known scanner."""
    return list(dict.fromkeys(scanner.name for scanner in _BY_NAME.values()))


def _index_by_name() -> dict[str, Scanner]:
    """The table beside this file: one scanner a row, columns named as the fields; names that STIR lists come first."""
    index: dict[str, Scanner] = {}
    with Path(__file__).with_name("scanners.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            names = row.pop("names").split(";")
            numbers: dict[str, Any] = {key: float(text) if "." in text else int(text) for key, text in row.items()}
            blocks = BlockStructure(**{field.name: numbers.pop(field.name) for field in fields(BlockStructure)})
            scanner = Scanner(names[0], **numbers, blocks=blocks)
            for name in names:
                # Of models that share an alias ("Discovery MI"), the first wins, as in STIR.
                index.setdefault(standardise(name), scanner)
    return index


_BY_NAME = _index_by_name()
