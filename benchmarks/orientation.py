"""Draw the figure of the orientation section of docs/sirf.md: an asymmetric phantom, its axes and its sinogram.

::

    python benchmarks/orientation.py docs/images/orientation.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from sirf_diffusion.engines.embedded.projector import Projector
from sirf_diffusion.files.atomic import atomic_path
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.geometry.projdata import ProjDataGeometry

GEOMETRY = ImageGeometry((31, 81, 101), (4.0, 4.0, 4.0), (-60.0, 0.0, 0.0))
# Centres (z, y, x) in mm of the marks, and which plane shows them.
FRONT, LEFT, FEET = (0.0, -95.0, 20.0), (0.0, 25.0, 120.0), (40.0, 30.0, -60.0)


def phantom() -> torch.Tensor:
    """A body with a bar in front (low y), a ball at the patient's left (high x) and one towards high z."""
    z, y, x = (
        origin + (torch.arange(n) - centre) * spacing
        for n, centre, spacing, origin in zip(
            GEOMETRY.shape, (0, 40, 50), GEOMETRY.voxel_size, GEOMETRY.origin, strict=True
        )
    )
    z, y, x = z[:, None, None], y[None, :, None], x[None, None, :]
    body = ((x / 170) ** 2 + (y / 125) ** 2 + 0 * z < 1).float()
    bar = ((y - FRONT[1]).abs() < 9) & ((x - FRONT[2]).abs() < 50) & (z.abs() < 50)
    ball = (z - LEFT[0]) ** 2 + (y - LEFT[1]) ** 2 + (x - LEFT[2]) ** 2 < 24**2
    high = (z - FEET[0]) ** 2 + (y - FEET[1]) ** 2 + (x - FEET[2]) ** 2 < 20**2
    return body + 2 * bar + 3 * ball + 4 * high


def main() -> None:
    """Draw and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    path = parser.parse_args().file
    image = phantom()
    projdata = ProjDataGeometry.from_scanner("Siemens mMR", span=1, max_ring_difference=0, num_views=126)
    one_ring = Projector(ImageGeometry((127, 81, 101), (2.03125, 4.0, 4.0)), projdata)
    volume = image[15][None].expand(127, -1, -1).contiguous()
    sinogram = one_ring.forward(volume)[projdata.shape[0] // 2]

    figure, grid = plt.subplots(2, 2, figsize=(10, 7), width_ratios=(1.25, 1), height_ratios=(2, 1))
    axes = (grid[0, 0], grid[1, 0], grid[1, 1], grid[0, 1])
    extents = [(n * s / 2, -n * s / 2) for n, s in zip(GEOMETRY.shape, GEOMETRY.voxel_size, strict=True)]
    (z1, z0), (y1, y0), (x1, x0) = extents
    for axis, array, extent, labels, title in (
        (axes[0], image[15], (x0, x1, y1, y0), ("x (mm)", "y (mm)"), "transverse, image[15]"),
        (axes[1], image[:, 47], (x0, x1, z1, z0), ("x (mm)", "z (mm)"), "coronal, image[:, 47]"),
        (axes[2], image[:, :, 50], (y0, y1, z1, z0), ("y (mm)", "z (mm)"), "sagittal, image[:, :, 50]"),
    ):
        axis.imshow(array, cmap="gray_r", extent=extent, vmin=0, vmax=5, interpolation="nearest")
        axis.set(xlabel=labels[0], ylabel=labels[1], title=title)
        axis.plot(extent[0] + 6, extent[3] + 6, "s", color="tab:red")
        axis.annotate("index 0", (extent[0] + 16, extent[3] + 13), color="tab:red")
    for text, position in (
        ("front", (-15, -130)), ("back", (-15, 143)), ("right", (-198, 5)), ("left", (174, 5)),
    ):  # fmt: skip
        axes[0].annotate(text, position, color="tab:blue")
    for text, position in (("head", (-15, -48)), ("feet", (-15, 56)), ("right", (-198, 4)), ("left", (172, 4))):
        axes[1].annotate(text, position, color="tab:blue")
    for text, position in (("head", (-15, -48)), ("feet", (-15, 56)), ("front", (-159, 4)), ("back", (130, 4))):
        axes[2].annotate(text, position, color="tab:blue")

    positions = projdata.tangential_positions()
    # The bins are not equally wide: mMR data are not arc-corrected.
    axes[3].pcolormesh(positions, torch.arange(126), sinogram, cmap="gray_r", rasterized=True)
    axes[3].invert_yaxis()
    axes[3].set(xlabel="s (mm)", ylabel="view", title="sinogram of image[15]", xlim=(-200, 200))
    axes[3].annotate("view 0:\ns = x", (-195, 10), color="tab:blue")
    axes[3].annotate("view 63:\ns = y", (-195, 68), color="tab:blue")
    figure.tight_layout()
    with atomic_path(path) as unfinished:
        figure.savefig(unfinished, dpi=90, format="png")


if __name__ == "__main__":
    main()
