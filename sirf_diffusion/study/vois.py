"""Mean activity in volumes of interest (VOIs), with the interval that posterior samples give."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..files.outputs import write_csv
from ..geometry.exam import ExamInfo
from ..geometry.images import ImageGeometry
from ..models.intervals import NOMINAL
from ..patient.anatomical import AnatomicalImage
from ..patient.image import SourceImage, optional
from ..patient.resampling import PatientGrid, are_inside, resample
from ..reconstructors.diffusion.chain import posterior_sd
from .intervals import NORMAL

logger = logging.getLogger(__name__)

#: A VOI of which a smaller share lies inside the image is said to be cut.
_WHOLE = 0.99
#: Columns of a table, with their formats as text.
COLUMNS = {
    "voi": "d", "voxels": "d", "volume_ml": ".4g", "mean": ".5g", "sd": ".3g", "low": ".5g", "high": ".5g",
    "unit": "s",
}  # fmt: skip


def place_vois(
    labels: SourceImage, geometry: ImageGeometry, exam: ExamInfo | None = None, seen: Tensor | None = None
) -> Tensor:
    """Labels ``[z, y, x]`` on the grid of a reconstruction, of the nearest voxel; ``exam`` says how the patient lay.

    VOIs that lie partly outside the grid, or the voxels ``seen`` by the scanner, are counted as far as they lie inside,
    with a warning.

    Raises
    ------
    ValueError
        If a label has no voxel there.
    """
    grid = AnatomicalImage(labels).lying_as(exam).grid(geometry)
    placed = resample(labels, grid, labels=True).astype(np.int64)
    kinds = np.union1d(labels.values.astype(np.int64), 0)
    on_grid = _voxels(placed, kinds)
    if seen is not None:
        placed *= seen.cpu().numpy()
    counted = _voxels(placed, kinds)
    _warn_of_cut(labels, grid, kinds, counted / np.maximum(on_grid, 1))
    if lost := kinds[(counted == 0) & (kinds > 0)].tolist():
        raise ValueError(
            f"VOIs {', '.join(map(str, lost))} have no voxel in the field of view on the reconstruction's grid "
            f"{geometry.shape}"
        )
    return torch.from_numpy(placed)


def _voxels(values: NDArray[Any], kinds: NDArray[np.int64], which: Any = None) -> NDArray[Any]:
    return np.bincount(np.searchsorted(kinds, values.ravel()), which, len(kinds))


def _warn_of_cut(labels: SourceImage, grid: PatientGrid, kinds: NDArray[np.int64], seen: NDArray[np.float64]) -> None:
    voxels = np.nonzero(labels.values)
    points = labels.affine[:3, :3] @ np.asarray(voxels) + labels.affine[:3, 3:]
    values = labels.values[voxels].astype(np.int64)
    shares = seen * _voxels(values, kinds, are_inside(points, grid.affine, grid.shape))
    shares /= np.maximum(_voxels(values, kinds), 1)
    if cut := [f"{kind} ({share:.0%})" for kind, share in zip(kinds, shares, strict=True) if kind and share < _WHOLE]:
        logger.warning(
            "VOIs lie partly outside the reconstruction's field of view and are counted as far as they lie inside: %s",
            ", ".join(cut),
        )


def voi_table(
    labels: Tensor,
    image: Tensor,
    geometry: ImageGeometry,
    samples: Tensor | None = None,
    noises: str = "independent",
    unit: str = "image units",
    factor: float | None = None,
) -> list[dict[str, Any]]:
    r"""A row for each VOI: size, mean, and of two or more posterior samples its standard deviation and 95 % interval.

    .. math:: \bar m \pm t_{S-1}\,\sqrt{1 + 1/S}\;\mathrm{SD}(m_s)

    of the samples' own means :math:`m_s`, so that errors of neighbours count together; see `interval_factor`. It tells
    what the data leave open given the model: wrong scatter, calibration or motion are not in it. With a calibrated
    ``factor`` (`sirf_diffusion.models.intervals`) it is :math:`\bar m \pm \mathrm{factor}\;\mathrm{SD}(m_s)`, and
    the standard deviation is ``factor / 1.96`` times that of the samples.

    ``labels`` and ``image`` are ``[z, y, x]``, ``samples`` ``[S, z, y, x]``.
    """
    rows = []
    for label in (value for value in labels.unique().tolist() if value):
        mask = labels == label
        row = {
            "voi": label,
            "voxels": int(mask.sum()),
            "volume_ml": int(mask.sum()) * math.prod(geometry.voxel_size) / 1e3,
        }
        row |= {"mean": float(image[mask].double().mean()), "sd": None, "low": None, "high": None, "unit": unit}
        if samples is not None and len(samples) > 1:
            sd = float(posterior_sd(samples[:, mask].double().mean(1), noises))
            half = (interval_factor(len(samples), noises) if factor is None else factor) * sd
            sd = sd if factor is None else half / NORMAL
            row |= {"sd": sd, "low": row["mean"] - half, "high": row["mean"] + half}
        rows.append(row)
    return rows


def interval_factor(number: int, noises: str = "independent", probability: float = NOMINAL) -> float:
    """Standard deviations on each side of the mean of so many samples that hold the truth with this probability.

    Student's ``t`` of ``number - 1`` degrees of freedom, times ``sqrt(1 + 1 / number)``: the mean has an error of its
    own, but for balanced noises, which add up to zero.
    """
    student = optional("scipy.stats", "intervals of few samples").t
    factor = float(student.ppf(0.5 + probability / 2, number - 1))
    return factor if noises == "balanced" else factor * math.sqrt(1 + 1 / number)


def write_vois(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table as CSV."""
    write_csv(path, [COLUMNS, *([row.get(column, "") for column in COLUMNS] for row in rows)])
