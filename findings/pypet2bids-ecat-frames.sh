#!/usr/bin/env bash
# ecat2nii of pypet2bids loses weak frames, and times are 60-fold. Run: bash findings/pypet2bids-ecat-frames.sh
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
from pypet2bids.ecat2nii import ecat2nii

# A decaying O-15 source (half-life 122 s), not corrected for decay: frames of 60 s at 0, 13 and 16 half-lives.
starts, values, raw, scales = [0, 1586, 1952], [800000, 100, 12], [25000, 25600, 24576], [32, 2**-8, 2**-11]
main, directory = bytearray(512), np.zeros((32, 4), ">i4")
struct.pack_into(">14s", main, 0, b"MATRIX72v")
struct.pack_into(">2h", main, 46, 72, 962)  # software version, scanner model
struct.pack_into(">h", main, 50, 7)  # a volume of 16-bit numbers
struct.pack_into(">l", main, 62, 1000000000)  # start of the scan
struct.pack_into(">fh", main, 144, 1, 1)  # to Bq/ml, and the flag that this factor is valid
struct.pack_into(">4h", main, 352, 4, len(values), 1, 0)  # planes, frames, gates, further beds
struct.pack_into(">32s", main, 466, b"Bq/cc")
directory[0] = 31 - len(values), 2, 0, len(values)
blocks = []
for k, (start, number, scale) in enumerate(zip(starts, raw, scales)):
    frame = bytearray(512)
    struct.pack_into(">5h", frame, 0, 6, 3, 4, 4, 4)  # 16-bit numbers, three axes, their lengths
    struct.pack_into(">f2h3f2l", frame, 26, scale, 0, number, 0.2, 0.2, 0.2, 60000, 1000 * start)  # cm and ms
    struct.pack_into(">f", frame, 80, 1)  # factor for decay
    directory[k + 1] = 0x1010001 + k, 3 + 2 * k, 4 + 2 * k, 1
    blocks += [frame, np.full(64, number, ">i2").tobytes()]
with open("decay.v", "wb") as file:
    for block in (main, directory.tobytes(), *blocks):
        file.write(block.ljust(512, b"\0"))

logging.disable(logging.INFO)
ecat2nii(ecat_file="decay.v", nifti_file="decay.nii", sif_out=True)
image = nibabel.load("decay.nii")
seen = [round(value, 2) for value in image.get_fdata()[0, 0, 0].tolist()]
with open("decay.sif") as file:
    times = [tuple(int(word) for word in line.split()[:2]) for line in file.readlines()[1:]]
nibabel_gives = nibabel.ecat.load("decay.v").get_fdata()[0, 0, 0].tolist()
right = [(start, start + 60) for start in starts]
print(f"pypet2bids {version('pypet2bids')}: frames of {values} Bq/ml, each with a scale factor of its own, at {right} s")
print(f"expected: {values}, as nibabel reads them: {nibabel_gives}; {right} s")
print(f"seen:     {seen}, in {image.get_data_dtype()}: whole multiples of the highest value / 32767")
print(f"          {times} in the .sif file, which is in seconds")
assert nibabel_gives == values
assert image.get_data_dtype() == np.float32
assert np.allclose(seen, [800000, 97.66, 0], rtol=0, atol=0.01), "the behaviour has changed"
assert times == [(60 * start, 60 * end) for start, end in right], "the behaviour has changed"
PYTHON
