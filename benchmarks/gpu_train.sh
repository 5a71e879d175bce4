#!/bin/sh
# Train a wider `brain` on a GPU for eight minutes in bfloat16, from one small file: benchmarks/gpu_train.sh DATA.h5 OUT [options]
# OUT gets wide.safetensors (at most 16 MB), and in OUT/work checkpoints and the validation (log.csv) as it goes; the same
# command goes on from the last checkpoint. Options: those of python -m benchmarks.gpu_train, such as --minutes 4.
set -eu
usage='usage: benchmarks/gpu_train.sh DATA.h5 OUT [options]'
data=${1:?$usage}
out=${2:?$usage}
shift 2
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m benchmarks.gpu_train train "$data" --out "$out" "$@"
