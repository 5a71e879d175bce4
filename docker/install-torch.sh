#!/bin/bash
# install-torch.sh TAG: the tested version of PyTorch; with CUDA for those tags of SIRF's image that have it.
# The CPU build is a tenth of the size of PyPI's, which has CUDA in it.
set -euo pipefail

version=$(sed -n 's/^torch==//p' constraints.txt)
index=https://download.pytorch.org/whl/cpu
case "$1" in
    *gpu*) index=https://pypi.org/simple ;;
esac
python -m pip install --no-cache-dir "torch==$version" --index-url "$index"
