"""One small patient, written in every format and orientation: what goes into tests of reading and writing images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sirf_diffusion.files.interfile import write_image
from sirf_diffusion.geometry.exam import ExamInfo
from sirf_diffusion.geometry.images import ImageGeometry

#: Voxels (z, y, x) in STIR's axes, head first and supine, 4 mm each.
SHAPE, VOXEL = (24, 22, 20), 4.0
NAME = "DOE^JANE"
PATIENT_ID = "HOSP1234567"
#: Directions of STIR's x, y, z as signs in LPS.
SIGNS = {("head_in", "supine"): (1, 1, -1), ("head_in", "prone"): (-1, -1, -1), ("feet_in", "supine"): (-1, 1, 1),
         ("feet_in", "prone"): (1, -1, 1)}  # fmt: skip
#: Centres (LPS mm), widths (mm) and heights of blobs without any symmetry.
BLOBS = (((10, 5, -5), 14, 1.0), ((-20, 12, 20), 8, 2.0), ((15, -18, -25), 7, 3.0), ((-8, -22, 5), 9, 1.5))
LPS_OF_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def activity(seed: int = 0) -> np.ndarray:
    """A body with one organ on the left, in front and near the feet: no symmetry. STIR's axes (z to the feet)."""
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    body = 1.0 * (z**2 + y**2 + x**2 < 0.7)
    organ = 4.0 * ((z - 0.4) ** 2 + (y + 0.2) ** 2 + (x - 0.3) ** 2 < 0.06)
    texture = 1 + 0.2 * np.random.default_rng(seed).random(SHAPE)
    return ((body + organ) * texture).astype(np.float32)


def phantom(points: np.ndarray) -> np.ndarray:
    """Values of the blobs at points ``[3, ...]`` in LPS mm."""
    return sum(h * np.exp(-sum((p - m) ** 2 for p, m in zip(points, c, strict=True)) / (2 * w**2)) for c, w, h in BLOBS)


