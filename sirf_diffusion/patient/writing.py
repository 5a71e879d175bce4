"""Reconstructed images for other programs: NIfTI and DICOM PET, where STIR says that they lie in the patient."""

from __future__ import annotations

import gzip
import logging
import math
import os
import re
import tempfile
from copy import deepcopy
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..files.atomic import atomic_path
from ..files.frames import split_frame
from ..geometry.checks import check_choice, check_image
from ..geometry.exam import DICOM_POSITIONS, HEAD_FIRST_SUPINE, ExamInfo, Position, Radionuclide, position_of
from ..geometry.images import ImageGeometry
from .dicom import place_series, read_tags
from .image import LPS_OF_RAS, UnusableImage, optional
from .resampling import Lattice, PatientGrid, in_common, stir_grid

logger = logging.getLogger(__name__)

#: What values of a PET image may be, in DICOM's words (0054,1001).
UNITS = ("BQML", "PROPCNTS", "PROPCPS", "CNTS", "CPS", "GML", "NONE")
_PET = "1.2.840.10008.5.1.4.1.1.128"
#: What is taken from the reference series: the patient and the study, and of PET the tracer and the scanner.
_OF_STUDY = (
    "SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
    "PatientAge", "PatientSize", "PatientWeight", "PatientIdentityRemoved", "DeidentificationMethod",
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber",
    "ReferringPhysicianName",
)  # fmt: skip
_OF_PET = ("RadiopharmaceuticalInformationSequence", "Manufacturer", "ManufacturerModelName")
#: Must be there, and may be empty.
_UNKNOWN = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator", "CorrectedImage", "CollimatorType",
)  # fmt: skip


def write_nifti(
    path: str | os.PathLike[str], image: Tensor, geometry: ImageGeometry, exam: ExamInfo | None = None
) -> None:
    """Write an image as NIfTI-1, float32, with qform and sform in the scanner's coordinates (code 1, mm).

    The name ends in ``.nii`` or ``.nii.gz``; an existing file is replaced. The image is ``[z, y, x]``, finite, on its
    grid in STIR's coordinates; another shape or name is a ``ValueError``. ``exam`` says how the patient lay; unknown
    stands for head first, supine, which is logged.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: a NIfTI image must be called .nii or .nii.gz")
    values = _checked(image, geometry)
    affine = LPS_OF_RAS @ stir_grid(geometry, _position(exam, path)).affine[:, [2, 1, 0, 3]]
    save_nifti(path, values.transpose(2, 1, 0), affine)


def save_nifti(path: Path, values: NDArray[np.float32], affine: NDArray[np.float64]) -> None:
    """Write values ``[i, j, k]`` whose affine takes indices to RAS mm, scanner's coordinates."""
    nifti = optional("nibabel", "NIfTI").Nifti1Image(values, affine)
    nifti.set_qform(affine, 1)
    nifti.set_sform(affine, 1)
    nifti.header.set_xyzt_units("mm")
    write_compressed(path, nifti)


def write_compressed(path: Path, image: Any) -> None:
    """Write an image of nibabel, whole or not at all; compressed, without the time, if its name ends so."""
    data = image.to_bytes()
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(data, mtime=0) if path.name.endswith(".gz") else data)


def write_dicom(
    folder: str | os.PathLike[str],
    image: Tensor,
    geometry: ImageGeometry,
    exam: ExamInfo | None = None,
    like: str | os.PathLike[str] | None = None,
    *,
    units: str = "PROPCNTS",
    derived: str = "",
) -> None:
    """Write an image as a DICOM PET series: a file per plane, 16 bits with a slope of its own, new UIDs.

    Raises ValueError if the shape, a value, the units, the folder or the reference series cannot be used.

    Parameters
    ----------
    folder
        Made here; must not exist, or be empty.
    image, geometry, exam
        ``[z, y, x]``, finite, and its grid in STIR's coordinates; patient position (else that of ``like``), time frame,
        start and radionuclide.
    like
        Folder with a series of the same patient: patient and study are taken from it, the tracer if it is of PET, and
        the frame of reference if the image lies in it. Without it the patient is anonymous.
    units
        What values are, one of ``UNITS``: ``BQML`` if they are in Bq/ml.
    derived
        How the image was made of another image; empty for one that was reconstructed from data.
    """
    pydicom = optional("pydicom", "DICOM")
    folder = Path(folder)
    check_choice("units", units, UNITS)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder: give another one for the DICOM series")
    values, exam = _checked(image, geometry), exam or ExamInfo()
    reference = None if like is None else read_tags(split_frame(like)[0])[0][1]
    grid = stir_grid(geometry, _position(exam, folder, reference))
    common = _series_tags(pydicom, exam, grid, reference)
    common.Units = units
    if derived:
        common.ImageType = ["DERIVED", "PRIMARY"]
        common.SeriesDescription, common.DerivationDescription = derived[:64], derived[:1024]
    if reference is not None and _lies_in(grid, reference, *split_frame(like)):
        common.FrameOfReferenceUID = reference.get("FrameOfReferenceUID") or common.FrameOfReferenceUID
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        staged = Path(temporary) / "series"
        staged.mkdir()
        for k, plane in enumerate(values):
            _write_plane(pydicom, staged / f"{k + 1:05d}.dcm", common, k, plane, grid)
        os.replace(staged, folder)


