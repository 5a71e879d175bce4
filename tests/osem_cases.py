"""Twelve combinations of views and subsets, with counts of an ellipse and a hot disc that need no file."""

import math

import torch

from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.geometry.projdata import ProjDataGeometry
from sirf_diffusion.geometry.scanners import Scanner

_ROWS = [  # detectors, views, subsets, voxel size (y, x), view offset
    (504, 252, 21, (6.0, 6.0), 0.0),
    (504, 252, 63, (6.0, 6.0), 0.0),
    (504, 252, 9, (6.0, 6.0), 0.0),
    (504, 252, 14, (6.0, 5.0), 0.0),
    (504, 126, 14, (6.0, 6.0), 0.0),
    (504, 252, 18, (6.0, 6.0), 0.03),
    (128, 64, 8, (6.0, 6.0), 0.0),
    (128, 64, 16, (6.0, 6.0), 0.0),
    (128, 64, 16, (6.0, 5.0), 0.0),
    (180, 90, 15, (6.0, 6.0), 0.0),
    (180, 90, 9, (6.0, 6.0), 0.0),
    (210, 105, 7, (6.0, 6.0), 0.0),
]
_KEYS = ("num_detectors", "num_views", "num_subsets", "voxel_size", "view_offset")
CASES = {"_".join(map(str, row[:3] + row[3] + row[4:])): dict(zip(_KEYS, row, strict=True)) for row in _ROWS}


def acquisition_of(case: dict) -> tuple[torch.Tensor, torch.Tensor, ProjDataGeometry, ImageGeometry]:
    """Prompts, additive term, layout and grid of a case."""
    bins = int(0.4 * case["num_detectors"]) | 1
    scanner = Scanner("ring", 1, case["num_detectors"], 160.0, 4.0, 4.0, 6.0, case["view_offset"], bins, bins)
    layout = ProjDataGeometry.from_scanner(scanner, 1, 0, case["num_views"], bins)
    phi, s = layout.view_angles()[:, None], layout.tangential_positions()[None]
    counts = torch.full((1, *layout.shape[1:]), 2.0, dtype=torch.float64)
    for x, y, a, b, height in ((4, -2, 62, 48, 1.0), (20, 14, 9, 9, 3.0)):
        width = (a * torch.cos(phi)) ** 2 + (b * torch.sin(phi)) ** 2
        offset = s - x * torch.cos(phi) - y * torch.sin(phi)
        counts[0] += height * 2 * a * b / width * (width - offset**2).clamp_min(0).sqrt()
    prompts = counts + 4 * torch.sin(torch.arange(counts.numel(), dtype=torch.float64) * math.pi**2).reshape(
        counts.shape
    )
    grid = ImageGeometry((1, 27, 27), (4.0, *case["voxel_size"]))
    return prompts.clamp_min(0).round().float(), torch.full(layout.shape, 2.0), layout, grid
