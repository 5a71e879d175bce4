"""One DICOM series as an image: where each slice lies is taken from its own tags, and nothing is filled in.

Classic series and enhanced multi-frame files are read alike. Of a header nothing is kept but the geometry; the patient's
identifier is given back for grouping images by subject, and never written.
"""

from __future__ import annotations

import logging
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .image import SourceImage, UnusableImage, optional

logger = logging.getLogger(__name__)

_MAX_VOXELS = 2**31
#: What tells time frames, gates and echoes apart.
_TIMES = ("TemporalPositionIndex", "TemporalPositionIdentifier", "FrameReferenceTime", "TriggerTime", "AcquisitionTime")
#: Largest lean of a stack of slices, degrees.
_MAX_TILT = 45.0


@dataclass(frozen=True)
class _Slice:
    """One frame of one file: where it lies (LPS mm), and what its stored numbers mean."""

    file: Path
    frame: int
    position: NDArray[np.float64]
    axes: NDArray[np.float64]
    pixels: NDArray[np.float64]
    shape: tuple[int, int]
    slope: float
    intercept: float
    rescaled: bool
    times: tuple[str, ...]
    scopes: tuple[Any, ...]


def read_dicom(path: Path) -> SourceImage:
    """The one series in a folder, or one file: rescaled values ``[slice, row, column]`` and their place.

    Slices of a tilted gantry keep the place that their tags give: the affine is sheared, which is logged.

    Raises
    ------
    UnusableImage
        If there is not one series, a tag is missing, or slices do not make up one volume.
    ImportError
        Without pydicom.
    """
    header, slices, affine = _placed(path)
    patient, modality = (str(header.get(name, "")).strip() for name in ("PatientID", "Modality"))
    return SourceImage(_values(slices), affine, "DICOM", patient, modality)


def geometry_of_series(path: Path) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    """Affine and shape of the image that `read_dicom` gives."""
    _, slices, affine = _placed(path)
    return affine, (len(slices), *slices[0].shape)


def read_tags(path: Path) -> list[tuple[Path, Any]]:
    """Headers of the DICOM images in a folder (or of one file), by file, without their pixels.

    Raises
    ------
    UnusableImage
        If a file is damaged, or they are not of exactly one series.
    """
    pydicom = optional("pydicom", "DICOM")
    found = []
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if not file.is_file():
            continue
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True)
        except pydicom.errors.InvalidDicomError:
            continue
        except Exception as error:  # whatever damaged bytes lead to
            raise UnusableImage("a damaged DICOM file", f"{file.name}: {type(error).__name__}: {error}") from error
        if "Rows" in header:
            found.append((file, header))
    series = {str(header.get("SeriesInstanceUID")) for _, header in found}
    if len(series) != 1:
        raise UnusableImage(f"the folder holds {len(series) or 'no DICOM'} series: one is expected")
    return found


def _placed(path: Path) -> tuple[Any, list[_Slice], NDArray[np.float64]]:
    """A header, the slices in order, and the affine of their indices ``(slice, row, column)``."""
    files = read_tags(path)
    slices = [s for file, header in files for s in _slices_of(file, header)]
    if sum(float(s.shape[0]) * s.shape[1] for s in slices) > _MAX_VOXELS:
        raise UnusableImage(f"more than {_MAX_VOXELS} voxels: give a smaller image")
    axes, pixels = _common(slices)
    normal = np.cross(axes[:3], axes[3:])
    slices = sorted(slices, key=lambda s: (float(s.position @ normal), s.file.name, s.frame))
    affine = np.eye(4)
    affine[:3, :3] = np.stack([_step(slices, normal), axes[3:] * pixels[0], axes[:3] * pixels[1]], axis=1)
    affine[:3, 3] = slices[0].position
    return files[0][1], slices, affine