def _checked(image: Tensor, geometry: ImageGeometry) -> NDArray[np.float32]:
    values = image.detach().to("cpu", torch.float32)
    check_image(values, "the image", geometry.shape)
    return np.ascontiguousarray(values.numpy())


def _position(exam: ExamInfo | None, path: Path, reference: Any = None) -> Position:
    """Of the exam, else of the reference series, else head first, supine."""
    known = position_of(exam) or (None if reference is None else _told(reference))
    if known is None:
        logger.info("%s: nobody said how the patient lay: taken for head first, supine", path)
    return known or HEAD_FIRST_SUPINE


def _told(reference: Any) -> Position | None:
    return DICOM_POSITIONS.get(str(reference.get("PatientPosition", "")))


def _series_tags(pydicom: Any, exam: ExamInfo, grid: PatientGrid, reference: Any) -> Any:
    """What all files of the series share."""
    tags, tracer, nuclide = pydicom.Dataset(), pydicom.Dataset(), exam.radionuclide
    given = {
        "Radiopharmaceutical": None if nuclide.name == "unknown" else nuclide.name,
        "RadionuclideHalfLife": nuclide.half_life,
        "RadionuclidePositronFraction": nuclide.branching_ratio,
    }
    _set(tracer, {name: value for name, value in given.items() if value is not None})
    start, duration = exam.time_frames[0] if exam.time_frames else (0.0, 0.0)
    study, zone = _in_zone_of(exam.start_time, reference)
    begin = study and study + timedelta(seconds=start)
    directions = grid.affine[:3, :3] / grid.voxel_size
    (num_planes, rows, columns), (dz, dy, dx) = grid.shape, grid.voxel_size
    _set(tags, dict.fromkeys(_UNKNOWN, ""))
    _set(tags, {f"{name}InstanceUID": pydicom.uid.generate_uid() for name in ("Study", "Series")})
    _set(
        tags,
        {
            "FrameOfReferenceUID": pydicom.uid.generate_uid(), "Manufacturer": exam.originating_system,
            "RadiopharmaceuticalInformationSequence": [tracer], "Modality": "PT",
            "ImageType": ["ORIGINAL", "PRIMARY"], "SeriesType": ["STATIC", "IMAGE"], "SeriesNumber": 1,
            "SeriesDescription": "sirf-diffusion", "NumberOfSlices": num_planes, "CountsSource": "EMISSION",
            "FrameReferenceTime": 1000 * (start + _mean_time(duration, nuclide.half_life)),
            "ActualFrameDuration": round(1000 * duration), "DecayCorrection": "NONE",
            "PatientPosition": next(word for word, position in DICOM_POSITIONS.items() if position == grid.position),
            "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "PixelRepresentation": 1,
            "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "Rows": rows, "Columns": columns,
            "PixelSpacing": [dy, dx], "SliceThickness": dz,
            "ImageOrientationPatient": [*directions[:, 2], *directions[:, 1]],
        },
    )  # fmt: skip
    for name, form in (("Date", "%Y%m%d"), ("Time", "%H%M%S")):
        times = {"Study": study, "Series": study, "Acquisition": begin}
        _set(tags, {f"{of}{name}": time.strftime(form) if time else "" for of, time in times.items()})
    if zone:
        tags.TimezoneOffsetFromUTC = zone
    if reference is not None:
        names = (*_OF_STUDY, *(_OF_PET if _is_of_tracer(reference, nuclide) else ()))
        taken = pydicom.Dataset()
        for name in names:
            if name in reference:
                taken.add(deepcopy(reference[name]))
        taken.remove_private_tags()
        tags.update(taken)
        _check_injection(tags, begin)
    return tags


def _in_zone_of(time: datetime | None, reference: Any) -> tuple[datetime | None, str]:
    """The time in the zone of the reference series, whose times are copied, and the zone, empty if it is not known."""
    named = "" if reference is None else str(reference.get("TimezoneOffsetFromUTC") or "").strip()
    zone = named if re.fullmatch(r"[+-]\d{4}", named) else ""
    if time is None or time.tzinfo is None:
        return time, zone
    if reference is None:
        return time, f"{time:%z}"
    if zone:
        return time.astimezone(datetime.strptime(zone, "%z").tzinfo), zone
    logger.warning(
        "times of the data are %s from UTC, and the reference series does not name its zone (TimezoneOffsetFromUTC): "
        "its time of injection and the series' times may be hours apart. Compare them before you compute an SUV",
        f"{time:%z}",
    )
    return time, ""


