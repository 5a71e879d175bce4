#!/usr/bin/env bash
# NiftyPAD's get_weight_ppet gives frames weights in which decay cancels, and knows carbon-11 as 12C. Run: bash findings/niftypad-weights.sh
set -euo pipefail
folder="$(mktemp -d)" && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet niftypad==2.0.0 numpy==2.4.6
cd "$folder" && venv/bin/python <<'PYTHON'
from importlib.metadata import version

import numpy as np
from niftypad.weight import get_weight_ppet

# Six frames of ten minutes, in seconds; activity, corrected for decay, is constant.
frames = np.array([np.arange(0, 3600, 600), np.arange(600, 4200, 600)])


def weights(isotope):
    try:
        found = get_weight_ppet(frames, np.full(6, 1000.0), isotope=isotope)
    except Exception as problem:
        return type(problem).__name__
    return (found / found[0]).round(2).tolist()


# Of A dt / f prompts, f the correction for decay of a frame, the corrected activity A has variance f A / dt: the weight is
# its inverse.
rate = np.log(2) / (20.39 * 60)
f = rate * 600 / (np.exp(-rate * frames[0]) - np.exp(-rate * frames[1]))
expected = (f[0] / f).round(2).tolist()
seen = {isotope: weights(isotope) for isotope in ("11C", "12C", "18F")}
print(f"niftypad {version('niftypad')}: weights of six frames of ten minutes of a carbon-11 scan, the first one 1")
print(f"expected: {expected}, for isotope='11C'")
print(f"seen:     {seen}")
assert expected[-1] < 0.2
assert seen == {"11C": "UnboundLocalError", "12C": [1.0] * 6, "18F": [1.0] * 6}, "the behaviour has changed"
PYTHON
