"""Print the distance of Interfile images to a reference: compare.py REFERENCE.hv IMAGE.hv ..."""

import sys

from sirf_diffusion.files.interfile import read_image
from sirf_diffusion.study.metrics import nrmse

reference, _ = read_image(sys.argv[1])
for path in sys.argv[2:]:
    image, _ = read_image(path)
    print(f"{path:<24} {float(nrmse(image, reference)):.3f}")
