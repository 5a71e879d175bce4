"""Cylindrical PET scanners: what one is, and the models that STIR knows by name.

The numbers are those of STIR 6.5 (``Scanner.cxx``), so that a header which only names its scanner means the same here
as there. Scanners that STIR describes by blocks, and HiDAC, are left out.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass, field

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
    """A cylindrical PET scanner.

    Parameters
    ----------
    name
        Name as in STIR (first of its list of names).
    num_rings, num_detectors_per_ring
        Detector rings and (virtual crystals included) detectors in each; both positive, detectors even.
    inner_ring_radius
        Radius of the front faces in mm.
    average_depth_of_interaction
        In mm; added to the radius to give where the lines of response end.
    ring_spacing
        Distance between the centres of neighbouring rings in mm.
    default_bin_size
        Tangential sampling in mm of arc-corrected data.
    view_offset
        Intrinsic azimuthal tilt in radians: the angle of view 0 before view mashing.
    max_num_non_arccorrected_bins, default_num_arccorrected_bins
        Tangential sizes; 0 when unknown.
    blocks
        Grouping of the crystals, carried along for STIR's sake.

    Raises
    ------
    ValueError
        If a size is not positive (or a depth is negative), or the number of detectors is odd.
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
    return re.sub(r"[\s_!]+", " ", text).strip().lower()


def find_scanner(name: str) -> Scanner | None:
    """Scanner of that name, ``None`` if there is none; see :func:`get_scanner`."""
    return _BY_NAME.get(standardise(name))