def _slices_of(file: Path, header: Any) -> list[_Slice]:
    """All frames of one file."""
    if header.get("SamplesPerPixel", 1) != 1 or header.get("PhotometricInterpretation") == "PALETTE COLOR":
        raise UnusableImage("colour images (SamplesPerPixel, PhotometricInterpretation): grey values are expected")
    number = int(_numbers((header,), "NumberOfFrames", 1, 1.0)[0])
    frames = header.get("PerFrameFunctionalGroupsSequence") or []
    if number > 1 and len(frames) != number:
        kind = getattr(header.get("SOPClassUID"), "name", "of unknown class")
        raise UnusableImage(
            f"a multi-frame file ({kind}) with {number} frames, of which {len(frames)} tell their place "
            "(PerFrameFunctionalGroupsSequence): convert it to one file per slice"
        )
    shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
    result = []
    for k in range(number):
        scopes = (*_macros(frames[k] if frames else None), *_macros(shared), header)
        if _find(scopes, "ModalityLUTSequence") is not None:
            raise UnusableImage("values by a table (ModalityLUTSequence), which is not supported: convert it")
        slope, intercept = (_numbers(scopes, f"Rescale{n}", 1, d)[0] for n, d in (("Slope", 1.0), ("Intercept", 0.0)))
        result.append(
            _Slice(
                file,
                k,
                _numbers(scopes, "ImagePositionPatient", 3),
                _numbers(scopes, "ImageOrientationPatient", 6),
                _numbers(scopes, "PixelSpacing", 2),
                (int(header.Rows), int(header.get("Columns", 0))),
                slope,
                intercept,
                _find(scopes, "RescaleSlope") is not None,
                tuple(str(_find(scopes, name)) for name in _TIMES),
                scopes,
            )
        )
    return result


def _macros(group: Any) -> tuple[Any, ...]:
    """What the sequences of a functional group hold."""
    return tuple(e.value[0] for e in group if e.VR == "SQ" and e.value) if group is not None else ()


def _find(scopes: tuple[Any, ...], keyword: str) -> Any:
    return next((s[keyword].value for s in scopes if keyword in s and s[keyword].value not in (None, "")), None)


def _numbers(scopes: tuple[Any, ...], keyword: str, count: int, default: float | None = None) -> NDArray[np.float64]:
    from pydicom.datadict import tag_for_keyword

    name = f"{keyword} ({(tag := tag_for_keyword(keyword)) >> 16:04x},{tag & 0xFFFF:04x})"
    found = _find(scopes, keyword)
    if found is None and default is not None:
        return np.full(count, default)
    if found is None:
        raise UnusableImage(f"{name} is missing: its place in the patient is unknown")
    try:
        numbers = np.asarray(found, float).reshape(-1)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise UnusableImage(f"{name} must be {count} numbers, found {found!s:.60}")
    return numbers


