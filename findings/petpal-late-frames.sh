#!/usr/bin/env bash
# petpal's decay_correct corrects a scan that starts long after injection as if it had started with it. Run: bash findings/petpal-late-frames.sh
set -euo pipefail
folder="$(mktemp -d)" && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
# petpal asks for Python 3.12, and for packages that make its documentation: what runs here needs neither.
"$folder/venv/bin/pip" install --quiet antspyx==0.6.3 bids-validator==1.14.7.post0 docker==7.2.0 fslpy==3.29.1 lmfit==1.3.4 matplotlib==3.11.2 networkx==3.6.1 nibabel==5.4.2 numba==0.68.1 numpy==2.3.5 pandas==3.1.1 scikit-learn==1.9.1 scipy==1.15.3 seaborn==0.13.2 simpleitk==2.5.7 
"$folder/venv/bin/pip" install --quiet --no-deps --ignore-requires-python petpal==0.7.1
cd "$folder" && venv/bin/python -W ignore <<'PYTHON'
import json
from importlib.metadata import version

import nibabel
import numpy as np
from petpal.preproc.decay_correction import decay_correct

# C-11 (half-life 1224 s), 1000 Bq/ml at injection, not corrected for decay: two frames of 600 s that start with the injection,
# and two that start two half-lives after it. Times are those of BIDS: seconds after TimeZero, which is the injection here.
seen = {}
for first in (0, 2448):
    starts = [first, first + 600]
    values = [1000 * 0.5 ** ((start + 300) / 1224) for start in starts]
    image = np.broadcast_to(np.float32(values), (4, 4, 4, 2))
    nibabel.save(nibabel.Nifti1Image(image, np.diag([2.0, 2.0, 2.0, 1.0])), "measured.nii.gz")
    times = {"TimeZero": "10:00:00", "ScanStart": 0, "InjectionStart": 0, "FrameTimesStart": starts, "FrameDuration": [600, 600]}
    with open("measured.json", "w") as file:
        json.dump({**times, "TracerRadionuclide": "C11", "ImageDecayCorrected": False, "DecayCorrectionFactor": [1, 1]}, file)
    corrected = decay_correct("measured.nii.gz", "corrected.nii.gz").numpy()[0, 0, 0].round().tolist()
    with open("corrected.json") as file:
        written = json.load(file)
    seen[first] = corrected, written["ImageDecayCorrectionTime"], written["FrameReferenceTime"]
print(f"petpal {version('petpal')}, decay_correct: C-11, 1000 Bq/ml at injection, two frames at once and two after two half-lives")
print("expected: 1000 Bq/ml in all frames, corrected to time 0; reference times 300, 900, 2748 and 3348 s")
print(f"seen:     {seen[0][0]} at {seen[0][2]} s, and {seen[2448][0]} at {seen[2448][2]} s, both said to be corrected to time {seen[2448][1]}")
print("matters:  times are counted from the first frame, so that images of different uptake times are not on one scale: a factor 4 here")
assert seen[0] == ([1000, 1000], 0, [300, 900])
assert seen[2448] == ([250, 250], 0, [300, 900]), "the behaviour has changed"
PYTHON
