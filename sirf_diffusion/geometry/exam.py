"""What is known of an examination beside its numbers: STIR's exam information, kept from the prompts to the image.

And how a patient lies in a scanner, which says where STIR's axes point in that patient.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from .checks import check_choice

ORIENTATIONS = ("head_in", "feet_in", "other", "unknown")
ROTATIONS = ("supine", "prone", "right", "left", "other", "unknown")
MODALITIES = ("PT", "NM", "MR", "CT", "US", "Optical", "unknown")
#: ``("head_in" or "feet_in", "supine" or "prone")``, as in STIR's headers.
Position = tuple[str, str]
#: Direction of increasing x, y, z in STIR for each patient position, as signs in LPS
#: (STIR 6, DiscretisedDensity: head first, supine is LPI).
POSITIONS: dict[Position, tuple[int, int, int]] = {
    ("head_in", "supine"): (1, 1, -1),
    ("head_in", "prone"): (-1, -1, -1),
    ("feet_in", "supine"): (-1, 1, 1),
    ("feet_in", "prone"): (1, -1, 1),
}
HEAD_FIRST_SUPINE: Position = ("head_in", "supine")
#: DICOM's words (0018,5100) for those positions, which Siemens' headers have too.
DICOM_POSITIONS: dict[str, Position] = {
    "HFS": HEAD_FIRST_SUPINE, "HFP": ("head_in", "prone"), "FFS": ("feet_in", "supine"), "FFP": ("feet_in", "prone"),
}  # fmt: skip


@dataclass(frozen=True)
class Radionuclide:
    """What emits, such as ``"^18^Fluorine"`` or ``"F-18"``; ``None`` and ``"unknown"`` where nobody said.

    Half-life in seconds, share of the decays that emit a positron (0 to 1), energy of the photons in keV.
    """

    name: str = "unknown"
    half_life: float | None = None
    branching_ratio: float | None = None
    energy: float | None = None


@dataclass(frozen=True)
class ExamInfo:
    """Exam information as STIR's ``ExamInfo`` keeps it; ValueError for another orientation, rotation or modality.

    Parameters
    ----------
    orientation, rotation
        How the patient lies: one of `ORIENTATIONS` and of `ROTATIONS`.
    modality, originating_system
        One of `MODALITIES`, by DICOM's names; name of the scanner, empty if unknown.
    time_frames
        Start and duration of each frame in seconds, the start relative to ``start_time``.
    start_time
        Date and time of the scan; without a time zone where the header has none.
    radionuclide
        What emits.
    calibration_factor
        Bq/ml per unit of the image, positive; ``None`` if unknown.
    energy_window
        Lower and upper threshold in keV.
    """

    orientation: str = "unknown"
    rotation: str = "unknown"
    modality: str = "PT"
    originating_system: str = ""
    time_frames: tuple[tuple[float, float], ...] = ()
    start_time: datetime | None = None
    radionuclide: Radionuclide = field(default_factory=Radionuclide)
    calibration_factor: float | None = None
    energy_window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name, words in (("orientation", ORIENTATIONS), ("rotation", ROTATIONS), ("modality", MODALITIES)):
            check_choice(name, getattr(self, name), words)


def position_words(exam: ExamInfo) -> Position:
    """Orientation and rotation; an unknown word stands for head first or supine."""
    first, second = HEAD_FIRST_SUPINE
    return (
        first if exam.orientation == "unknown" else exam.orientation,
        second if exam.rotation == "unknown" else exam.rotation,
    )


def position_of(exam: ExamInfo | None) -> Position | None:
    """Position of the patient; None if nobody said. Of two words, an unknown one stands for head first or supine.

    Raises ValueError if it is another one than head or feet first, supine or prone.
    """
    if exam is None or (exam.orientation, exam.rotation) == ("unknown", "unknown"):
        return None
    position = position_words(exam)
    if position not in POSITIONS:
        raise ValueError(f"the patient position '{', '.join(position)}' is none of head or feet first, supine or prone")
    return position
