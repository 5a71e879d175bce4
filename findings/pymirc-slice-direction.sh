#!/usr/bin/env bash
# pymirc's write_3d_static_dicom mirrors a volume whose slices go down. Run: bash findings/pymirc-slice-direction.sh
set -euo pipefail
folder="$(mktemp -d)" && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pymirc==0.30.2 pydicom==3.0.2 numpy==2.4.6
cd "$folder" && venv/bin/python -W ignore <<'PYTHON'
from importlib.metadata import version

import numpy as np
import pydicom
from pymirc.fileio import write_3d_static_dicom

# One hot slice, the first of four. The affine, from voxels to DICOM's patient coordinates, has it at z = 100 mm, and each
# next one 3 mm lower, as an array has them whose third axis runs from head to feet.
activity = np.zeros((8, 8, 4), np.float32)
activity[..., 0], activity[..., 3] = 3000, 500
affine = np.array([[2.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, -3, 100], [0, 0, 0, 1]])
written = [pydicom.dcmread(name) for name in write_3d_static_dicom(activity, "pet", affine=affine)]

seen = {float(x.ImagePositionPatient[2]): round(x.pixel_array.max() * float(x.RescaleSlope)) for x in written}
expected = {100.0 - 3 * k: round(float(activity[0, 0, k])) for k in range(4)}
print(f"pymirc {version('pymirc')}: slices of {[round(float(v)) for v in activity[0, 0]]} Bq/ml from z = 100 mm down to 91 mm")
print(f"expected: {expected}")
print(f"seen:     {seen}: it takes the sign of the slice axis from the other two, and says nothing")
assert seen == {100.0 + 3 * k: expected[100.0 - 3 * k] for k in range(4)}, "the behaviour has changed"
PYTHON
