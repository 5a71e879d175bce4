"""A sheet of a file of training volumes: three slices of each of some volumes, for the eye to check."""

from __future__ import annotations

import os

import numpy as np

from ..files.atomic import save_figure
from .data.volume_file import VolumeFile

_MOST = 8


def volume_sheet(path: str | os.PathLike[str], file: VolumeFile) -> None:
    """Draw transverse, coronal and sagittal middle slices, and the anatomical image's, of up to eight volumes.

    Parameters
    ----------
    path
        Figure to write (``.png``, ``.pdf``, ...).
    file
        The volumes; those drawn are spread over it.
    """
    from matplotlib.figure import Figure

    chosen = np.unique(np.linspace(0, len(file) - 1, min(_MOST, len(file))).round().astype(int)).tolist()
    columns = 3 + file.has_anatomy
    figure = Figure(figsize=(2.4 * columns, 2.3 * len(chosen) + 0.9), layout="constrained")
    axes = figure.subplots(len(chosen), columns, squeeze=False)
    dz, dy, dx = file.voxel_size
    for row, index in enumerate(chosen):
        info = file.infos[index]
        volume = file.volume(index).float().numpy()
        places = [_middle(o) for o in info.occupancy]
        for axis, aspect in enumerate((dy / dx, dz / dx, dz / dy)):
            image = np.take(volume, places[axis], axis)
            axes[row, axis].imshow(image, cmap="gray_r", vmin=0, vmax=3, aspect=aspect)
        axes[row, 0].set_ylabel(f"{info.name}\n{info.split}", fontsize=8)
        if info.has_anatomy:
            image = file.volume(index, "anatomy")[places[0]].float().numpy()
            axes[row, 3].imshow(image, cmap="gray", vmin=0, vmax=2, aspect=dy / dx)
    for panel, name in zip(axes[0], ("transverse", "coronal", "sagittal", "anatomy, transverse"), strict=False):
        panel.set_title(name, fontsize=9)
    for panel in axes.flat:
        panel.set(xticks=[], yticks=[])
    figure.suptitle(
        "white 0, black 3 times the intensity scale; nose or breast up in transverse slices,\n"
        "the patient's left on the right; head up in the others if the axes are right",
        fontsize=8,
    )
    save_figure(path, figure, 110)


def _middle(occupancy: np.ndarray) -> int:
    """The slice in the middle of what is occupied."""
    inside = np.flatnonzero(occupancy > 0)
    return int(inside[len(inside) // 2]) if len(inside) else len(occupancy) // 2
