#!/usr/bin/env bash
# petpal's weighted_series_sum leaves out the last frame of a window that ends with the scan. Run: bash findings/petpal-last-frame.sh
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
from petpal.utils.useful_functions import weighted_series_sum

# F-18 (half-life 6588 s), corrected for decay: four frames of 600 s with 1000, 2000, 3000 and 4000 Bq/ml.
starts, half_life = [0, 600, 1200, 1800], 6588.0
factors = [2 ** ((start + 300) / half_life) for start in starts]
image = np.broadcast_to(np.float32([1000, 2000, 3000, 4000]), (4, 4, 4, 4))
nibabel.save(nibabel.Nifti1Image(image, np.diag([2.0, 2.0, 2.0, 1.0])), "dynamic.nii.gz")
with open("dynamic.json", "w") as file:
    json.dump({"FrameTimesStart": starts, "FrameDuration": [600] * 4, "DecayCorrectionFactor": factors}, file)


def mean(**window):
    return round(float(weighted_series_sum("dynamic.nii.gz", None, half_life, **window).mean()))


whole, all_but_one = mean(), mean(start_time=0, end_time=1800)
to_the_end, second_half = mean(start_time=0, end_time=2400), mean(start_time=1200, end_time=2400)
print(f"petpal {version('petpal')}, weighted_series_sum: four frames of 600 s, 1000 to 4000 Bq/ml, windows in seconds from the scan's start")
print(f"expected: 0 to 2400 is the whole scan, {whole} Bq/ml, as without a window; 1200 to 2400 lies between its frames' 3000 and 4000")
print(f"seen:     0 to 2400 gives {to_the_end}, as 0 to 1800 does ({all_but_one}); 1200 to 2400 gives {second_half}, that is the third frame alone")
print("matters:  a window that ends with the scan is the usual one for a static image or SUV: its last frame is lost, 14 % here")
assert whole == 2421
assert to_the_end == all_but_one == 1958, "the behaviour has changed"
assert second_half == 3000, "the behaviour has changed"
PYTHON
