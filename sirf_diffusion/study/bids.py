"""BIDS: the JSON file beside the NIfTI image of a reconstruction.

Field names and units are those of BIDS 1.10, PET and its derivatives. A field is there if the data or the run tell it.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from ..geometry.exam import ExamInfo

logger = logging.getLogger(__name__)

#: Fields that BIDS requires and no header of STIR tells: those of the tracer's injection, from the site's own notes.
FROM_ELSEWHERE = (
    "Manufacturer", "TracerName", "InjectedRadioactivity", "InjectedRadioactivityUnits", "InjectedMass",
    "InjectedMassUnits", "SpecificRadioactivity", "SpecificRadioactivityUnits", "ModeOfAdministration",
    "InjectionStart", "AcquisitionMode", "ImageDecayCorrectionTime",
)  # fmt: skip
_REQUIRED = ("ManufacturersModelName", "TracerRadionuclide", "TimeZero", "FrameDuration", "AttenuationCorrection")
_ELEMENTS = {
    "carbon": "C", "nitrogen": "N", "oxygen": "O", "fluorine": "F", "copper": "Cu", "gallium": "Ga", "germanium": "Ge",
    "bromine": "Br", "rubidium": "Rb", "yttrium": "Y", "zirconium": "Zr", "iodine": "I", "sodium": "Na",
    "scandium": "Sc", "technetium": "Tc", "lutetium": "Lu",
}  # fmt: skip


def bids_fields(record: dict[str, Any], exam: ExamInfo) -> dict[str, Any]:
    """The JSON fields of an image of a run, but its ``Description``.

    Times count from the start of the scan, ``TimeZero``. Names what BIDS requires and nobody told, in the log.

    Parameters
    ----------
    record
        That of the run, see `sirf_diffusion.study.result.Reconstruction`.
    exam
        That of the image.
    """
    numbers = {k: v for k, v in record["values"].items() if isinstance(v, int | float) and not isinstance(v, bool)}
    numbers = {"subsets": record["num_subsets"]} | numbers
    calibration = record.get("calibration")
    fields = {
        "SkullStripped": False,
        "Units": "Bq/mL" if record.get("unit") == "Bq/ml" else "arbitrary",
        "ManufacturersModelName": _known(exam.originating_system),
        "TracerRadionuclide": _nuclide(exam.radionuclide.name),
        **_times(exam),
        "ImageDecayCorrected": False,
        "ReconMethodName": record["method"],
        "ReconMethodParameterLabels": list(numbers),
        "ReconMethodParameterUnits": ["none"] * len(numbers),
        "ReconMethodParameterValues": list(numbers.values()),
        "ReconMethodImplementationVersion": f"sirf-diffusion {record['software']['sirf-diffusion']}",
        "ReconFilterType": "none",
        "AttenuationCorrection": "attenuation image" if record["data"].get("files", {}).get("attenuation") else None,
        "DoseCalibrationFactor": None if calibration is None else calibration["factor"],
    }
    told = {name: value for name, value in fields.items() if value is not None}
    missing = [name for name in (*_REQUIRED, *FROM_ELSEWHERE) if name not in told]
    logger.warning("BIDS requires fields that the data do not tell; add them to the JSON file: %s", ", ".join(missing))
    return told


def _known(text: str) -> str | None:
    return text if text.lower() not in ("", "unknown", "userdefined", "user_defined_scanner") else None


def _times(exam: ExamInfo) -> dict[str, Any]:
    if len(exam.time_frames) != 1:
        return {}
    (start, duration), begin = exam.time_frames[0], exam.start_time
    if begin is None:
        return {"FrameDuration": [duration]}
    late = begin.microsecond / 1e6  # TimeZero has whole seconds
    return {
        "TimeZero": f"{begin:%H:%M:%S}",
        "ScanStart": late,
        "FrameTimesStart": [late + start],
        "FrameDuration": [duration],
    }


def _nuclide(name: str) -> str | None:
    """``F18`` for ``^18^Fluorine``, ``F-18`` or ``18F``; other names as they are."""
    found = re.fullmatch(r"\^?(\d+m?)\^?-?([a-z]+)|([a-z]+)[-^ ]*(\d+m?)\^?", name.strip(), re.IGNORECASE)
    if found is None:
        return _known(name)
    element = found[2] or found[3]
    return _ELEMENTS.get(element.lower(), element.capitalize()) + (found[1] or found[4])
