"""Readers of the patient's images: NIfTI, ECAT7, DICOM."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path
from random import Random

import numpy as np
import torch

from sirf_diffusion.patient.image import UnusableImage

from .mutations import NUMBERS, any_value, changed_bytes
from .reader import Reader, promise


class _Image(Reader):
    """An image of the patient."""

    errors = (UnusableImage,)

    def read(self) -> None:
        """The image, whose values are finite, and its place."""
        from sirf_diffusion.patient.readers import read_source

        image = read_source(self.source())
        promise(image.values.ndim == 3 and np.isfinite(image.values).all(), "values that are not finite")
        promise(np.isfinite(image.affine).all() and abs(np.linalg.det(image.affine)) > 0, "a place that is none")

    def source(self) -> Path:
        """The file, under the name that its content asks for."""
        return self.path


class Nifti(_Image):
    """NIfTI-1, plain and compressed."""

    name, file = "NIfTI", "image.nii"

    def prepare(self) -> list[bytes]:
        """A small image."""
        from nibabel import imageglobals

        from sirf_diffusion.patient.writing import write_nifti

        from .texts import _EXAM, GRID

        imageglobals.logger.handlers = []
        write_nifti(self.folder / "sample.nii.gz", torch.arange(147.0).reshape(3, 7, 7), GRID, _EXAM)
        return [gzip.decompress((self.folder / "sample.nii.gz").read_bytes())]

    def content(self, rng: Random) -> bytes:
        """Fields of the header changed, bytes, or the compressed stream."""
        data = bytearray(self.samples[0])
        for _ in range(rng.choice((0, 1, 1, 2, 4))):
            place = rng.choice((0, 40 + 2 * rng.randrange(8), 70, 72, 76 + 4 * rng.randrange(8), 108, 112, 116, 123,
                                252, 254, 256 + 4 * rng.randrange(18), 344))  # fmt: skip
            number = rng.choice(NUMBERS)
            if place in (40, 70, 72, 252, 254) or 40 <= place < 56:
                data[place : place + 2] = (int(number) if abs(number) < 2**70 else 0).__index__().to_bytes(
                    16, "little", signed=True)[:2]  # fmt: skip
            else:
                data[place : place + 4] = np.float32(max(-3e38, min(3e38, number))).tobytes()
        raw = changed_bytes(rng, bytes(data)) if rng.random() < 0.4 else bytes(data)
        if rng.random() < 0.3:
            raw = gzip.compress(raw, 1)
            raw = changed_bytes(rng, raw) if rng.random() < 0.5 else raw
        return raw

    def source(self) -> Path:
        """A compressed stream has another name."""
        if self.path.read_bytes()[:2] != b"\x1f\x8b":
            return self.path
        compressed = self.folder / "image.nii.gz"
        compressed.write_bytes(self.path.read_bytes())
        return compressed


class Ecat(_Image):
    """ECAT7 images."""

    name, file = "ECAT7", "image.v"

    def prepare(self) -> list[bytes]:
        """One frame of 7 x 7 x 3 voxels: main header, directory, subheader, values."""
        main, directory, sub = bytearray(512), bytearray(512), bytearray(512)
        main[:8] = b"MATRIX72"
        struct.pack_into(">HHH", main, 46, 73, 328, 7)
        struct.pack_into(">h", main, 328, 3)
        struct.pack_into(">f", main, 144, 1.0)
        struct.pack_into(">hhh", main, 352, 3, 1, 1)
        struct.pack_into(">iiii", directory, 0, 30, 2, 0, 1)
        struct.pack_into(">iiii", directory, 16, 0x01010001, 3, 4, 1)
        struct.pack_into(">hhhhh", sub, 0, 6, 3, 7, 7, 3)
        struct.pack_into(">ffff", sub, 10, 0, 0, 0, 1)
        struct.pack_into(">f", sub, 26, 1.0)
        struct.pack_into(">hh", sub, 30, 0, 146)
        struct.pack_into(">fff", sub, 34, 0.4, 0.4, 0.3)
        values = np.arange(147, dtype=">i2").tobytes()
        return [bytes(main + directory + sub) + values.ljust(512, b"\0")]

    def content(self, rng: Random) -> bytes:
        """Changed bytes."""
        return changed_bytes(rng, self.samples[0])


class Dicom(_Image):
    """DICOM: single slices, and enhanced multi-frame files."""

    name, file = "DICOM", "image.dcm"

    def prepare(self) -> list[bytes]:
        """A slice of a written series."""
        return [_dicom(None)]

    def made(self, rng: Random) -> bytes:
        """Other tags."""
        return _dicom(rng)

    def content(self, rng: Random) -> bytes:
        """Tags changed with pydicom, and bytes."""
        base = self.samples[0] if rng.random() < 0.3 else self.variant(rng)
        return base if rng.random() < 0.1 else changed_bytes(rng, base)


_TAGS = (
    "Rows", "Columns", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "SliceThickness",
    "RescaleSlope", "RescaleIntercept", "NumberOfFrames", "BitsAllocated", "BitsStored", "SamplesPerPixel", "PatientID",
    "Modality", "SeriesInstanceUID", "PhotometricInterpretation", "PixelRepresentation",
)  # fmt: skip


def _dicom(rng: Random | None) -> bytes:
    """A DICOM file of one slice; with a generator, one with changed tags."""
    import warnings

    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian
    from pydicom.uid import PositronEmissionTomographyImageStorage as PET

    data, meta = Dataset(), FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, PET
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.SOPClassUID, data.SeriesInstanceUID, data.PatientID, data.Modality = PET, "1.2", "p", "PT"
    data.Rows = data.Columns = 7
    data.PixelSpacing, data.ImageOrientationPatient = [4, 4], [1, 0, 0, 0, 1, 0]
    data.ImagePositionPatient, data.SliceThickness, data.RescaleSlope, data.RescaleIntercept = [0, 0, 0], 3, 2, 0
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit = 15
    data.PixelData = np.arange(49, dtype="<u2").tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(0 if rng is None else rng.choice((1, 2, 3))):
            try:
                name = rng.choice(_TAGS)
                value = rng.choice((any_value(rng), [any_value(rng)] * rng.choice((1, 2, 3, 6)), None))
                if rng.random() < 0.2 and name in data:
                    delattr(data, name)
                else:
                    setattr(data, name, value)
            except Exception:  # what pydicom does not take
                continue
        file = io.BytesIO()
        try:
            data.file_meta = meta
            data.save_as(file, enforce_file_format=True)
        except Exception:  # what pydicom does not write
            return _dicom(None)
    return file.getvalue()
