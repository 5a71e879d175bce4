#!/usr/bin/env bash
# pydicer's PET conversion leaves out how a patient lies, and swaps the sides of a pixel. Run: bash findings/pydicer-orientation.sh
set -euo pipefail
folder="$(mktemp -d)" && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
# pydicer asks for packages of segmentation and radiomics: what converts PET needs none of them.
"$folder/venv/bin/pip" install --quiet pydicom==2.4.4 simpleitk==2.5.7 numpy==2.4.6
"$folder/venv/bin/pip" install --quiet --no-deps pydicer==0.2.0
cd "$folder" && venv/bin/python -W ignore <<'PYTHON'
import os
import runpy
from glob import glob
from importlib.metadata import distribution, version

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.uid import ExplicitVRLittleEndian, PositronEmissionTomographyImageStorage, generate_uid

convert = runpy.run_path(distribution("pydicer").locate_file("pydicer/convert/pt.py"))["convert_dicom_to_nifti_pt"]


def series(folder, origin, orientation, spacing):
    """Five slices of cold voxels, and one that is hot: slice 2, row 1, column 4."""
    os.makedirs(folder)
    uids = generate_uid(), generate_uid(), generate_uid()
    for k in range(5):
        image = pydicom.Dataset()
        image.is_little_endian, image.is_implicit_VR = True, False
        image.file_meta = pydicom.dataset.FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID, image.SOPInstanceUID, image.Modality = PositronEmissionTomographyImageStorage, generate_uid(), "PT"
        image.SeriesInstanceUID, image.StudyInstanceUID, image.FrameOfReferenceUID = uids
        image.PatientID, image.PatientWeight, image.InstanceNumber = "phantom", "70", k + 1
        image.Units, image.SeriesType, image.NumberOfSlices, image.DecayCorrection = "BQML", ["STATIC", "IMAGE"], 5, "START"
        image.SeriesDate = image.AcquisitionDate = "20260101"
        image.SeriesTime = image.AcquisitionTime = "100000"
        tracer = pydicom.Dataset()
        tracer.RadionuclideHalfLife, tracer.RadionuclideTotalDose, tracer.RadiopharmaceuticalStartTime = "6586.2", "2e8", "090000"
        image.RadiopharmaceuticalInformationSequence = [tracer]
        image.ImagePositionPatient, image.ImageOrientationPatient = [*origin, 3 * k], orientation
        image.PixelSpacing, image.SliceThickness = spacing, 3
        image.Rows = image.Columns = 8
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
        image.RescaleSlope, image.RescaleIntercept = "1", "0"
        pixels = np.full((8, 8), 100, "<i2")
        pixels[1, 4] = 30000 if k == 2 else 100
        image.PixelData = pixels.tobytes()
        pydicom.dcmwrite(f"{folder}/{k}.dcm", image, write_like_original=False)


def hot(image):
    where = np.unravel_index(np.argmax(sitk.GetArrayFromImage(image)), image.GetSize()[::-1])
    return [round(x) for x in image.TransformIndexToPhysicalPoint([int(i) for i in where[::-1]])]


cases = {
    "supine": ((0, 0), [1, 0, 0, 0, 1, 0], [2, 2]),
    "prone": ((20, 20), [-1, 0, 0, 0, -1, 0], [2, 2]),
    "supine, rows 2 mm apart, columns 3 mm": ((0, 0), [1, 0, 0, 0, 1, 0], [2, 3]),
}
print(f"pydicer {version('pydicer')}: where the hot voxel is, mm in DICOM's patient coordinates")
found = []
for name, (origin, orientation, spacing) in cases.items():
    series(name, origin, orientation, spacing)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(name))
    convert(sorted(glob(f"{name}/*")), "PT.nii.gz")
    found.append((hot(reader.Execute()), hot(sitk.ReadImage("PT.nii.gz"))))
    print(f"{name}: expected {found[-1][0]}, as SimpleITK and the tags have it; seen {found[-1][1]}")
assert [expected for expected, _ in found] == [[8, 2, 6], [12, 18, 6], [12, 2, 6]]
assert [seen for _, seen in found] == [[8, 2, 6], [28, 22, 6], [8, 3, 6]], "the behaviour has changed"
PYTHON
