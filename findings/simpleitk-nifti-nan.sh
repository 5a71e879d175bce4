#!/usr/bin/env bash
# SimpleITK reads NaN and infinite voxels of a valid NIfTI file as 0. Run: bash findings/simpleitk-nifti-nan.sh
set -euo pipefail
folder="$(mktemp -d)" && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet SimpleITK==2.5.7 nibabel==5.4.2 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys

import nibabel
import numpy
import SimpleITK

values = numpy.ones((2, 3, 4), numpy.float32)
values[0, 0, 0], values[1, 1, 1] = numpy.nan, numpy.inf
path = f"{sys.argv[1]}/background.nii"
nibabel.Nifti1Image(values, numpy.diag([2, 2, 2, 1])).to_filename(path)
by_nibabel = nibabel.load(path).get_fdata()
by_itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)).T
print(f"SimpleITK {SimpleITK.Version.VersionString()}, nibabel {nibabel.__version__}")
print("expected: NaN (a masked voxel) and infinity, as stored; nibabel gives", by_nibabel[0, 0, 0], by_nibabel[1, 1, 1])
print("seen:     SimpleITK gives", by_itk[0, 0, 0], by_itk[1, 1, 1], "without a warning")
print("matters:  a mean over a masked PET or MR image counts the mask as zero uptake")
assert numpy.isnan(by_nibabel[0, 0, 0]) and numpy.isinf(by_nibabel[1, 1, 1])
assert by_itk[0, 0, 0] == 0 and by_itk[1, 1, 1] == 0, "the behaviour has changed"
PYTHON
