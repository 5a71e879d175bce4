"""Images crossed with other programs: an asymmetric phantom written here and read there, written there and read here.

    python tests/reference/crossed_formats.py

Looks for dcm2niix, dcm2niix4pet, medcon and plastimatch on the PATH (``pip install dcm2niix pypet2bids``; Debian has
packages of the other two).
plastimatch 1.9.4 writes the slope of a DICOM series with six decimals: if that rounds down, the hottest voxels wrap
round to negative values (with a maximum of 3.707, whatever the patient position). That of the phantom here does not.

Prints each pair with its largest error over all voxels, relative to the maximum: every voxel is compared with the
phantom where the reader says that it lies. More than 1e-4, or a mirrored image, ends with exit code 1.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import SimpleITK as sitk
import torch

from sirf_diffusion.geometry.exam import POSITIONS, ExamInfo
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.patient import read_source, stir_grid, write_dicom, write_nifti

GEOMETRY = ImageGeometry((17, 22, 25), (5.0, 4.25, 4.5), (-41.0, 3.0, -2.0))
#: Centres (LPS mm), widths (mm) and heights of blobs without any symmetry.
BLOBS = (((10, 5, -5), 24, 1.0), ((-20, 12, 20), 15, 2.0), ((15, -18, -25), 13, 3.0), ((-8, -22, 5), 16, 1.5))
LIMIT = 1e-4
LPS_OF_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
Image = tuple[np.ndarray, np.ndarray]


def phantom(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Values at the voxels of a grid, LPS mm."""
    points = np.einsum("ab,b...->a...", affine[:3], np.stack([*np.indices(shape), np.ones(shape)]))
    return sum(h * np.exp(-sum((p - m) ** 2 for p, m in zip(points, c, strict=True)) / (2 * w**2)) for c, w, h in BLOBS)


def by_us(path: Path) -> Image:
    image = read_source(path)
    return image.values, image.affine


def by_itk(path: Path) -> Image:
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)) if path.is_dir() else str(path)
    image = sitk.ReadImage(names, sitk.sitkFloat64)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), affine


def by_nibabel(path: Path) -> Image:
    image = nibabel.load(path)
    return image.get_fdata(), LPS_OF_RAS @ image.affine


def by_pydicom(folder: Path) -> Image:
    files = sorted((pydicom.dcmread(f) for f in folder.iterdir()), key=lambda d: float(d.ImagePositionPatient[2]))
    values = [d.pixel_array.T * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in files]
    axes, affine = np.reshape(files[0].ImageOrientationPatient, (2, 3)).astype(float), np.eye(4)
    first, last = (np.asarray(d.ImagePositionPatient, float) for d in (files[0], files[-1]))
    spacing = [float(v) for v in files[0].PixelSpacing]
    affine[:3] = np.stack([axes[0] * spacing[1], axes[1] * spacing[0], (last - first) / (len(files) - 1), first], 1)
    return np.stack(values, -1), affine


def converted(*command: object, pattern: str, folder: Path) -> Path:
    """The file that a program writes into a folder; the folder itself for an empty pattern."""
    folder.mkdir(parents=True)
    done = subprocess.run([str(c) for c in command], cwd=folder, capture_output=True, text=True, check=False)
    found = [folder] if not pattern else sorted(folder.glob(pattern))
    if not found:
        raise RuntimeError(f"nothing was written: {(done.stdout + done.stderr)[-300:]}")
    return found[0]


def centred(image: Image, position: tuple[str, str]) -> Image:
    """An image in the middle of the phantom's grid: the format has lost its place."""
    values, affine = image
    grid = stir_grid(GEOMETRY, position)
    middle = grid.affine @ [*((np.asarray(grid.shape) - 1) / 2), 1]
    affine[:3, 3] = middle[:3] - affine[:3, :3] @ ((np.asarray(values.shape) - 1) / 2)
    return values, affine


def pairs(
    folder: Path, nifti: Path, dicom: Path, position: tuple[str, str]
) -> Iterator[tuple[str, Callable[[], Image]]]:
    """Who wrote and who read, and how to get that image."""
    for name, reader in (("SimpleITK", by_itk), ("nibabel", by_nibabel), ("this program", by_us)):
        yield f"NIfTI: this program -> {name}", partial(reader, nifti)
    for name, reader in (("SimpleITK", by_itk), ("pydicom", by_pydicom), ("this program", by_us)):
        yield f"DICOM: this program -> {name}", partial(reader, dicom)

    def by_way_of(*command: object, pattern: str = "*.nii") -> Callable[[], Image]:
        return lambda: by_us(converted(*command, pattern=pattern, folder=Path(tempfile.mkdtemp(dir=folder)) / "out"))

    if shutil.which("dcm2niix"):
        yield "DICOM: this program -> dcm2niix (NIfTI) -> this program", by_way_of("dcm2niix", "-o", ".", dicom)
    if shutil.which("dcm2niix4pet"):
        get = by_way_of("dcm2niix4pet", dicom, "-d", "sub-01_pet.nii.gz", pattern="*.nii.gz")
        yield "DICOM: this program -> pypet2bids (NIfTI) -> this program", get
    if shutil.which("plastimatch"):
        for kind, given in (("DICOM", dicom), ("NIfTI", nifti)):
            for form, output, name in (("NIfTI", "--output-img", "x.nii"), ("DICOM", "--output-dicom", "x")):
                get = by_way_of("plastimatch", "convert", "--input", given, output, name, pattern=name)
                yield f"{kind}: this program -> plastimatch ({form}) -> this program", get
    if shutil.which("medcon"):
        # ECAT 7 of (X)MedCon says feet first, prone; Interfile nothing, which is head first, supine
        for kind, pattern, lies in (
            ("intf", "*.h33", ("head_in", "supine")),
            ("ecat7", "*.v", ("feet_in", "prone")),
            ("nifti", "*.nii", position),
            ("dicom", "*.dcm", position),
        ):
            get = by_way_of("medcon", "-w", "-n", "-qs", "-f", nifti, "-c", kind, "-o", "x", pattern=pattern)
            if position == lies:
                yield f"(X)MedCon ({kind}) -> this program", lambda get=get: centred(get(), position)


def main() -> int:
    worst = 0.0
    for position in POSITIONS:
        exam = ExamInfo(*position, start_time=datetime(2026, 1, 2, 3, 4, 5))
        values = phantom(GEOMETRY.shape, stir_grid(GEOMETRY, position).affine)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            image = torch.from_numpy(values).float()
            write_nifti(folder / "x.nii", image, GEOMETRY, exam)
            write_dicom(folder / "dicom", image, GEOMETRY, exam)
            for pair, get in pairs(folder, folder / "x.nii", folder / "dicom", position):
                try:
                    found, affine = get()
                    error = float(np.abs(found - phantom(found.shape, affine)).max() / values.max())
                    worst = max(worst, error)
                    said = f"{error:.1e}"
                except (ValueError, RuntimeError) as problem:
                    said = f"refused: {problem}"
                print(f"{' '.join(position):16} {pair}: {said}")
    print(f"largest error {worst:.1e}, allowed {LIMIT:g}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
