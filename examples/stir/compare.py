"""Print the distance of Interfile images to a reference: compare.py REFERENCE.hv IMAGE.hv ..."""

import sys

from sirf_diffusion.files.interfile import read_image
from sirf_diffusion.study.metrics import nrmse

reference, grid = read_image(sys.argv[1])
for path in sys.argv[2:]:
    image, geometry = read_image(path)
    if not geometry.is_near(grid):
        sys.exit(f"{path} lies on {geometry}, the reference on {grid}: resample it")
    print(f"{path:<24} {float(nrmse(image, reference)):.3f}")
