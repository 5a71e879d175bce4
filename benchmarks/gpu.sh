#!/bin/sh
# What a GPU does for the reconstructions, in less than eight minutes: one table (gpu.md) and its numbers (gpu.json).
#   benchmarks/gpu.sh OUT [options of python -m benchmarks.gpu, such as --minutes 5]
# Run in the repository, where the package's dependencies and pytest are installed; nothing is downloaded.
set -eu
out=${1:?usage: benchmarks/gpu.sh OUT [options]}
shift
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m benchmarks.gpu --out "$out" "$@"
