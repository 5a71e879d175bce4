"""Reconstructed images for other programs: NIfTI and DICOM PET, where STIR says that they lie in the patient."""

from __future__ import annotations

import gzip
import logging
import os
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files.outputs import atomic_path
from ..geometry.exam import ExamInfo
from ..geometry.images import ImageGeometry
from ..geometry.positions import HEAD_FIRST_SUPINE, Position, position_of
from .dicom import geometry_of_series, read_tags
from .image import LPS_OF_RAS, optional
from .resampling import PatientGrid, grid_points, share_inside, stir_grid

logger = logging.getLogger(__name__)

#: DICOM's words for how the patient lies (0018,5100).
_DICOM_POSITIONS = {
    "HFS": ("head_in", "supine"),
    "HFP": ("head_in", "prone"),
    "FFS": ("feet_in", "supine"),
    "FFP": ("feet_in", "prone"),
}
#: DICOM's words for what values are (0054,1001).
UNITS = ("BQML", "PROPCNTS", "PROPCPS", "CNTS", "CPS", "GML", "NONE")
_PET = "1.2.840.10008.5.1.4.1.1.128"
#: What is taken from the reference series: the patient, the study, and the tracer if it is of PET.
_OF_PATIENT = (
    "SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
    "PatientAge", "PatientSize", "PatientWeight", "PatientIdentityRemoved", "DeidentificationMethod",
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber",
    "ReferringPhysicianName",
)  # fmt: skip
_OF_TRACER = ("RadiopharmaceuticalInformationSequence", "Manufacturer", "ManufacturerModelName")


def write_nifti(
    path: str | os.PathLike[str], image: Tensor, geometry: ImageGeometry, exam: ExamInfo | None = None
) -> None:
    """Write an image as NIfTI-1, float32, with qform and sform in the scanner's coordinates (code 1, mm).

    Parameters
    ----------
    path
        Name that ends in ``.nii`` or ``.nii.gz``; an existing file is replaced.
    image
        ``[z, y, x]`` on the grid, finite.
    geometry
        Its grid, in STIR's coordinates.
    exam
        Says how the patient lay; unknown stands for head first, supine, which is logged.

    Raises
    ------
    ValueError
        If the name, the shape or a value does not fit.
    ImportError
        Without nibabel.
    """
    nibabel = optional("nibabel", "NIfTI")
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: a NIfTI image must be called .nii or .nii.gz")
    values = _checked(image, geometry)
    affine = LPS_OF_RAS @ stir_grid(geometry, _position(exam, path)).affine[:, [2, 1, 0, 3]]
    nifti = nibabel.Nifti1Image(values.transpose(2, 1, 0), affine)
    for place in (nifti.set_qform, nifti.set_sform):
        place(affine, 1)
    nifti.header.set_xyzt_units("mm")
    data = nifti.to_bytes()
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
    description: str = "sirf-diffusion",
) -> None:
    """Write an image as a DICOM PET series: a file per plane, 16 bits with a slope of its own, new UIDs.

    Parameters
    ----------
    folder
        Made here; must not exist, or be empty.
    image
        ``[z, y, x]`` on the grid, finite.
    geometry
        Its grid, in STIR's coordinates.
    exam
        Patient position, time frame, start and radionuclide; the position of ``like``, if nothing else is known.
    like
        Folder with a series of the same patient and study, which are taken from it; its tracer too if it is PET, and its
        frame of reference if the image lies in it. Without it the patient is anonymous.
    units
        What values are, one of ``UNITS``: ``BQML`` if they are in Bq/ml.
    description
        Of the series.

    Raises
    ------
    ValueError
        If the shape, a value, the units, the folder or the reference series cannot be used.
    ImportError
        Without pydicom.
    """
    pydicom = optional("pydicom", "DICOM")
    folder = Path(folder)
    if units not in UNITS:
        raise ValueError(f"units must be one of {', '.join(UNITS)}; found {units!r}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder: give another one for the DICOM series")
    values, exam = _checked(image, geometry), exam or ExamInfo()
    reference = None if like is None else read_tags(Path(like))[0][1]
    grid = stir_grid(geometry, _position(exam, folder, reference))
    common = _series_tags(pydicom, exam, grid, reference)
    common.Units, common.SeriesDescription = units, description
    if reference is not None and _lies_in(grid, Path(like)):
        common.FrameOfReferenceUID = reference.FrameOfReferenceUID
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        staged = Path(temporary) / folder.name
        staged.mkdir()
        for k, plane in enumerate(values):
            _write_plane(pydicom, staged / f"{k + 1:05d}.dcm", common, k, plane, grid)
        os.replace(staged, folder)


def _checked(image: Tensor, geometry: ImageGeometry) -> np.ndarray:
    values = image.detach().to("cpu", torch.float32)
    if tuple(values.shape) != geometry.shape:
        raise ValueError(f"the image has shape {tuple(values.shape)}, its grid {geometry.shape}")
    if not bool(torch.isfinite(values).all()):
        raise ValueError("the image holds NaN or infinite values")
    return np.ascontiguousarray(values.numpy())


