"""Write an image with new values in the file format of the original; everything else is kept."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..files.frames import split_frame
from ..geometry.checks import check_image
from ..geometry.exam import HEAD_FIRST_SUPINE, POSITIONS, ExamInfo
from ..geometry.images import ImageGeometry
from .anatomical import ALL, MIN_COVERAGE, AnatomicalImage
from .dicom import place_series
from .image import LPS_OF_RAS, SourceImage, optional, usable
from .readers import read_source
from .resampling import Lattice, coverage, in_common, interpolates, resample
from .writing import save_nifti, set_pixels, write_compressed, write_dicom, write_nifti

logger = logging.getLogger(__name__)

#: Any CT image of a patient has values above this share of the density of water.
_LEAST_DENSEST = 0.5

#: Tags that tell of stored values.
_OF_OLD_VALUES = (
    "SmallestImagePixelValue", "LargestImagePixelValue", "SmallestPixelValueInSeries", "LargestPixelValueInSeries",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "RealWorldValueMappingSequence", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths", "PixelData", "FloatPixelData", "DoubleFloatPixelData",
)  # fmt: skip


@dataclass(frozen=True)
class OriginalImage:
    """An image of a file, seen along the axes ``(z, y, x)`` that lie nearest to STIR's, without interpolation.

    ``values`` ``[z, y, x]``, z to the feet, y to the back, x to the left, as training images lie; ``affine`` takes
    their indices to LPS mm. ``geometry`` has their voxel sizes, and no place.
    """

    path: Path
    source: SourceImage
    values: Tensor
    geometry: ImageGeometry
    affine: NDArray[np.float64]
    axes: tuple[int, ...]
    flipped: tuple[int, ...]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> OriginalImage:
        """From Interfile, NIfTI, or a DICOM series; a ValueError that names the file if it cannot be used."""
        path = Path(path)
        source = usable(read_source, path, "the image ")
        if source.modality not in ("", "PT"):
            raise ValueError(f"the image {path} cannot be used: DICOM of modality {source.modality}, not PT")
        if source.kind not in ("Interfile", "NIfTI", "DICOM"):
            raise ValueError(f"{path}: {source.kind} is not written: convert it to Interfile, NIfTI or DICOM")
        axes = _nearest_axes(source.affine)
        affine = source.affine[:, [*axes, 3]]
        values = source.values.transpose(axes)
        towards = (-affine[2, 0], affine[1, 1], affine[0, 2])  # to the feet, the back, the left
        flipped = tuple(axis for axis, direction in enumerate(towards) if direction < 0)
        for axis in flipped:
            affine[:3, 3] += (values.shape[axis] - 1) * affine[:3, axis]
            affine[:3, axis] *= -1
        z, y, x = (float(v) for v in np.linalg.norm(affine[:3, :3], axis=0))
        seen = torch.from_numpy(np.ascontiguousarray(np.flip(values, flipped), np.float32))
        return cls(path, source, seen, ImageGeometry(tuple(seen.shape), (z, y, x)), affine, axes, flipped)

    def ct(self, path: str | os.PathLike[str]) -> tuple[Tensor, dict[str, Any]]:
        """A CT image on these voxels ``[z, y, x]``, resampled where it has others; and what a record says.

        Raises ValueError if it cannot be used, is of another modality, or lies elsewhere.
        """
        read = AnatomicalImage.read(path)
        other, size = read.image, self.geometry.voxel_size
        if other.modality not in ("", "CT"):
            raise ValueError(f"{path} is of modality {other.modality}, and the model is shown CT images")
        if (densest := float(other.values.max())) < _LEAST_DENSEST:
            logger.warning(
                "%s has values of at most %.3g, like a map of attenuation in 1/cm: a CT image in Hounsfield units is "
                "expected, or density relative to water", path, densest,
            )  # fmt: skip
        told = bool(self.source.patient and other.patient)
        if another := self.source.is_of_another(other):
            logger.warning("%s and %s are of different patients by PatientID", path, self.path)
        if self.source.kind == other.kind == "Interfile" and None in (self.source.position, other.position):
            # Both are in the scanner's coordinates, and the one that is silent means the same patient.
            signs = [np.asarray(POSITIONS[image.position or HEAD_FIRST_SUPINE]) for image in (self.source, other)]
            other = replace(other, affine=np.diag([*(signs[0] * signs[1]), 1.0]) @ other.affine)
        grid = Lattice(self.geometry.shape, self.affine)
        if (common := in_common(other, grid)) < MIN_COVERAGE:
            raise ValueError(f"{path} and {self.path} have only {common:.0%} in common: are they of one patient?")
        if (covered := coverage(other, grid)) < ALL:
            logger.warning("%s covers %.0f %% of %s: the rest is taken for air", path, 100 * covered, self.path)
        sizes = [round(float(v), 5) for v in np.linalg.norm(other.affine[:3, :3], axis=0)]
        record = {
            "file": str(path), "sha256": read.sha256, "modality": other.modality or None,
            "same_patient_id": not another if told else None, "resampled": interpolates(other, self.affine),
            "from": {"shape": list(other.values.shape), "voxel_size_mm": sizes},
            "to": {"shape": list(self.geometry.shape), "voxel_size_mm": [round(v, 5) for v in size]},
        }  # fmt: skip
        return torch.from_numpy(np.array(resample(other, grid), np.float32)), record

    def check_writer(self) -> None:
        """ValueError if `write` cannot give other values to files of this kind, which is known before the work."""
        if self.source.kind == "DICOM" and (reason := _unwritten(self._frames())):
            raise ValueError(
                f"{self.path}: {reason} is not written: ask for NIfTI, or convert it to classic DICOM, a file per slice"
            )

    def _frames(self) -> list[Any]:
        return place_series(*split_frame(self.path))[0]

    def name(self, stem: str) -> str:
        """Name of a file (of DICOM: a folder) of this format."""
        return stem + {"Interfile": ".hv", "NIfTI": ".nii.gz", "DICOM": ""}[self.source.kind]

    def write(self, path: Path, values: Tensor, description: str) -> None:
        """Write other values ``[z, y, x]`` in the format and place of the original, with all that its header tells.

        ``path`` is called as `name` says. DICOM: a new series, marked as derived, each file with new UIDs.
        """
        stored = self._stored(values)
        if self.source.kind == "Interfile":
            from ..files.interfile import write_image

            geometry, exam = self._interfile()
            write_image(path, torch.from_numpy(stored), geometry, exam=exam)
        elif self.source.kind == "NIfTI":
            self._write_nifti(path, stored)
        else:
            self._write_dicom(path, stored, description)

    def convert(
        self, path: Path, values: Tensor, like: str | os.PathLike[str] | None = None, description: str = ""
    ) -> None:
        """Write other values ``[z, y, x]`` of Interfile or DICOM as NIfTI, in the scanner's coordinates.

        ``path`` ends in ``.nii.gz``, or with ``like`` is a folder to make: DICOM PET, of Interfile alone, see
        `write_dicom`.
        """
        stored = self._stored(values)
        if self.source.kind == "Interfile":
            about = torch.from_numpy(stored), *self._interfile()
            write_nifti(path, *about) if like is None else write_dicom(path, *about, like, derived=description)
        else:
            save_nifti(path, stored, LPS_OF_RAS @ self.source.affine)

    def stored_samples(self, samples: Tensor) -> tuple[Tensor, ImageGeometry | None, dict[str, Any]]:
        """Samples ``[S, z, y, x]`` along the axes of the file, their grid if it is STIR's, and their place."""
        stored = torch.from_numpy(np.stack([self._stored(sample) for sample in samples]))
        if self.source.kind == "Interfile":
            geometry, exam = self._interfile()
            return stored, geometry, {"patient_position": (exam.orientation, exam.rotation)}
        return stored, None, {"axes": "sample, and those of the image's file", "affine_lps_mm": self.source.affine}

    def _interfile(self) -> tuple[ImageGeometry, ExamInfo]:
        from ..files.interfile import read_exam_info, read_image

        return read_image(self.path)[1], read_exam_info(self.path)

    def _stored(self, values: Tensor) -> NDArray[np.float32]:
        """Values ``[z, y, x]`` along the axes of the file."""
        check_image(values, "the new image", self.geometry.shape)
        array = np.flip(values.detach().to("cpu", torch.float32).numpy(), self.flipped)
        return np.ascontiguousarray(array.transpose(np.argsort(self.axes)))

    def _write_nifti(self, path: Path, stored: NDArray[np.float32]) -> None:
        nibabel, (file, frame) = optional("nibabel", "NIfTI"), split_frame(self.path)
        original = nibabel.load(file)
        header = original.header.copy()
        header.set_data_dtype(np.float32)
        header.set_slope_inter(1, 0)
        kind = nibabel.Nifti2Image if isinstance(original, nibabel.Nifti2Image) else nibabel.Nifti1Image
        if stored.size == np.prod(original.shape):
            image = kind(stored.reshape(original.shape), None, header)
        else:  # one time frame of several: it begins later
            duration = float(header["pixdim"][4])
            image = kind(stored, None, header)
            image.header["toffset"] = float(header["toffset"]) + duration * ((frame or 1) - 1)
            image.header["pixdim"][4] = duration
        write_compressed(path, image)

    def _write_dicom(self, folder: Path, stored: NDArray[np.float32], description: str) -> None:
        pydicom = optional("pydicom", "DICOM")
        folder.mkdir(parents=True)
        series, told = pydicom.uid.generate_uid(), description[:64]
        for number, (frame, plane) in enumerate(zip(self._frames(), stored, strict=True), 1):
            dataset = pydicom.dcmread(frame.file)
            uid = pydicom.uid.generate_uid()
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
            dataset.SeriesInstanceUID, dataset.SeriesDescription = series, told
            dataset.DerivationDescription = description[:1024]
            kinds = list(dataset.get("ImageType") or [])
            dataset.ImageType = ["DERIVED", *(kinds[1:] or ["SECONDARY"])]
            dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
            for keyword in _OF_OLD_VALUES:
                if keyword in dataset:
                    delattr(dataset, keyword)
            set_pixels(dataset, plane)
            dataset["PixelData"].VR = "OW"
            dataset.save_as(folder / f"{number:05d}.dcm", enforce_file_format=True)


def _unwritten(frames: list[Any]) -> str:
    """Why files of these frames cannot be given other values; empty if they can."""
    if len({frame.file for frame in frames}) != len(frames):
        return "multi-frame DICOM"
    groups = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
    enhanced = any(frame.find(group) is not None for frame in frames for group in groups)
    return "enhanced DICOM (values in functional groups)" if enhanced else ""


def _nearest_axes(affine: NDArray[np.float64]) -> tuple[int, int, int]:
    """Which array axes run nearest to the patient's z, y and x; each once."""
    cosines = np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    chosen: dict[int, int] = {}
    for place in np.argsort(-cosines, axis=None):
        direction, axis = (int(v) for v in np.unravel_index(place, cosines.shape))
        if direction not in chosen and axis not in chosen.values():
            chosen[direction] = axis
    return chosen[2], chosen[1], chosen[0]