def get_scanner(name: str) -> Scanner:
    """Scanner of that name.

    Parameters
    ----------
    name
        Any name STIR accepts (and a few written-out ones, such as ``"Biograph Vision 600"``); case, blanks and
        underscores do not matter.

    Raises
    ------
    ValueError
        If no such scanner is known.

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
    return [names[0] for names, *_ in _TABLE]


_DEG = math.pi / 180

# names; rings, detectors per ring; inner radius, depth of interaction, ring spacing, bin size (mm); view offset (rad);
# bins not arc-corrected, arc-corrected; BlockStructure in the order of its fields. One row per scanner.
# fmt: off
_TABLE: tuple[tuple, ...] = (
    (("ECAT 931",), 8, 512, 510.0, 7.0, 13.5, 3.129, 0.0, 192, 192, (2, 4, 4, 8, 4, 32, 1)),
    (("ECAT 951",), 16, 512, 510.0, 7.0, 6.75, 3.12932, 0.0, 192, 192, (1, 4, 8, 8, 8, 32, 1)),
    (("ECAT 953",), 16, 384, 382.5, 7.0, 6.75, 3.12932, -15.0 * _DEG, 160, 160, (1, 4, 8, 8, 8, 32, 1)),
    (("ECAT 921", "ECAT EXACT", "EXACT"),
     24, 384, 412.5, 7.0, 6.75, 3.375, -15.0 * _DEG, 192, 192, (1, 4, 8, 8, 8, 32, 1)),
    (("ECAT 925", "ECAT ART"), 24, 384, 412.5, 7.0, 6.75, 3.375, -15.0 * _DEG, 192, 192, (3, 4, 8, 8, 8, 32, 1)),
    (("ECAT 961", "ECAT HR"), 24, 784, 412.0, 7.0, 6.25, 1.65, -13.0 * _DEG, 336, 336, (1, 8, 8, 7, 8, 56, 1)),
    (("ECAT 962", "ECAT HR+"), 32, 576, 412.0, 7.0, 4.85, 2.25, 0.0, 288, 288, (4, 3, 8, 8, 8, 24, 1)),
    (("ECAT EXACT 3D", "EXACT 3D", "ECAT HR++", "ECAT 966"),
     48, 576, 412.0, 7.0, 4.85, 2.25, 0.0, 288, 288, (6, 2, 8, 8, 16, 16, 1)),
    (("ECAT 1080", "Biograph 16", "1080"), 41, 672, 412.0, 7.0, 4.0, 2.0, 0.0, 336, 336, (1, 2, 14, 14, 0, 0, 1)),
    (("test_scanner",), 4, 504, 328.0, 7.0, 4.0625, 2.08626, 0.0, 344, 344, (1, 1, 4, 1, 4, 1, 1)),
    (("Siemens mMR", "mMR", "2008"), 64, 504, 328.0, 7.0, 4.0625, 2.08626, 0.0, 344, 344, (2, 1, 8, 9, 16, 9, 1)),
    (("Siemens mCT", "mCT", "2011", "1104", "1094"),
     55, 672, 421.0, 7.0, 4.054, 2.005, 0.0, 400, 336, (4, 1, 14, 14, 0, 0, 1)),
    (("Siemens Vision 600", "Vision 600", "1208"),
     80, 798, 410.0, 7.0, 3.29114, 1.6, 0.0324, 520, 520, (1, 1, 10, 21, 10, 21, 1)),
    (("Siemens Quadra", "Quadra", "1232"),
     323, 798, 410.0, 7.0, 3.29114, 1.6, 0.0324, 520, 520, (4, 1, 81, 21, 0, 0, 1)),
    (("PRT-1", "RPT"), 16, 384, 373.0, 7.0, 6.75, 3.1088, 0.0, 128, 128, (1, 4, 8, 8, 8, 32, 1)),
    (("GE Advance", "Advance"), 18, 672, 463.475, 8.4, 8.5, 1.970177, 0.0, 283, 281, (3, 2, 6, 6, 1, 1, 1)),
    (("GE Discovery LS", "Discovery LS"), 18, 672, 463.475, 8.4, 8.5, 1.970177, 0.0, 283, 281, (3, 2, 6, 6, 1, 1, 1)),
    (("GE Discovery ST", "Discovery ST"),
     24, 420, 443.1, 8.4, 6.54, 3.195, -4.54224 * _DEG, 249, 221, (4, 2, 6, 6, 1, 1, 1)),
    (("GE Discovery STE", "Discovery STE"),
     24, 560, 443.1, 8.4, 6.54, 2.397, -4.549 * _DEG, 329, 293, (4, 2, 6, 8, 1, 1, 1)),
    (("GE Discovery RX", "Discovery RX"),
     24, 630, 443.1, 9.4, 6.54, 2.13, -4.595 * _DEG, 367, 331, (4, 2, 6, 9, 1, 1, 1)),
    (("GE Discovery 600", "Discovery 600"),
     24, 512, 404.95, 8.4, 6.54, 2.3974, -4.549 * _DEG, 339, 293, (4, 2, 6, 8, 1, 1, 1)),
    (("GE Signa PET/MR", "PET/MR Signa", "Signa PET/MR"),
     45, 448, 311.8, 8.5, 5.56, 2.01565, -5.23 * _DEG, 357, 331, (5, 4, 9, 4, 1, 1, 1)),
    (("GE Discovery 690", "Discovery 690", "GE Discovery 710", "Discovery 710"),
     24, 576, 405.1, 9.4, 6.54, 2.1306, -5.021 * _DEG, 381, 331, (4, 2, 6, 9, 1, 1, 1)),
    (("GE Discovery MI 3 rings", "Discovery MI3", "Discovery MI"),
     27, 544, 371.1, 9.4, 5.52296, 2.206, -4.399 * _DEG, 415, 401, (3, 4, 9, 4, 1, 1, 1)),
    (("GE Discovery MI 4 rings", "Discovery MI4", "Discovery MI"),
     36, 544, 371.1, 9.4, 5.52296, 2.206, -4.399 * _DEG, 415, 401, (4, 4, 9, 4, 1, 1, 1)),
    (("GE Discovery MI 5 rings", "Discovery MI5", "Discovery MI"),
     45, 544, 371.1, 9.4, 5.52296, 2.206, -4.399 * _DEG, 415, 401, (5, 4, 9, 4, 1, 1, 1)),
    (("GE Discovery MI 6 rings", "Discovery MI6", "Discovery MI"),
     54, 544, 371.1, 9.4, 5.52296, 2.206, -4.399 * _DEG, 415, 401, (6, 4, 9, 4, 1, 1, 1)),
    (("Positron HZL/R",), 32, 384, 780.0, 7.0, 5.1875, 2.0, 0.0, 256, 384, (0, 0, 0, 0, 0, 0, 1)),
    (("RATPET",), 8, 112, 57.5, 7.0, 6.25, 1.65, 0.0, 56, 56, (1, 16, 8, 7, 8, 0, 1)),
    (("PANDA",), 1, 2048, 37.75, 10.0, 3.0, 0.1, 0.0, 512, 512, (1, 1, 1, 1, 0, 0, 1)),
    (("HYPERimage",), 22, 490, 103.97, 3.0, 1.4, 1.4, 0.0, 239, 245, (0, 0, 0, 0, 0, 0, 1)),
    (("nanoPET",), 81, 468, 174.0, 5.0, 1.17, 1.17, 0.0, 117, 117, (0, 0, 0, 0, 0, 0, 1)),
    (("HRRT",), 104, 576, 234.765, 7.0, 2.4375, 1.21875, 0.0, 288, 576, (0, 0, 0, 0, 0, 0, 2)),
    (("Allegro", "Philips Allegro"), 29, 644, 430.05, 12.0, 6.3, 4.3, 0.0, 295, 644, (1, 0, 29, 0, 29, 0, 1)),
    (("GeminiTF", "Philips GeminiTF"), 44, 644, 450.17, 8.0, 4.0, 4.0, 0.0, 322, 287, (0, 0, 0, 0, 0, 0, 1)),
    (("UPENN_5rings",), 280, 594, 382.0, 7.0, 3.9655, 2.0, 0.0, 331, 331, (7, 4, 8, 8, 56, 32, 1)),
    (("UPENN_5rings_no_gaps",), 200, 576, 382.0, 7.0, 3.9655, 2.08349, 0.0, 301, 301, (35, 4, 8, 8, 8, 32, 1)),
    (("UPENN_6rings",), 336, 594, 382.0, 7.0, 3.9655, 2.02035, 0.0, 331, 331, (42, 1, 8, 33, 8, 33, 1)),
    (("UPENN_6rings_no_gaps",), 240, 576, 382.0, 7.0, 3.9655, 2.08, 0.0, 321, 321, (30, 4, 8, 8, 8, 8, 1)),
)
# fmt: on

# Names that people write and STIR does not list.
_OTHER_NAMES = {
    "Siemens Vision 600": ("Biograph Vision 600", "Siemens Biograph Vision 600"),
    "Siemens mMR": ("Biograph mMR", "Siemens Biograph mMR"),
    "GE Signa PET/MR": ("GE Signa", "Signa"),
}


def _index_by_name() -> dict[str, Scanner]:
    index: dict[str, Scanner] = {}
    for names, rings, detectors, radius, depth, spacing, bin_size, offset, bins, arc_bins, blocks in _TABLE:
        sizes = (rings, detectors, radius, depth, spacing, bin_size, offset, bins, arc_bins)
        scanner = Scanner(names[0], *sizes, BlockStructure(*blocks))
        for name in (*names, *_OTHER_NAMES.get(names[0], ())):
            # Of models that share an alias ("Discovery MI"), the first wins, as in STIR.
            index.setdefault(standardise(name), scanner)
    return index


_BY_NAME = _index_by_name()
