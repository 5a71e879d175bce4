"""Exam information in Interfile headers: patient position, time frames, radionuclide, calibration, energy window."""

from __future__ import annotations

import os
import re
from datetime import datetime

from ...geometry.exam import DICOM_POSITIONS, ORIENTATIONS, ROTATIONS, ExamInfo, Radionuclide
from ...geometry.scanners import standardise
from .foreign import image_header
from .header import Header
from .keys import SIEMENS_POSITION

_MODALITIES = {
    "pt": "PT", "pet": "PT", "nm": "NM", "nucmed": "NM", "spect": "NM", "mr": "MR", "mri": "MR", "ct": "CT",
    "cat": "CT", "us": "US", "ultrasound": "US", "optical": "Optical",
}  # fmt: skip
#: Half-life in seconds and branching ratio that STIR 6.5 has of each radionuclide, whatever a header tells of them.
_KNOWN = (
    ("PT", 18, "Fluorine", "F", 6584.04, 0.9686),
    ("PT", 11, "Carbon", "C", 1221.66, 0.9975),
    ("PT", 13, "Nitrogen", "N", 598.02, 0.99818),
    ("PT", 15, "Oxygen", "O", 122.46, 0.99885),
    ("PT", 68, "Gallium", "Ga", 4069.8, 0.8768),
    ("PT", 68, "Germanium", "Ge", 23410080.0, 1.0),
    ("PT", 90, "Yttrium", "Y", 230549.76, 3.19e-5),
    ("NM", "99m", "Technetium", "Tc", 21624.12, 0.885),
    ("NM", 67, "Gallium", "Ga", 281776.32, 0.213),
    ("NM", 177, "Lutetium", "Lu", 574300.8, 0.1109),
    ("NM", 90, "Yttrium", "Y", 230549.76, 0.99983),
)
_NUCLIDES = {
    (modality, name): Radionuclide(f"^{mass}^{element}", half_life, ratio)
    for modality, mass, element, symbol, half_life, ratio in _KNOWN
    for name in (f"^{mass}^{element}", f"{mass}{symbol}", f"{symbol}-{mass}")
}
_NUCLIDES |= {("PT", "default"): _NUCLIDES["PT", "18F"], ("NM", "default"): _NUCLIDES["NM", "99mTc"]}


def read_exam_info(path: str | os.PathLike[str]) -> ExamInfo:
    """Exam information of a header (``.hs`` or ``.hv``), or of one time frame (``NAME#2``); no data file is looked at.

    Raises InterfileError if the header cannot be read or a key has no meaning.
    """
    header = image_header(path)
    numbers = [header.frame] if header.frame_chosen else range(1, min(header.num_frames, 10_000) + 1)
    frames = [
        (
            header.number_unless_words("image relative start time (sec)", 0.0, k),
            header.number_unless_words("image duration (sec)", 0.0, k),
        )
        for k in numbers
    ]
    window = tuple(header.number_unless_words(f"energy window {side} level", -1.0) for side in ("lower", "upper"))
    modality = _MODALITIES.get(standardise(header.text("imaging modality", "")), "unknown")
    orientation, rotation = (
        header.choice(f"patient {key}", words, "unknown")
        for key, words in (("orientation", ORIENTATIONS), ("rotation", ROTATIONS))
    )
    if (orientation, rotation) == ("unknown", "unknown") and SIEMENS_POSITION in header:
        orientation, rotation = DICOM_POSITIONS[header.choice(SIEMENS_POSITION, DICOM_POSITIONS)]
    return ExamInfo(
        orientation=orientation,
        rotation=rotation,
        modality=modality,
        originating_system=header.text("originating system", ""),
        time_frames=tuple(frames) if any(start or duration for start, duration in frames) else (),
        start_time=_start_time(header),
        radionuclide=_radionuclide(header, modality),
        calibration_factor=_positive(header.number_unless_words("calibration factor", -1.0)),
        energy_window=(window[0], window[1]) if min(window) > 0 else None,
    )


def _radionuclide(header: Header, modality: str) -> Radionuclide:
    """By its name, as STIR has it in its data base, else by what the header tells."""
    name = header.text("radionuclide name", header.text("isotope name", "unknown"))
    numbers = {
        key: _positive(header.number_unless_words(f"radionuclide {key}", -1.0))
        for key in ("halflife (sec)", "branching factor")
    }
    if (known := _NUCLIDES.get((modality, name))) is None:
        return Radionuclide(name, *numbers.values())
    for (key, told), taken in zip(numbers.items(), (known.half_life, known.branching_ratio), strict=True):
        if told and abs(told / taken - 1) > 1e-3:
            header.warn(f"'radionuclide {key} := {told:g}' is not used: {name} has {taken:g}, as in STIR")
    return known


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
        header.warn(f"study date '{date:.40}' and time '{time:.40}' are not read: {problem}")
        return None
