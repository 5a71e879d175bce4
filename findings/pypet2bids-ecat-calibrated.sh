#!/usr/bin/env bash
# read_ecat(calibrated=True) of pypet2bids gives 16-bit whole numbers. Run: bash findings/pypet2bids-ecat-calibrated.sh
set -euo pipefail
folder="$(mktemp -d)" && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pypet2bids==1.6.0 nibabel==5.4.2 numpy==2.4.6
cd "$folder" && venv/bin/python <<'PYTHON'
import logging
import struct
from importlib.metadata import version

import nibabel
import numpy as np
from pypet2bids.read_ecat import read_ecat


def write(path, raw, scale, calibration):
    """An ECAT 7.2 volume of 4 x 4 x 4 voxels and one frame: 16-bit numbers, as scanners of this format write."""
    main, frame, directory = bytearray(512), bytearray(512), np.zeros((32, 4), ">i4")
    struct.pack_into(">14s", main, 0, b"MATRIX72v")
    struct.pack_into(">2h", main, 46, 72, 962)  # software version, scanner model
    struct.pack_into(">h", main, 50, 7)  # a volume of 16-bit numbers
    struct.pack_into(">fh", main, 144, calibration, 1)  # to Bq/ml, and the flag that this factor is valid
    struct.pack_into(">4h", main, 352, 4, 1, 1, 0)  # planes, frames, gates, further beds
    struct.pack_into(">32s", main, 466, b"Bq/cc")
    directory[0], directory[1] = (30, 2, 0, 1), (0x1010001, 3, 4, 1)
    struct.pack_into(">5h", frame, 0, 6, 3, 4, 4, 4)  # 16-bit numbers, three axes, their lengths
    struct.pack_into(">f2h3f2l", frame, 26, scale, 0, max(raw), 0.2, 0.2, 0.2, 60000, 0)
    values = np.tile(raw, 64 // len(raw)).astype(">i2").tobytes()
    with open(path, "wb") as file:
        for block in (main, directory.tobytes(), frame, values):
            file.write(block.ljust(512, b"\0"))


logging.disable(logging.INFO)
raw, scale, calibration = [0, 3, 9, 32000], 2.0**-12, 1024.0
write("phantom.v", raw, scale, calibration)
expected = [number * scale * calibration for number in raw]
nibabel_gives = nibabel.ecat.load("phantom.v").get_fdata()[:, 0, 0, 0]
values = read_ecat("phantom.v", calibrated=True)[2]
print(f"pypet2bids {version('pypet2bids')}: voxels of {expected} Bq/ml, stored as {raw} times {scale} times {calibration}")
print(f"expected: {expected}: calibrated=True scales the data by both factors, as nibabel does: {sorted(nibabel_gives.tolist())}")
print(f"seen:     {values[:, 0, 0, 0].tolist()}, {values.dtype}: the fractions are cut off, and no warning is given")
assert sorted(nibabel_gives.tolist()) == expected
assert values.dtype == ">i2" and values[:, 0, 0, 0].tolist() == [0, 0, 2, 8000], "the behaviour has changed"

write("hot.v", [0, 1, 10000, 20000], 2.0**-9, calibration)
hot = read_ecat("hot.v", calibrated=True)[2][:, 0, 0, 0].tolist()
print(f"          and of 40000 Bq/ml, which no 16-bit number holds, becomes {hot[3]}")
assert hot[:3] == [0, 2, 20000] and hot[3] != 40000, "the behaviour has changed"
PYTHON
