"""What is known of an examination beside its numbers: STIR's exam information, kept from the prompts to the image."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

ORIENTATIONS = ("head_in", "feet_in", "other", "unknown")
ROTATIONS = ("supine", "prone", "right", "left", "other", "unknown")
MODALITIES = ("PT", "NM", "MR", "CT", "US", "Optical", "unknown")


@dataclass(frozen=True)
class Radionuclide:
    """What emits; ``None`` and ``"unknown"`` where nobody said.

    Parameters
    ----------
    name
        As ``"^18^Fluorine"`` or ``"F-18"``.
    half_life
        In seconds.
    branching_ratio
        Share of the decays that emit a positron, 0 to 1.
    energy
        Of the photons in keV.
    """

    name: str = "unknown"
    half_life: float | None = None
    branching_ratio: float | None = None
    energy: float | None = None


@dataclass(frozen=True)
class ExamInfo:
    """Exam information as STIR's ``ExamInfo`` keeps it.

    Parameters
    ----------
    orientation, rotation
        How the patient lies: one of `ORIENTATIONS` and of `ROTATIONS`.
    modality
        One of `MODALITIES`, by DICOM's names.
    originating_system
        Name of the scanner, empty if unknown.
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

    Raises
    ------
    ValueError
        For another orientation, rotation or modality.
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
            if getattr(self, name) not in words:
                raise ValueError(f"{name} must be one of {', '.join(words)}; found {getattr(self, name)!r}")