def points_of(shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """LPS coordinates ``[3, ...]`` of a grid's voxels."""
    return np.einsum("ab,b...->a...", affine[:3], np.stack([*np.indices(shape), np.ones(shape)]))


def lps_of(geometry: ImageGeometry, signs: tuple[int, int, int] = (1, 1, -1)) -> np.ndarray:
    """LPS coordinates ``[3, z, y, x]`` of STIR's voxels, from the documented formula of its axes."""
    (nz, ny, nx), (dz, dy, dx), (oz, oy, ox) = geometry.shape, geometry.voxel_size, geometry.origin
    z = oz + dz * np.arange(nz)[:, None, None]
    y = oy + dy * (np.arange(ny) - ny // 2)[None, :, None]
    x = ox + dx * (np.arange(nx) - nx // 2)[None, None, :]
    return np.stack(np.broadcast_arrays(signs[0] * x, signs[1] * y, signs[2] * z))


def write_nifti_at(
    path: Path, image: torch.Tensor, geometry: ImageGeometry, axes: str = "RAS", coded: bool = True
) -> Path:
    """An image of STIR's (head first, supine) where it is in the patient, array axes pointing to the given sides."""
    import nibabel
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    (_, ny, nx), (dz, dy, dx), (z, y, x) = geometry.shape, geometry.voxel_size, geometry.origin
    affine = np.diag([-dx, -dy, -dz, 1.0])  # STIR's axes point to the left, back and feet
    affine[:3, 3] = -(x - nx // 2 * dx), -(y - ny // 2 * dy), -z
    nifti = nibabel.Nifti1Image(np.asarray(image).transpose(2, 1, 0), affine)
    nifti = nifti.as_reoriented(ornt_transform(io_orientation(affine), axcodes2ornt(axes)))
    if not coded:
        nifti.set_sform(None, 0)
        nifti.set_qform(None, 0)
    nibabel.save(nifti, path)
    return path


def write_nifti(path: Path, stir: np.ndarray, axes: str = "RAS", voxel: float = VOXEL, coded: bool = True) -> Path:
    """The image with its array axes pointing to the given sides; the middle of the image at 0 in any case."""
    (nz, ny, nx), half = stir.shape, voxel / 2
    origin = (-(nz - 1) * half, (ny // 2 * 2 - ny + 1) * half, (nx // 2 * 2 - nx + 1) * half)
    return write_nifti_at(
        path, torch.from_numpy(stir.copy()), ImageGeometry(stir.shape, (voxel,) * 3, origin), axes, coded
    )


def write_interfile(path: Path, stir: np.ndarray, position: tuple[str, str] | None = None) -> Path:
    """The image as STIR has it for this patient position (None: not told, which means head first, supine)."""
    x, y, z = SIGNS[position or ("head_in", "supine")]
    array = np.ascontiguousarray(stir[::-z, ::y, ::x])
    exam = ExamInfo(*(position or ("unknown", "unknown")))
    write_image(path, torch.from_numpy(array), ImageGeometry(SHAPE, (VOXEL,) * 3), exam=exam)
    return path


#: SOP classes of single slices (NM: as some programs write slices of PET), and of all slices in one file.
CLASSES = {"PT": "128", "CT": "2", "MR": "4", "NM": "20", "enhanced PT": "130", "enhanced MR": "4.1"}


def dicom_file(file: Path, stored: np.ndarray, kind: str = "PT", **tags: Any) -> Path:
    """One DICOM file of stored integers ``[row, column]`` or ``[frame, row, column]`` with the tags given, no other."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    dataset, dataset.file_meta = (data := Dataset()), FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = f"1.2.840.10008.5.1.4.1.1.{CLASSES[kind]}"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.Modality, data.PatientName, data.PatientID, data.PatientBirthDate = kind[-2:], NAME, PATIENT_ID, "19500101"
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = "1.2.3.4", "1.2.3.4.5", "1.2.3.4.6"
    data.SamplesPerPixel, data.PhotometricInterpretation, data.BitsAllocated = 1, "MONOCHROME2", 16
    data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 15, int(stored.dtype.kind == "i")
    data.Rows, data.Columns = stored.shape[-2:]
    for name, value in tags.items():
        setattr(data, name, value)
    data.PixelData = stored.astype(f"<{stored.dtype.kind}2").tobytes()
    data.save_as(file, enforce_file_format=True)
    return file


def dicom_series(
    folder: Path, stored: np.ndarray, positions: Any, change: Callable[[int, dict], None] | None = None, **tags: Any
) -> Path:
    """A slice per file, in mixed order; ``change(k, tags)`` alters the tags of slice k."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, (plane, position) in enumerate(zip(stored, positions, strict=True)):
        mine = {"ImagePositionPatient": [f"{v:.6g}" for v in position], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
                "PixelSpacing": [2, 3], "SliceThickness": 4, "RescaleSlope": 1, "RescaleIntercept": 0,
                "InstanceNumber": k + 1} | tags  # fmt: skip
        if change is not None:
            change(k, mine)
        dicom_file(folder / f"slice{(k * 7) % 100:02d}.dcm", plane, **mine)
    return folder


def write_dicom(folder: Path, stir: np.ndarray, skip: int | None = None, modality: str = "PT") -> Path:
    """A series with a name, an identifier and a rescale slope of its own in every slice."""
    from_feet = stir[::-1]
    slopes = [max(float(plane.max()), 1e-3) / 30000 for plane in from_feet]
    kept = [k for k in range(len(stir)) if k != skip]

    def change(k: int, tags: dict) -> None:
        tags["RescaleSlope"] = f"{slopes[kept[k]]:.10g}"

    stored = np.stack([np.round(from_feet[k] / slopes[k]) for k in kept]).astype(np.int16)
    positions = [(0, 0, k * VOXEL) for k in kept]
    return dicom_series(folder, stored, positions, change, PixelSpacing=[VOXEL, VOXEL], kind=modality)


def write_ecat(path: Path, frames: Sequence[np.ndarray], code: int = 3) -> Path:
    """Time frames ``[z, y, x]`` of 16 bits, big-endian, stored last first; voxels and offsets are in cm."""
    import nibabel

    ecat, blocks = nibabel.ecat, []
    header, matrices = np.zeros((), ecat.hdr_dtype), np.zeros((32, 4), ">i4")
    header["magic_number"], header["file_type"], header["patient_orientation"] = b"MATRIX72v", 7, code
    header["ecat_calibration_factor"], header["num_frames"], header["sw_version"] = 2.0, len(frames), 72
    matrices[0], start = (31 - len(frames), 2, 0, len(frames)), 3
    for row, (number, stored) in enumerate(reversed(list(enumerate(frames, start=1))), start=1):
        sub = np.zeros((), ecat.subhdr_dtype)
        sub["data_type"], sub["num_dimensions"], sub["scale_factor"] = 6, 3, 0.5
        for k, axis in enumerate("xyz"):
            sub[f"{axis}_dimension"], sub[f"{axis}_pixel_size"] = stored.shape[2 - k], (0.2, 0.3, 0.4)[k]
            sub[f"{axis}_offset"] = (1.0, -2.0, 3.0)[k]
        content = sub.astype(sub.dtype.newbyteorder(">")).tobytes().ljust(512, b"\0") + stored.tobytes()
        blocks.append(content.ljust(-len(content) // 512 * -512, b"\0"))
        matrices[row] = (0x1010000 + number, start, start + len(blocks[-1]) // 512 - 1, 1)
        start += len(blocks[-1]) // 512
    main = header.astype(header.dtype.newbyteorder(">")).tobytes().ljust(512, b"\0")
    path.write_bytes(main + matrices.tobytes() + b"".join(blocks))
    return path
