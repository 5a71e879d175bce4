#!/usr/bin/env bash
# petsird's get_detection_efficiency fails on a scanner without efficiencies, which the format allows. Run: bash findings/petsird-absent-efficiencies.sh
set -euo pipefail
folder="$(mktemp -d)" && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet petsird==0.12.0 numpy==2.4.6
"$folder/venv/bin/python" <<'PYTHON'
from importlib.metadata import version

import petsird
from petsird.helpers import generator, get_detection_efficiency

header = generator.get_header()
event = next(iter(generator.get_events(header, [0, 0], 1)))
scanner = header.scanner
print(f"petsird {version('petsird')}: efficiency with all components {get_detection_efficiency(scanner, [0, 0], event):.4f}")
scanner.detection_efficiencies = petsird.DetectionEfficiencies()
print("components left out:", vars(scanner.detection_efficiencies))
print("expected: 1, as every component that is left out counts as 1")
try:
    print("seen:    ", get_detection_efficiency(scanner, [0, 0], event))
except Exception as error:
    print(f"seen:     {type(error).__name__}: {error}")
    seen = error
else:
    seen = None
assert isinstance(seen, IndexError), "the behaviour has changed"
PYTHON
