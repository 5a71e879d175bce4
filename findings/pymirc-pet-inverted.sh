#!/usr/bin/env bash
# pymirc writes PET as MONOCHROME1, and SimpleITK then reads hot for cold. Run: bash findings/pymirc-pet-inverted.sh
set -euo pipefail
folder="$(mktemp -d)" && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pymirc==0.30.2 simpleitk==2.5.7 pydicom==3.0.2 numpy==2.4.6
cd "$folder" && venv/bin/python -W ignore <<'PYTHON'
from importlib.metadata import version

import numpy as np
import pydicom
import SimpleITK as sitk
from pymirc.fileio import write_3d_static_dicom

# A hot cube of 3000 Bq/ml in a cold field, axes x, y, z in DICOM's patient coordinates.
activity = np.zeros((8, 8, 4), np.float32)
activity[2:6, 2:6] = 3000
files = write_3d_static_dicom(activity, "pet", affine=np.diag([2.0, 2.0, 3.0, 1.0]), Units="BQML", SeriesType=["STATIC", "IMAGE"])

reader = sitk.ImageSeriesReader()
reader.SetFileNames(reader.GetGDCMSeriesFileNames("pet"))
read = sitk.GetArrayFromImage(reader.Execute()).T
image = pydicom.dcmread(files[0])
stored = image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept)
print(f"pymirc {version('pymirc')}, SimpleITK {sitk.Version.VersionString()}: a cube of 3000 Bq/ml in a field of 0")
print("expected: MONOCHROME2, the only value that the PET image module allows (PS3.3, C.8.9.4); cube 3000, field 0")
print(f"seen:     {image.PhotometricInterpretation}, in the file cube {stored[3, 3]:.0f}, field {stored[0, 0]:.0f};")
print(f"          SimpleITK turns MONOCHROME1 over, without a warning: cube {read[3, 3, 1]:.0f}, field {read[0, 0, 1]:.0f}")
assert image.PhotometricInterpretation == "MONOCHROME1" and (round(stored[3, 3]), stored[0, 0]) == (3000, 0)
assert (round(read[3, 3, 1]), round(read[0, 0, 1])) == (0, 3000), "the behaviour has changed"
PYTHON
