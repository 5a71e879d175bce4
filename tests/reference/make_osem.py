"""Make ``stir_osem.npz``: images of STIR's OSMAPOSL for several numbers of views and subsets.

PYTHONPATH=.:tests python tests/reference/make_osem.py
"""

import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from osem_cases import CASES, acquisition_of
from par_files import par_text

from sirf_diffusion.files.interfile import read_image, write_image, write_projection_data

LINES = "additive sinogram := additive.hs\nrecompute sensitivity := 1"


def main() -> None:
    """Run OSMAPOSL for one epoch of each case, and keep the images."""
    images = {}
    for name, case in CASES.items():
        prompts, additive, layout, grid = acquisition_of(case)
        with tempfile.TemporaryDirectory() as folder:
            write_projection_data(Path(folder) / "prompts", prompts, layout)
            write_projection_data(Path(folder) / "additive", additive, layout)
            write_image(Path(folder) / "ones", torch.ones(grid.shape), grid)
            number = case["num_subsets"]
            text = par_text("prompts.hs", "image", LINES, "initial estimate := ones.hv", subsets=number,
                            subiterations=number)  # fmt: skip
            (Path(folder) / "osem.par").write_text(text)
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