def _common(slices: list[_Slice]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Axes (of the columns' index, then of the rows') and pixel sizes, which all slices must share."""
    for name, tolerance, values in (
        ("ImageOrientationPatient", 1e-3, [s.axes for s in slices]),
        ("PixelSpacing", 1e-4, [s.pixels for s in slices]),
        ("Rows, Columns", 0, [s.shape for s in slices]),
        ("presence of RescaleSlope", 0, [(s.rescaled,) for s in slices]),
    ):
        different = np.abs(np.asarray(values, float) - values[0]).max(axis=1) > tolerance
        if different.any():
            other = values[int(np.argmax(different))]
            raise UnusableImage(
                f"its slices differ in {name}: {list(map(float, values[0]))} and {list(map(float, other))}; give one "
                "volume per folder"
            )
    axes, pixels = slices[0].axes, slices[0].pixels
    lengths = np.linalg.norm(axes.reshape(2, 3), axis=1)
    if np.abs(lengths - 1).max() > 0.01 or abs(float(axes[:3] @ axes[3:])) > 0.01:
        raise UnusableImage(f"ImageOrientationPatient is no pair of unit vectors at right angles: {axes.tolist()}")
    if pixels.min() <= 0:
        raise UnusableImage(f"PixelSpacing must be positive, found {pixels.tolist()}")
    return axes / np.repeat(lengths, 3), pixels


def _step(slices: list[_Slice], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """From one slice to the next, LPS mm; slices are sorted along the normal of their planes."""
    if len(slices) == 1:
        thickness = float(_numbers(slices[0].scopes, "SliceThickness", 1)[0])
        if thickness <= 0:
            raise UnusableImage(f"SliceThickness must be positive, found {thickness:g}")
        return thickness * normal
    positions = np.asarray([s.position for s in slices])
    distances = np.diff(positions @ normal)
    if distances.min() < 0.01:
        place = np.concatenate([[0], np.cumsum(distances >= 0.01)])
        number = int(np.bincount(place).max())
        at_one = [s.times for s, p in zip(slices, place, strict=True) if p == np.argmax(np.bincount(place))]
        what = "copies, or time frames, gates or echoes" if len(set(at_one)) == 1 else "time frames, gates or echoes"
        raise UnusableImage(f"{number} slices at one place ({what}): give one time frame per folder")
    if np.ptp(distances) > 0.02 * distances.mean() + 0.01:
        raise UnusableImage(
            f"slices are missing: their distances by ImagePositionPatient vary from {distances.min():.3g} to "
            f"{distances.max():.3g} mm"
        )
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    aside = float(np.linalg.norm(positions - positions[0] - np.arange(len(slices))[:, None] * step, axis=1).max())
    if aside > 0.02 * distances.mean() + 0.05:
        raise UnusableImage(f"slices do not lie in a row: by ImagePositionPatient one is {aside:.3g} mm aside")
    tilt = math.degrees(math.acos(min(1.0, float(step @ normal / np.linalg.norm(step)))))
    if tilt > _MAX_TILT:
        raise UnusableImage(f"its stack of slices leans by {tilt:.0f} degrees: ImagePositionPatient cannot be right")
    if tilt > 0.1:
        logger.warning(
            "the gantry was tilted by %.1f degrees: each slice stays where its tags put it, and resampling takes out "
            "the shear",
            tilt,
        )
    return step


def _values(slices: list[_Slice]) -> NDArray[np.float32]:
    values = np.empty((len(slices), *slices[0].shape), np.float32)
    stored: dict[Path, NDArray[Any]] = {}
    for k, s in enumerate(slices):
        if s.file not in stored:
            stored = {s.file: _stored(s.file)}
        pixels = stored[s.file]
        if pixels.ndim == 2:
            pixels = pixels[None]
        if pixels.ndim != 3 or pixels.shape[1:] != s.shape or s.frame >= len(pixels):
            raise UnusableImage(f"pixels of shape {pixels.shape}, where its tags say {s.shape}")
        values[k] = pixels[s.frame] * s.slope + s.intercept
    return values


def _stored(file: Path) -> NDArray[Any]:
    """Stored numbers of a file, by pydicom, or by SimpleITK where pydicom cannot decompress them."""
    import pydicom

    try:
        dataset = pydicom.dcmread(file)
        try:
            return np.asarray(dataset.pixel_array)
        except (AttributeError, NotImplementedError, RuntimeError):
            if not dataset.file_meta.TransferSyntaxUID.is_compressed:
                raise
        sitk = optional("SimpleITK", "compressed DICOM")
        # SimpleITK applies the rescaling of the first frame to all of them: it must not see any.
        dataset.walk(_without_rescaling)
        with tempfile.TemporaryDirectory() as folder:
            dataset.save_as(plain := Path(folder) / "image.dcm")
            return np.squeeze(sitk.GetArrayFromImage(sitk.ReadImage(plain)))
    except ImportError:
        raise
    except Exception as error:  # whatever damaged bytes lead to
        raise UnusableImage("no readable DICOM pixels", f"{file.name}: {type(error).__name__}: {error}") from error


def _without_rescaling(dataset: Any, element: Any) -> None:
    if element.keyword in ("RescaleSlope", "RescaleIntercept"):
        del dataset[element.tag]
