"""One small patient, written in every format and orientation: what goes into tests of importing images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from sirf_diffusion.files.interfile import write_image
from sirf_diffusion.geometry.images import ImageGeometry

#: Voxels (z, y, x) in STIR's axes, head first and supine, 4 mm each.
SHAPE, VOXEL = (24, 22, 20), 4.0
NAME = "DOE^JANE"
PATIENT_ID = "HOSP1234567"


def activity(seed: int = 0) -> np.ndarray:
    """A body with one organ on the left, in front and near the feet: no symmetry. STIR's axes (z to the feet)."""
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    body = 1.0 * (z**2 + y**2 + x**2 < 0.7)
    organ = 4.0 * ((z - 0.4) ** 2 + (y + 0.2) ** 2 + (x - 0.3) ** 2 < 0.06)
    texture = 1 + 0.2 * np.random.default_rng(seed).random(SHAPE)
    return ((body + organ) * texture).astype(np.float32)


def write_nifti(path: Path, stir: np.ndarray, axes: str = "RAS", voxel: float = VOXEL, coded: bool = True) -> Path:
    """The image with its array axes pointing to the given sides; the middle of the image at 0 in any case."""
    import nibabel

    order = {"R": (2, -1), "L": (2, 1), "A": (1, -1), "P": (1, 1), "S": (0, -1), "I": (0, 1)}
    row = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    array = stir.transpose([order[a][0] for a in axes])
    array = array[tuple(slice(None, None, order[a][1]) for a in axes)]
    affine = np.zeros((4, 4))
    for axis, letter in enumerate(axes):
        world, sign = row[letter]
        affine[world, axis] = sign * voxel
        affine[world, 3] = -sign * voxel * (array.shape[axis] - 1) / 2
    affine[3, 3] = 1
    image = nibabel.Nifti1Image(np.ascontiguousarray(array), affine)
    if not coded:
        image.set_sform(None, 0)
        image.set_qform(None, 0)
    nibabel.save(image, path)
    return path


def write_nifti_at(path: Path, image: torch.Tensor, geometry: ImageGeometry, axes: str = "RAS") -> Path:
    """An image of STIR's (head first, supine) where it is in the patient, array axes pointing to the given sides."""
    import nibabel

    # RAS coordinates of STIR's z, y, x: to the feet, to the back, to the left
    sides = {"I": 0, "S": 0, "P": 1, "A": 1, "L": 2, "R": 2}
    first = [
        geometry.origin[0],
        *(geometry.origin[k] - geometry.shape[k] // 2 * geometry.voxel_size[k] for k in (1, 2)),
    ]
    array, affine = image.numpy(), np.eye(4)
    affine[:3, :3] = 0
    array = array.transpose([sides[a] for a in axes])
    for axis, letter in enumerate(axes):
        k = sides[letter]
        ends = (first[k], first[k] + (geometry.shape[k] - 1) * geometry.voxel_size[k])
        flipped = letter in "SAR"
        array = np.flip(array, axis) if flipped else array
        # every one of z, y, x runs against its RAS axis
        affine[2 - k, axis] = (1 if flipped else -1) * geometry.voxel_size[k]
        affine[2 - k, 3] = -ends[1] if flipped else -ends[0]
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(array), affine), path)
    return path


def write_interfile(path: Path, stir: np.ndarray, position: tuple[str, str] | None = None) -> Path:
    """The image as STIR has it for this patient position (None: not told, which means head first, supine)."""
    flips = {("head_in", "supine"): (1, 1, 1), ("head_in", "prone"): (1, -1, -1), ("feet_in", "supine"): (-1, 1, -1),
             ("feet_in", "prone"): (-1, -1, 1)}[position or ("head_in", "supine")]  # fmt: skip
    array = np.ascontiguousarray(stir[tuple(slice(None, None, f) for f in flips)])
    write_image(path, torch.from_numpy(array), ImageGeometry(SHAPE, (VOXEL,) * 3))
    if position is not None:
        lines = f"patient orientation := {position[0]}\npatient rotation := {position[1]}\n"
        path.write_text(path.read_text().replace("!GENERAL IMAGE DATA :=\n", f"!GENERAL IMAGE DATA :=\n{lines}"))
    return path


def write_dicom(folder: Path, stir: np.ndarray, skip: int | None = None, modality: str = "PT") -> Path:
    """A series with a name, an identifier and a rescale slope of its own in every slice."""
    import SimpleITK as sitk

    folder.mkdir(parents=True)
    from_feet = stir[::-1]
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k, plane in enumerate(from_feet):
        if k == skip:
            continue
        slope = max(float(plane.max()), 1e-3) / 30000
        image = sitk.GetImageFromArray(plane.astype(np.float64)[None])
        image.SetSpacing((VOXEL, VOXEL, VOXEL))
        tags = {
            "0008|0060": modality, "0010|0010": NAME, "0010|0020": PATIENT_ID, "0010|0030": "19500101",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.128", "0020|000d": "1.2.3.4", "0020|000e": "1.2.3.4.5",
            "0008|0018": f"1.2.3.4.5.{k + 1}", "0020|0013": str(k + 1), "0028|1053": f"{slope:.10g}", "0028|1052": "0",
            "0028|0100": "16", "0028|0101": "16", "0028|0102": "15", "0028|0103": "1",
            "0020|0032": f"{0.0}\\{0.0}\\{k * VOXEL}", "0020|0037": "1\\0\\0\\0\\1\\0", "0018|0050": f"{VOXEL}",
        }  # fmt: skip
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"slice{(k * 7) % 100:02d}.dcm"))
        writer.Execute(image)
    return folder