def _check_injection(tags: Any, begin: datetime | None) -> None:
    """Warn of an acquisition that begins before the injection, by clocks or time zones that do not agree."""
    tracer = next(iter(tags.RadiopharmaceuticalInformationSequence), {})
    told = tracer.get("RadiopharmaceuticalStartDateTime") or tracer.get("RadiopharmaceuticalStartTime") or ""
    digits = re.match(r"\d*", str(told))[0]  # type: ignore[index]
    if begin is None or len(digits) not in (6, 14):
        return
    local = begin.replace(tzinfo=None)
    try:
        injected = datetime.strptime(digits if len(digits) == 14 else f"{local:%Y%m%d}{digits}", "%Y%m%d%H%M%S")
    except ValueError:  # no time
        return
    if timedelta(0) < injected - local < timedelta(hours=12):  # beyond: yesterday's injection, if the day is not told
        logger.warning(
            "the acquisition begins %.0f minutes before the injection that the reference series tells: clocks or time "
            "zones do not agree, and an SUV would be wrong", (injected - local).total_seconds() / 60,
        )  # fmt: skip


def _is_of_tracer(reference: Any, nuclide: Radionuclide) -> bool:
    """Whether a reference series is of PET, and of this radionuclide as far as both tell; if not, a warning."""
    if reference.get("Modality") != "PT":
        return False
    told = next((t.get("RadionuclideHalfLife") for t in reference.get(_OF_PET[0]) or ()), None)
    if not told or not nuclide.half_life or abs(float(told) / nuclide.half_life - 1) < 0.01:
        return True
    logger.warning(
        "the data are of %s (half-life %.6g s), the reference series of another radionuclide (%s s): its tracer and "
        "dose are not taken", nuclide.name, nuclide.half_life, told,
    )  # fmt: skip
    return False


def _mean_time(duration: float, half_life: float | None) -> float:
    """When, after its start, a frame's mean activity is that of the moment."""
    decay = math.log(2) * duration / half_life if half_life else 0.0
    return duration * (math.log(decay / -math.expm1(-decay)) / decay if decay > 1e-6 else 0.5)


def _set(dataset: Any, values: dict[str, Any]) -> None:
    """Set tags by their keywords; real numbers in the 16 characters that DICOM has for them."""

    def text(value: Any) -> Any:
        return f"{value:.9e}" if isinstance(value, float) else value

    for name, value in values.items():
        setattr(dataset, name, [text(v) for v in value] if isinstance(value, list) else text(value))


def _lies_in(grid: PatientGrid, reference: Any, like: Path, frame: int | None) -> bool:
    """Whether the image lies in the reference series; if not, its frame of reference would be a false claim."""
    if (told := _told(reference) or grid.position) != grid.position:
        why = f"the patient lay {' '.join(grid.position)} in the data, {' '.join(told)} there"
    else:
        try:
            _, affine, shape = place_series(like, frame)
        except UnusableImage as error:
            why = str(error)
        else:
            if (share := in_common(grid, Lattice(shape, affine))) >= 0.5:
                return True
            why = f"{share:.0%} of them in common (STIR counts from the middle of the scanner)"
    logger.warning("the image gets a frame of reference of its own, not that of the series in %s: %s", like, why)
    return False


def _write_plane(pydicom: Any, file: Path, common: Any, k: int, plane: NDArray[np.float32], grid: PatientGrid) -> None:
    uid = pydicom.uid.generate_uid()
    dataset = pydicom.dataset.FileDataset(str(file), common, preamble=b"\0" * 128)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID, dataset.file_meta.MediaStorageSOPInstanceUID = _PET, uid
    _set(dataset, {"SOPClassUID": _PET, "SOPInstanceUID": uid, "InstanceNumber": k + 1, "ImageIndex": k + 1})
    _set(dataset, {"ImagePositionPatient": list((grid.affine @ [k, 0, 0, 1])[:3])})
    set_pixels(dataset, plane)
    dataset.save_as(file, enforce_file_format=True)


def set_pixels(dataset: Any, plane: NDArray[np.float32]) -> None:
    """Give a file its values, as 16 bits with a slope of their own."""
    slope = float(f"{max(float(np.abs(plane).max()), 1e-30) / 32767:.9e}")
    _set(dataset, {"RescaleSlope": slope, "RescaleIntercept": 0})
    dataset.PixelData = np.round(plane / slope).clip(-32768, 32767).astype("<i2").tobytes()
