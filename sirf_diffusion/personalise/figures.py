"""Figures of a personalisation: registrations, pseudo-PETs, denoising errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files.atomic import save_figure
from ..geometry.exam import HEAD_FIRST_SUPINE, ExamInfo
from ..study.report import edge_letters, put_letters

Array = NDArray[np.float32]
#: As training volumes lie.
_LETTERS = edge_letters(ExamInfo(*HEAD_FIRST_SUPINE))


def member_figure(
    path: Path, target: Array, found: Any, mr: Array, emission: Array, number: int, reasons: Sequence[str]
) -> None:
    """The patient's MR, a member's MR on it in checks, its PET carried over, and the Jacobian, in two planes of his."""
    warped, pet = found.warp(mr), found.warp(emission)
    z, x = _middle(target, 0), _middle(target, 2)
    checks = (np.indices(target.shape) // 12).sum(0) % 2 == 0
    columns = [
        ("patient's MR", target, "gray", (0, 2)),
        ("member's, in checks", np.where(checks, target, warped), "gray", (0, 2)),
        ("its PET, carried over", pet, "gray_r", (0, 2.5)),
        ("log2 of the Jacobian", np.log2(np.clip(found.jacobian, 1e-3, None)), "RdBu_r", (-2, 2)),
    ]  # fmt: skip
    quality = found.quality
    title = f"member {number}: " + ("left out: " + "; ".join(reasons) if reasons else "used")
    title += f"\nleast Jacobian {quality.jacobian:.2f}, mutual information {quality.information_affine:.2f} to "
    title += f"{quality.information:.2f}, inverse within {quality.inverse_mm:.1f} mm, overlap {quality.overlap:.2f}"
    figure, axes = _sheet(2, len(columns), title)
    for column, (name, image, colours, span) in enumerate(columns):
        shown = _show(axes[0][column], image[z], colours, span, "transverse")
        _show(axes[1][column], image[:, :, x], colours, span, "sagittal")
        axes[0][column].set_title(name, fontsize=8)
        figure.colorbar(shown, ax=list(axes[:, column]), location="bottom", aspect=30).ax.tick_params(labelsize=6)
    save_figure(path, figure, 90)


def pseudo_figure(path: Path, images: Sequence[Array], mr: Array, expected: Array) -> None:
    """Means of the members' MRs and PETs on the patient's anatomy, and some pseudo-PETs, a transverse plane."""
    z = _middle(expected, 0)
    title = "means of the members' MRs and PETs (sharp where registration is good): the network is shown the latter; "
    figure, axes = _sheet(1, 2 + len(images), title + "and pseudo-PETs, which it is trained on")
    _show(axes[0][0], mr[z], "gray", (0, 2), "transverse")
    for axis, image in zip(axes[0][1:], (expected, *images), strict=True):
        shown = _show(axis, image[z], "gray_r", (0, 2.5), "transverse")
    figure.colorbar(shown, ax=list(axes[0]), aspect=12).ax.tick_params(labelsize=6)
    save_figure(path, figure, 90)


def curves_figure(path: Path, curves: Mapping[str, Mapping[float, float]]) -> None:
    """Denoising error against noise level, of several models."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axis = figure.subplots()
    for name, errors in curves.items():
        axis.plot(list(errors), list(errors.values()), marker="o", ms=3, lw=1.2, label=name)
    axis.set(xscale="log", xlabel="noise level (network units)", ylabel="denoising error, root mean square")
    axis.legend(fontsize=8, frameon=False)
    axis.set_title("on pseudo-PETs that were kept from the training", fontsize=9)
    save_figure(path, figure, 90)


def _sheet(rows: int, columns: int, title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2 * columns, 2.3 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.suptitle(title, fontsize=8)
    return figure, axes


def _show(axis: Any, plane: Array, colours: str, span: tuple[float, float], view: str) -> Any:
    put_letters(axis, _LETTERS[view])
    return axis.imshow(plane, cmap=colours, vmin=span[0], vmax=span[1], interpolation="nearest")


def _middle(image: Array, axis: int) -> int:
    """The slice through the middle of what emits."""
    others = tuple(k for k in range(3) if k != axis)
    inside = np.flatnonzero((image > 0.5 * np.quantile(image, 0.99)).mean(others) > 0.05)
    return int(inside[len(inside) // 2]) if len(inside) else image.shape[axis] // 2
