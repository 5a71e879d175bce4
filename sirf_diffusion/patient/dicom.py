"""One DICOM series as an image: where each slice lies is taken from its own tags, and nothing is filled in.

Classic series and enhanced multi-frame files are read alike. Of a header nothing is kept but the geometry; the
patient's identifier is given back for grouping images by subject, and never written.
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

from ..files.documents import BoundedFile
from ..files.frames import choose_frame
from .image import SourceImage, UnusableImage, optional, reading

logger = logging.getLogger(__name__)

_MAX_VOXELS = 2**31
#: Largest lean of a stack of slices, degrees.
_MAX_TILT = 45.0


def read_dicom(path: Path, chosen: int | None = None) -> SourceImage:
    """The one series in a folder, or one file: rescaled values ``[slice, row, column]`` and their place.

    ``chosen``: number of a time frame, from 1, of a dynamic series. Slices of a tilted gantry keep the place that their
    tags give: the affine is sheared, which is logged. Raises UnusableImage if there is not one series, a tag is
    missing, or slices do not make up one volume, and ImportError without pydicom.
    """
    frames, affine, shape = place_series(path, chosen)
    file, stored, values = None, np.empty(0), np.empty(0, np.float32)
    with reading("a damaged DICOM file"):
        for k, frame in enumerate(frames):
            if frame.file != file:
                file, stored = frame.file, _stored(frame.file, shape[1:])
            if k == 0:  # pixels of that size are there: no header is believed so far
                values = np.empty(shape, np.float32)
            values[k] = stored[frame.number] * frame.scaling("Slope", 1.0) + frame.scaling("Intercept", 0.0)
        patient, modality = (str(frames[0].find(name) or "").strip() for name in ("PatientID", "Modality"))
    return SourceImage(values, affine, "DICOM", patient, modality)


def read_tags(path: Path) -> list[tuple[Path, Any]]:
    """Headers of the DICOM images in a folder (or of one file), by file, without their pixels.

    Raises UnusableImage if a file is damaged, or they are not of exactly one series.
    """
    pydicom = optional("pydicom", "DICOM")
    found = []
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if not file.is_file():
            continue
        with reading("a damaged DICOM file", f"{file.name}: "):
            try:
                with BoundedFile(file) as content:
                    header = pydicom.dcmread(content, stop_before_pixels=True)
            except pydicom.errors.InvalidDicomError:
                continue
            if "Rows" in header:
                found.append((file, header))
    with reading("a damaged DICOM file"):
        series = {str(header.get("SeriesInstanceUID")) for _, header in found}
    if len(series) != 1:
        raise UnusableImage(f"it holds {len(series) or 'no DICOM'} series: one is expected")
    return found


@dataclass(frozen=True)
class _Frame:
    """One frame of one file, and the data sets in which its tags stand, the innermost first."""

    file: Path
    number: int
    scopes: tuple[Any, ...]

    def find(self, keyword: str) -> Any:
        found = (s[keyword].value for s in self.scopes if keyword in s)
        return next((value for value in found if value not in (None, "")), None)

    def numbers(self, keyword: str, count: int, default: float | None = None) -> NDArray[np.float64]:
        from pydicom.datadict import tag_for_keyword

        found = self.find(keyword)
        if found is None and default is not None:
            return np.full(count, default)
        tag = tag_for_keyword(keyword)
        name = f"{keyword} ({tag >> 16:04x},{tag & 0xFFFF:04x})"
        if found is None:
            raise UnusableImage(f"{name} is missing: without it the image has no place in the patient")
        try:
            numbers = np.asarray(found, float).reshape(-1)
        except (TypeError, ValueError):
            numbers = np.empty(0)
        if len(numbers) != count or not np.isfinite(numbers).all():
            raise UnusableImage(f"{name} must be {count} numbers, found {found!s:.60}")
        return numbers

    def scaling(self, part: str, default: float) -> NDArray[np.float64]:
        """Slope or intercept: of the rescaling, or else of the one mapping to real-world values."""
        if any(self.find(f"Rescale{name}") is not None for name in ("Slope", "Intercept")):
            return self.numbers(f"Rescale{part}", 1, default)
        if self.find("RealWorldValueLUTData") is not None:
            raise UnusableImage("values by a table (RealWorldValueLUTData), which is not supported: convert it")
        return self.numbers(f"RealWorldValue{part}", 1, default)


def _frames_of(file: Path, header: Any) -> list[_Frame]:
    if header.get("SamplesPerPixel", 1) != 1 or header.get("PhotometricInterpretation") == "PALETTE COLOR":
        raise UnusableImage("colour images (SamplesPerPixel, PhotometricInterpretation): grey values are expected")
    if "HighBit" in header and header.HighBit + 1 != header.BitsStored:
        raise UnusableImage(f"HighBit {header.HighBit} does not suit BitsStored {header.BitsStored}: convert it")
    number = int(_Frame(file, 0, (header,)).numbers("NumberOfFrames", 1, 1.0)[0])
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    if number > 1 and len(groups) != number:
        kind = getattr(header.get("SOPClassUID"), "name", "of unknown class")
        raise UnusableImage(
            f"a multi-frame file ({kind}) with {number} frames, of which {len(groups)} tell their place "
            "(PerFrameFunctionalGroupsSequence): convert it to one file per slice"
        )
    shared = [macro for group in header.get("SharedFunctionalGroupsSequence") or [] for macro in _macros(group)]
    shared += [header, *(header.get("RealWorldValueMappingSequence") or [])[:1]]
    return [_Frame(file, k, (*(_macros(groups[k]) if groups else ()), *shared)) for k in range(number)]


def _macros(group: Any) -> list[Any]:
    """What the sequences of a functional group hold."""
    return [element.value[0] for element in group if element.VR == "SQ" and element.value]


def place_series(path: Path, chosen: int | None = None) -> tuple[list[_Frame], NDArray[np.float64], tuple[int, ...]]:
    """Frames in the order of their places, the affine of ``(slice, row, column)`` to LPS mm, and the shape."""
    # pydicom reads values when they are asked for, and raises whatever damaged bytes lead to.
    with reading("a damaged DICOM file"):
        return _placed(path, chosen)


def _placed(path: Path, chosen: int | None) -> tuple[list[_Frame], NDArray[np.float64], tuple[int, ...]]:
    frames = [frame for file, header in read_tags(path) for frame in _frames_of(file, header)]
    if chosen is not None:
        frames = _of_one_time(frames, chosen)
    axes = _shared(frames, "ImageOrientationPatient", 6, 1e-3).reshape(2, 3)
    pixels = _shared(frames, "PixelSpacing", 2, 1e-4)
    shape = (len(frames), *(int(_shared(frames, name, 1)[0]) for name in ("Rows", "Columns")))
    lengths = np.linalg.norm(axes, axis=1, keepdims=True)
    if np.abs(lengths - 1).max() > 0.01 or abs(float(axes[0] @ axes[1])) > 0.01 or pixels.min() <= 0:
        raise UnusableImage(
            f"ImageOrientationPatient {axes.tolist()} must be two unit vectors at right angles, PixelSpacing "
            f"{pixels.tolist()} positive"
        )
    if np.prod([float(n) for n in shape]) > _MAX_VOXELS:
        raise UnusableImage(f"{' x '.join(map(str, shape))} voxels are more than {_MAX_VOXELS}")
    for name in ("RescaleSlope", "RescaleIntercept", "RealWorldValueSlope"):
        if len({frame.find(name) is None for frame in frames}) > 1:
            raise UnusableImage(f"{name} is missing in some of its slices")
    for name in ("FrameOfReferenceUID", "Units", "RescaleType", "DecayCorrection", "PatientPosition"):
        if len(found := sorted({str(frame.find(name)) for frame in frames})) > 1:
            raise UnusableImage(f"its slices differ in {name}: {found[0]:.64} and {found[1]:.64}")
    if any(frame.find("ModalityLUTSequence") is not None for frame in frames):
        raise UnusableImage("values by a table (ModalityLUTSequence), which is not supported: convert it")
    if len(frames) == 1 and path.is_file():
        logger.warning("%s is one slice: of a series of several give the folder", path)
    axes = axes / lengths
    normal = np.cross(*axes)
    positions = np.asarray([frame.numbers("ImagePositionPatient", 3) for frame in frames])
    order = np.argsort(positions @ normal, kind="stable")
    frames, positions = [frames[k] for k in order], positions[order]
    affine = np.eye(4)
    affine[:3] = np.stack([_step(frames, positions, normal), axes[1] * pixels[0], axes[0] * pixels[1], positions[0]], 1)
    return frames, affine, shape


#: Tags that number time frames, and those that give their times.
_TIMES = (
    ("TemporalPositionIdentifier",), ("TemporalPositionIndex",), ("FrameReferenceTime",), ("FrameAcquisitionDateTime",),
    ("AcquisitionDateTime",), ("AcquisitionDate", "AcquisitionTime"),
)  # fmt: skip


def _of_one_time(frames: list[_Frame], chosen: int) -> list[_Frame]:
    """The slices of one time frame: those of the n-th time at each place."""
    normal = np.cross(*_shared(frames, "ImageOrientationPatient", 6, 1e-3).reshape(2, 3))
    heights = np.asarray([frame.numbers("ImagePositionPatient", 3) @ normal for frame in frames])
    order = np.argsort(heights, kind="stable")
    places = np.split(order, np.flatnonzero(np.diff(heights[order]) >= 0.01) + 1)
    number = len(places[0])
    for names in _TIMES:
        times = [tuple(_time(frame.find(name)) for name in names) for frame in frames]
        if all(len({times[k] for k in place}) == len(place) == number for place in places):
            try:
                index = choose_frame(chosen, number) - 1
            except ValueError as error:
                raise UnusableImage(str(error)) from error
            logger.info("time frame %d of %d by %s", chosen, number, " and ".join(names))
            return [frames[sorted(place, key=lambda k: times[k])[index]] for place in places]
    tags = ", ".join(" and ".join(names) for names in _TIMES)
    raise UnusableImage(
        f"its time frames cannot be told apart: {len(places)} places have {min(map(len, places))} to "
        f"{max(map(len, places))} slices, expected as many times at each, by one of {tags}"
    )


def _time(value: Any) -> tuple[float, str]:
    """Numbers before words, each in its order."""
    try:
        return float(value), ""
    except (TypeError, ValueError):
        return math.inf, str(value)


def _shared(frames: list[_Frame], keyword: str, count: int, tolerance: float = 0.0) -> NDArray[np.float64]:
    """Numbers that must be the same in all frames."""
    values = np.asarray([frame.numbers(keyword, count) for frame in frames])
    different = np.abs(values - values[0]).max(axis=1)
    if different.max() > tolerance:
        other = values[int(different.argmax())]
        raise UnusableImage(
            f"its slices differ in {keyword}: {values[0].tolist()} and {other.tolist()}; give one volume per folder"
        )
    return values[0]


def _step(frames: list[_Frame], positions: NDArray[np.float64], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """From one slice to the next, LPS mm; slices are sorted along the normal of their planes."""
    if len(frames) == 1:
        if (thickness := float(frames[0].numbers("SliceThickness", 1)[0])) <= 0:
            raise UnusableImage(f"SliceThickness (0018,0050) of a single slice must be positive, found {thickness:g}")
        return thickness * normal
    distances = np.diff(positions @ normal)
    if distances.min() < 0.01:
        raise UnusableImage(
            f"several slices at one place, {1 + int((distances >= 0.01).sum())} places for {len(frames)} slices: time "
            "frames, gates, echoes or copies? Choose a time frame by NAME#1, NAME#2, ..., or give one per folder"
        )
    # Positions may be rounded to 0.1 mm; a missing slice doubles a distance.
    if np.ptp(distances) > min(0.1 * distances.mean() + 0.15, 0.5 * float(np.median(distances))):
        raise UnusableImage(
            f"slices are missing: their distances by ImagePositionPatient vary from {distances.min():.3g} to "
            f"{distances.max():.3g} mm"
        )
    step = (positions[-1] - positions[0]) / len(distances)
    aside = np.linalg.norm(positions - positions[0] - np.arange(len(frames))[:, None] * step, axis=1).max()
    if aside > 0.02 * distances.mean() + 0.1:
        raise UnusableImage(f"slices do not lie in a row: by ImagePositionPatient one is {aside:.3g} mm aside")
    tilt = math.degrees(math.acos(min(1.0, float(step @ normal / np.linalg.norm(step)))))
    if tilt > _MAX_TILT:
        raise UnusableImage(f"its stack of slices leans by {tilt:.0f} degrees: ImagePositionPatient cannot be right")
    if tilt > 0.1:
        logger.warning(
            "the gantry was tilted by %.1f degrees: slices stay where their tags put them; resampling undoes the shear",
            tilt,
        )
    return step


def _stored(file: Path, shape: tuple[int, ...]) -> NDArray[Any]:
    """Stored numbers ``[frame, row, column]``, by pydicom, or by SimpleITK where pydicom cannot decompress them."""
    import pydicom

    with reading("no readable DICOM pixels", f"{file.name}: "):
        with BoundedFile(file) as content:
            dataset = pydicom.dcmread(content)
        try:
            return np.reshape(dataset.pixel_array, (-1, *shape))
        except (AttributeError, NotImplementedError, RuntimeError):
            if not dataset.file_meta.TransferSyntaxUID.is_compressed:
                raise
        sitk = optional("SimpleITK", "compressed DICOM")
        # SimpleITK applies the rescaling of the first frame to all, and turns MONOCHROME1 over: it must not see either.
        dataset.walk(_without_rescaling)
        dataset.PhotometricInterpretation = "MONOCHROME2"
        with tempfile.TemporaryDirectory() as folder:
            dataset.save_as(plain := Path(folder) / "image.dcm")
            return np.reshape(sitk.GetArrayFromImage(sitk.ReadImage(plain)), (-1, *shape))


def _without_rescaling(dataset: Any, element: Any) -> None:
    if element.keyword in ("RescaleSlope", "RescaleIntercept"):
        del dataset[element.tag]