def _position(exam: ExamInfo | None, path: Path, reference: Any = None) -> Position:
    """Of the exam, else of the reference series, else head first, supine."""
    known = position_of(exam)
    told = _DICOM_POSITIONS.get(str(reference.get("PatientPosition", ""))) if reference is not None else None
    if known and told and known != told:
        raise ValueError(f"the patient lay {' '.join(known)} in the data, {' '.join(told)} in the reference series")
    if not (known or told):
        logger.info("%s: nobody said how the patient lay: taken for head first, supine", path)
    return known or told or HEAD_FIRST_SUPINE


def _series_tags(pydicom: Any, exam: ExamInfo, grid: PatientGrid, reference: Any) -> Any:
    """What all files of the series share."""
    uid, tags = pydicom.uid.generate_uid, pydicom.Dataset()
    tags.PatientName = tags.PatientID = tags.PatientBirthDate = tags.PatientSex = ""
    tags.StudyDate = tags.StudyTime = tags.StudyID = tags.AccessionNumber = tags.ReferringPhysicianName = ""
    tags.Manufacturer = exam.originating_system
    tags.StudyInstanceUID, tags.SeriesInstanceUID, tags.FrameOfReferenceUID = uid(), uid(), uid()
    tags.RadiopharmaceuticalInformationSequence = [_tracer(pydicom, exam)]
    if reference is not None:
        for name in (*_OF_PATIENT, *(_OF_TRACER if reference.get("Modality") == "PT" else ())):
            if name in reference:
                tags[name] = reference[name]
    tags.SOPClassUID, tags.Modality = _PET, "PT"
    tags.ImageType, tags.SeriesType = ["ORIGINAL", "PRIMARY"], ["STATIC", "IMAGE"]
    tags.SeriesNumber, tags.NumberOfSlices = 1, grid.shape[0]
    tags.CountsSource, tags.DecayCorrection, tags.CorrectedImage, tags.CollimatorType = "EMISSION", "NONE", "", ""
    tags.PositionReferenceIndicator = ""
    tags.PatientPosition = next(word for word, position in _DICOM_POSITIONS.items() if position == grid.position)
    start, duration = exam.time_frames[0] if exam.time_frames else (0.0, 0.0)
    tags.FrameReferenceTime, tags.ActualFrameDuration = f"{1000 * start:.10g}", round(1000 * duration)
    begin = exam.start_time and exam.start_time + timedelta(seconds=start)
    tags.SeriesDate = tags.AcquisitionDate = f"{begin:%Y%m%d}" if begin else ""
    tags.SeriesTime = tags.AcquisitionTime = f"{begin:%H%M%S}" if begin else ""
    tags.SamplesPerPixel, tags.PhotometricInterpretation, tags.PixelRepresentation = 1, "MONOCHROME2", 1
    tags.BitsAllocated, tags.BitsStored, tags.HighBit = 16, 16, 15
    _, tags.Rows, tags.Columns = grid.shape
    dz, dy, dx = grid.voxel_size
    tags.PixelSpacing, tags.SliceThickness = [f"{dy:.10g}", f"{dx:.10g}"], f"{dz:.10g}"
    directions = grid.affine[:3, :3] / grid.voxel_size
    tags.ImageOrientationPatient = [int(v) for v in (*directions[:, 2], *directions[:, 1])]
    return tags


def _tracer(pydicom: Any, exam: ExamInfo) -> Any:
    tracer, nuclide = pydicom.Dataset(), exam.radionuclide
    if nuclide.name != "unknown":
        tracer.Radiopharmaceutical = nuclide.name
    for name, value in (
        ("RadionuclideHalfLife", nuclide.half_life),
        ("RadionuclidePositronFraction", nuclide.branching_ratio),
    ):
        if value is not None:
            setattr(tracer, name, f"{value:.10g}")
    return tracer


def _lies_in(grid: PatientGrid, like: Path) -> bool:
    """Whether the image lies in the reference series; if not, its frame of reference would be a false claim."""
    affine, shape = geometry_of_series(like)
    share = share_inside(grid_points(grid.shape, grid.affine), affine, shape)
    back = share_inside(grid_points(shape, affine), grid.affine, grid.shape)
    if max(share, back) >= 0.5:
        return True
    logger.warning(
        "the image lies elsewhere than the series in %s (%.0f %% in common), as STIR counts from the middle of the "
        "scanner: it gets a frame of reference of its own",
        like,
        100 * max(share, back),
    )
    return False


def _write_plane(pydicom: Any, file: Path, common: Any, k: int, plane: np.ndarray, grid: PatientGrid) -> None:
    dataset = pydicom.dataset.FileDataset(str(file), common, preamble=b"\0" * 128)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = _PET
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = pydicom.uid.generate_uid()
    dataset.InstanceNumber = dataset.ImageIndex = k + 1
    position = (grid.affine @ [k, 0, 0, 1])[:3]
    dataset.ImagePositionPatient = [f"{v:.10g}" for v in position]
    slope = float(f"{max(float(np.abs(plane).max()), 1e-30) / 32767:.9e}")
    dataset.RescaleSlope, dataset.RescaleIntercept = f"{slope:.9e}", 0
    dataset.PixelData = np.round(plane / slope).clip(-32768, 32767).astype("<i2").tobytes()
    dataset.save_as(file, enforce_file_format=True)
