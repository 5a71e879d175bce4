"""Images from files, with their place in the patient: Interfile, NIfTI, DICOM series.

Whatever the format, the result is an array with an affine map from its indices to patient coordinates in mm, in the
axes of DICOM and ITK: LPS (x to the left, y to the back, z to the head). Of a DICOM header nothing is kept but the
geometry; the patient's identifier is given back for grouping images by subject, and never written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .resampling import HEAD_FIRST_SUPINE, POSITIONS, Position, stir_grid

NIFTI = (".nii", ".nii.gz")
INTERFILE = (".hv",)


class UnusableImage(ValueError):
    """An image that cannot be used.

    Parameters
    ----------
    reason
        Why, without names or paths: it is written into files.
    detail
        More for the person at the terminal, such as a library's message; never written into files.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class SourceImage:
    """An image in the patient.

    Attributes
    ----------
    values
        float32, three axes in any order and direction.
    affine
        ``[4, 4]``: ``(i, j, k, 1)`` of ``values[i, j, k]`` to LPS coordinates in mm.
    kind
        ``Interfile``, ``NIfTI`` or ``DICOM``.
    patient
        Identifier for grouping, if the file has one. Not to be written anywhere.
    modality
        ``MR``, ``CT``, ... if the file tells.
    position
        Position of the patient on the bed, where the file is in the scanner's coordinates and tells it.
    """

    values: NDArray[np.float32]
    affine: NDArray[np.float64]
    kind: str
    patient: str = ""
    modality: str = ""
    position: Position | None = None


def read_source(path: Path, assumed: str | None = None) -> SourceImage:
    """Read one image and check that it can be used.

    Parameters
    ----------
    path
        ``.hv`` file, ``.nii`` or ``.nii.gz`` file, or a folder with one DICOM series.
    assumed
        Axes of images that do not tell theirs, three letters such as ``RAS``.

    Raises
    ------
    UnusableImage
        If it cannot be read, is not one three-dimensional image, has values that are not finite or all the same, or its
        place in the patient is unknown or impossible.
    ImportError
        If the package that reads this format is not installed.
    """
    if not path.exists():
        raise UnusableImage("no such file", str(path))
    name = path.name.lower()
    if path.is_dir():
        image = _read_dicom(path)
    elif name.endswith(NIFTI):
        image = _read_nifti(path, assumed)
    elif name.endswith(INTERFILE):
        image = _read_interfile(path)
    else:
        raise UnusableImage("unknown kind of file: Interfile (.hv), NIfTI (.nii, .nii.gz) and DICOM folders are read")
    _check_values(image.values)
    _check_affine(image.affine)
    return image


def density_of_ct(image: SourceImage) -> SourceImage:
    """Density relative to water from a CT image in Hounsfield units; networks are given non-negative images."""
    return replace(image, values=np.clip(image.values / 1000 + 1, 0, None).astype(np.float32), modality="CT")


def patient_position(header_file: Path) -> Position | None:
    """Position of the patient as an Interfile header tells it; None if it does not.

    Raises
    ------
    UnusableImage
        If it tells another one than head or feet first, supine or prone.
    """
    from ..files.interfile.header import Header

    header = Header(header_file)
    keys = ("patient orientation", "patient rotation")
    words = ["_".join(header.text(key, "unknown").lower().split()) for key in keys]
    if words == ["unknown", "unknown"]:
        return None
    position = tuple(
        default if word == "unknown" else word for word, default in zip(words, HEAD_FIRST_SUPINE, strict=True)
    )
    if position not in POSITIONS:
        raise UnusableImage("its patient position is none of head or feet first, supine or prone", ", ".join(words))
    return position


def _read_interfile(path: Path) -> SourceImage:
    from ..files.interfile import InterfileError, read_image

    try:
        image, geometry = read_image(path)
    except InterfileError as error:
        reason = "values that are not finite" if "finite" in str(error) else "no readable Interfile image"
        raise UnusableImage(reason, str(error)) from error
    position = patient_position(path)
    affine = stir_grid(geometry, position or HEAD_FIRST_SUPINE).affine
    return SourceImage(image.numpy(), affine, "Interfile", position=position)


def _read_nifti(path: Path, assumed: str | None) -> SourceImage:
    try:
        import nibabel
    except ImportError as error:
        raise ImportError('NIfTI needs nibabel: pip install "sirf-diffusion[train]"') from error
    try:
        image = nibabel.load(path)
        values = np.asarray(image.dataobj, dtype=np.float32)
    except Exception as error:  # nibabel and zlib raise whatever damaged bytes lead to
        raise UnusableImage("no readable NIfTI image", f"{type(error).__name__}: {error}") from error
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        raise UnusableImage(f"an image of shape {values.shape} instead of one volume: give single frames")
    affine = np.array(image.affine, float)
    header = image.header
    if int(header.get("sform_code", 1)) == 0 and int(header.get("qform_code", 1)) == 0:
        if assumed is None:
            raise UnusableImage("its orientation is unknown (no qform, no sform): set it, or give --assume RAS")
        affine = _assumed_affine(assumed, header.get_zooms()[:3], values.shape)
    elif affine.shape != (4, 4):
        raise UnusableImage("its orientation cannot be read")
    else:
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    return SourceImage(values, affine, "NIfTI")


