#!/usr/bin/env bash
# nibabel adds the offsets of an ECAT 7 frame, which are in cm, to millimetres. Run: bash findings/nibabel-ecat-offset.sh
set -euo pipefail
folder="$(mktemp -d)" && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet nibabel==5.4.2 numpy==2.4.6
"$folder/venv/bin/python" <<'PYTHON'
from importlib.resources import files

import nibabel
from nibabel.ecat import EcatImage

image = EcatImage.load(files("nibabel") / "tests" / "data" / "tinypet.v")  # the package's own example
headers = image.get_subheaders()
headers.subheaders[0] = header = headers.subheaders[0].copy()
before = image.get_frame_affine(0)[0, 3]
size_in_header, size_in_affine = float(header["x_pixel_size"]), abs(image.get_frame_affine(0)[0, 0])
header["x_offset"] = 3.0  # ECAT 7: offsets and pixel sizes are both in cm
moved = image.get_frame_affine(0)[0, 3] - before
print(f"nibabel {nibabel.__version__}: pixel size {size_in_header:.4f} cm in the file, {size_in_affine:.4f} mm in the affine")
print("expected: an x_offset of 3 cm moves the image by 30 mm, in the unit of the affine's pixel size")
print(f"seen:     it moves by {moved:g} mm")
assert abs(size_in_affine / size_in_header - 10) < 1e-3
assert moved == 3.0, "the behaviour has changed"
PYTHON
