#!/usr/bin/env bash
# Events of petsird's generator share one list of detection bins. Run: bash findings/petsird-generator-events.sh
set -euo pipefail
folder="$(mktemp -d)" && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet petsird==0.12.0 numpy==2.4.6
"$folder/venv/bin/python" <<'PYTHON'
from importlib.metadata import version

from petsird.helpers import generator

header = generator.get_header()
one_by_one = [tuple(event.detection_bins) for event in generator.get_events(header, [0, 0], 50)]
kept = [tuple(event.detection_bins) for event in list(generator.get_events(header, [0, 0], 50))]
print(f"petsird {version('petsird')}")
print("expected: 50 events that are kept in a list (as a time block keeps them) have their own detection bins")
print(f"seen:     {len(set(one_by_one))} different pairs where each event is read at once, {len(set(kept))} where they are kept")
print("matters:  a file written from kept events holds one coincidence many times: a poor test of a reader")
assert len(set(one_by_one)) > 10
assert len(set(kept)) == 1, "the behaviour has changed"
PYTHON