def _assumed_affine(letters: str, spacing: tuple[float, ...], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The affine of an array whose axes point to these sides of the patient, centred on zero."""
    directions = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}
    rows = [directions.get(letter, (None, 0))[0] for letter in letters.upper()]
    if sorted(r for r in rows if r is not None) != [0, 1, 2]:
        raise ValueError(f"--assume must be three letters, one of L R, one of P A, one of S I, found {letters!r}")
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, letter in enumerate(letters.upper()):
        row, sign = directions[letter]
        affine[row, axis] = sign * float(spacing[axis])
        affine[row, 3] = -sign * float(spacing[axis]) * (shape[axis] - 1) / 2
    return affine


def _read_dicom(folder: Path) -> SourceImage:
    try:
        import SimpleITK as sitk
    except ImportError as error:
        raise ImportError('DICOM needs SimpleITK: pip install "sirf-diffusion[dicom]"') from error
    warns = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        if len(series) != 1:
            found = f"{len(series)} series" if series else "no DICOM series"
            raise UnusableImage(f"the folder holds {found}: one is expected")
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0]))
        # Slices of a PET series have rescale slopes of their own: integers of the first slice would not hold them.
        reader.SetOutputPixelType(sitk.sitkFloat32)
        reader.MetaDataDictionaryArrayUpdateOn()
        image = reader.Execute()
    except RuntimeError as error:
        raise UnusableImage("no readable DICOM series", str(error).strip().splitlines()[-1]) from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(warns)
    if image.GetNumberOfComponentsPerPixel() != 1 or image.GetDimension() != 3:
        raise UnusableImage("colour images or several values per voxel")
    direction = np.asarray(image.GetDirection()).reshape(3, 3)
    positions = [_tag(reader, k, "0020|0032") for k in range(image.GetSize()[2])]
    _check_slices(positions, direction[:, 2])
    affine = np.eye(4)
    affine[:3, :3] = (direction * np.asarray(image.GetSpacing()))[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    patient = _tag(reader, 0, "0010|0020").strip()
    values = sitk.GetArrayFromImage(image).astype(np.float32)
    return SourceImage(values, affine, "DICOM", patient, _tag(reader, 0, "0008|0060").strip())


def _tag(reader: object, index: int, tag: str) -> str:
    return reader.GetMetaData(index, tag) if reader.HasMetaDataKey(index, tag) else ""


def _check_slices(positions: list[str], normal: NDArray[np.float64]) -> None:
    """Slices of one volume lie at equal distances."""
    numbers = [[float(n) for n in re.findall(r"[-+0-9.eE]+", text)] for text in positions]
    if len(numbers) < 3 or any(len(n) != 3 for n in numbers):
        return
    steps = np.abs(np.diff(np.asarray(numbers) @ normal))
    if steps.min() < 0.01:
        raise UnusableImage("several slices at one place (time frames or gates?): give one frame per folder")
    if np.ptp(steps) > 0.02 * steps.mean() + 0.01:
        raise UnusableImage(f"slices are missing: their distances vary from {steps.min():.3g} to {steps.max():.3g} mm")


def _check_values(values: NDArray[np.float32]) -> None:
    if min(values.shape) < 1:
        raise UnusableImage(f"an empty image of shape {values.shape}")
    bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if bad:
        raise UnusableImage(f"{bad} values that are not finite")
    if values.min() == values.max():
        raise UnusableImage(f"all voxels have the same value, {values.flat[0]:g}")


def _check_affine(affine: NDArray[np.float64]) -> None:
    if not np.isfinite(affine).all():
        raise UnusableImage("its orientation is not finite")
    columns = affine[:3, :3]
    spacing = np.linalg.norm(columns, axis=0)
    if spacing.min() < 0.1 or spacing.max() > 50:
        sizes = " x ".join(f"{v:.3g}" for v in spacing)
        raise UnusableImage(f"voxels of {sizes} mm: the file gives wrong sizes, or another unit than mm")
    cosines = (columns / spacing).T @ (columns / spacing)
    if np.abs(cosines - np.eye(3)).max() > 0.02:
        raise UnusableImage("its axes are not at right angles (a tilted gantry, or a wrong affine): resample it first")
