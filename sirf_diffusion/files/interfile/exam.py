"""Exam information in Interfile headers: patient position, time frames, radionuclide, calibration, energy window."""

from __future__ import annotations

import logging
import os
import re
from datetime import datetime

from ...geometry.exam import ORIENTATIONS, ROTATIONS, ExamInfo, Radionuclide
from ...geometry.scanners import standardise
from .foreign import image_header
from .header import Header

_logger = logging.getLogger(__name__)

_MODALITIES = {
    "pt": "PT", "pet": "PT", "nm": "NM", "nucmed": "NM", "spect": "NM", "mr": "MR", "mri": "MR", "ct": "CT",
    "cat": "CT", "us": "US", "ultrasound": "US", "optical": "Optical",
}  # fmt: skip


def read_exam_info(path: str | os.PathLike[str]) -> ExamInfo:
    """Exam information of a header (``.hs`` or ``.hv``); its data file is not looked at.

    Raises InterfileError if the header cannot be read or a key has no meaning.
    """
    header = image_header(path)
    num_frames = header.integer("number of time frames", 1, minimum=1)
    frames = [
        (
            header.number_unless_words("image relative start time (sec)", 0.0, k),
            header.number_unless_words("image duration (sec)", 0.0, k),
        )
        for k in range(1, min(num_frames, 10_000) + 1)
    ]
    window = tuple(header.number_unless_words(f"energy window {side} level", -1.0) for side in ("lower", "upper"))
    nuclide = Radionuclide(
        name=header.text("radionuclide name", header.text("isotope name", "unknown")),
        half_life=_positive(header.number_unless_words("radionuclide halflife (sec)", -1.0)),
        branching_ratio=_positive(header.number_unless_words("radionuclide branching factor", -1.0)),
    )
    return ExamInfo(
        orientation=header.choice("patient orientation", ORIENTATIONS, "unknown"),
        rotation=header.choice("patient rotation", ROTATIONS, "unknown"),
        modality=_MODALITIES.get(standardise(header.text("imaging modality", "")), "unknown"),
        originating_system=header.text("originating system", ""),
        time_frames=tuple(frames) if any(start or duration for start, duration in frames) else (),
        start_time=_start_time(header),
        radionuclide=nuclide,
        calibration_factor=_positive(header.number_unless_words("calibration factor", -1.0)),
        energy_window=(window[0], window[1]) if min(window) > 0 else None,
    )


def exam_lines(exam: ExamInfo, image: bool) -> list[str]:
    """Header lines that hold for the whole file, as STIR writes them; the first ones after '!INTERFILE'."""
    lines = [] if exam.modality == "unknown" else [f"!imaging modality := {exam.modality}"]
    if image and exam.originating_system:
        lines.append(f"originating system := {exam.originating_system}")
    for key, word in (("orientation", exam.orientation), ("rotation", exam.rotation)):
        if word != "unknown":
            lines.append(f"patient {key} := {word}")
    if exam.start_time is not None:
        lines.append(f"study date := {exam.start_time:%Y:%m:%d}")
        lines.append(f"study time := {exam.start_time:%H:%M:%S}.{exam.start_time.microsecond:06d}{exam.start_time:%z}")
    if exam.calibration_factor is not None:
        lines.append(f"calibration factor := {exam.calibration_factor:.9g}")
    lines.append("number of radionuclides := 1")
    nuclide = exam.radionuclide
    if nuclide.name.lower() != "unknown":
        lines.append(f"radionuclide name[1] := {nuclide.name}")
    for key, value in (("halflife (sec)", nuclide.half_life), ("branching factor", nuclide.branching_ratio)):
        if value is not None:
            lines.append(f"radionuclide {key}[1] := {value:.9g}")
    return lines


def frame_lines(exam: ExamInfo) -> list[str]:
    """Header lines of time frames and energy window; scale factors and data offsets follow them."""
    lines = [f"number of time frames := {max(1, len(exam.time_frames))}"]
    for k, (start, duration) in enumerate(exam.time_frames, start=1):
        lines.append(f"image duration (sec)[{k}] := {duration:.9g}")
        lines.append(f"image relative start time (sec)[{k}] := {start:.9g}")
    if exam.energy_window is not None:
        lines.append("number of energy windows := 1")
        for side, level in zip(("lower", "upper"), exam.energy_window, strict=True):
            lines.append(f"energy window {side} level[1] := {level:.9g}")
    return lines


def _positive(value: float) -> float | None:
    return value if value > 0 else None


def _start_time(header: Header) -> datetime | None:
    date, time = header.text("study date", ""), header.text("study time", "")
    found = re.fullmatch(r"(\d\d:\d\d:\d\d)(?:\.(\d{1,6})\d*)?([+-]\d{4})?", time)
    if not (date and time):
        return None
    try:
        if found is None:
            raise ValueError("the time must be hh:mm:ss")
        text = f"{date} {found[1]}.{found[2] or '0'}{found[3] or ''}"
        return datetime.strptime(text, "%Y:%m:%d %H:%M:%S.%f" + ("%z" if found[3] else ""))
    except ValueError as problem:
        _logger.warning("%s: study date '%s' and time '%s' are not read: %s", header.path, date, time, problem)
        return None
