"""Make ``stir_osem.npz``: images of STIR's OSMAPOSL for several numbers of views and subsets.

PYTHONPATH=.:tests python tests/reference/make_osem.py
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from osem_cases import CASES, acquisition_of

from sirf_diffusion.files.interfile import read_image, write_image, write_projection_data

PAR = """OSMAPOSLParameters :=
objective function type := PoissonLogLikelihoodWithLinearModelForMeanAndProjData
PoissonLogLikelihoodWithLinearModelForMeanAndProjData Parameters :=
input file := prompts.hs
additive sinogram := additive.hs
projector pair type := Matrix
  Projector Pair Using Matrix Parameters :=
  Matrix type := Ray Tracing
  Ray tracing matrix parameters :=
  number of rays in tangential direction to trace for each bin := 10
  End Ray tracing matrix parameters :=
  End Projector Pair Using Matrix Parameters :=
recompute sensitivity := 1
end PoissonLogLikelihoodWithLinearModelForMeanAndProjData Parameters :=
initial estimate := ones.hv
output filename prefix := image
number of subsets := {subsets}
number of subiterations := {subsets}
save estimates at subiteration intervals := {subsets}
END :=
"""


def main() -> None:
    """Run OSMAPOSL for one epoch of each case, and keep the images."""
    images = {}
    for name, case in CASES.items():
        prompts, additive, layout, grid = acquisition_of(case)
        with tempfile.TemporaryDirectory() as folder:
            write_projection_data(Path(folder) / "prompts", prompts, layout)
            write_projection_data(Path(folder) / "additive", additive, layout)
            write_image(Path(folder) / "ones", torch.ones(grid.shape), grid)
            (Path(folder) / "osem.par").write_text(PAR.format(subsets=case["num_subsets"]))
            subprocess.run(
                ["OSMAPOSL", "osem.par"],
                cwd=folder,
                check=True,
                capture_output=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            images[name] = read_image(Path(folder) / f"image_{case['num_subsets']}.hv")[0].numpy()
    np.savez_compressed(Path(__file__).with_name("stir_osem.npz"), **images)


if __name__ == "__main__":
    main()
