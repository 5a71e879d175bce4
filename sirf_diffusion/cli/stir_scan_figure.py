"""The figure of a scan: images by factor, and the curve to choose by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .stir_scan import Point

_MOST_IMAGES = 8


def figure(path: Path, folder: Path, points: Sequence[Point], prior: str, reference: Path | None) -> None:
    """Draw the slice with most activity for up to 8 factors, and below it NRMSE by factor, or roughness against
    log-likelihood where there is no reference.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from ..files.interfile import read_image

    shown = _spread(points)
    panels = [(f"{point.factor:g}", read_image(folder / point.image)[0]) for point in shown]
    if reference is not None:
        panels.insert(0, ("reference", read_image(reference)[0]))
    middle = panels[0][1]
    plane = int(middle.sum((-1, -2)).argmax())
    vmax = float(panels[0][1][plane].max() if reference is not None else panels[len(panels) // 2][1][plane].max())
    canvas = Figure(figsize=(max(6.0, 1.9 * len(panels)), 5.4), layout="constrained")
    FigureCanvasAgg(canvas)
    upper, lower = canvas.subfigures(2, 1, height_ratios=(1, 1.3))
    for axes, (title, image) in zip(upper.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.imshow(image[plane].numpy(), cmap="gray_r", vmin=0, vmax=vmax)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    upper.suptitle(f"{prior}: penalisation factor", fontsize=10)
    _curve(lower.subplots(), points, reference is not None)
    canvas.savefig(path, dpi=130, format="png")


def _curve(axes: Any, points: Sequence[Point], with_reference: bool) -> None:
    factors = [point.factor for point in points]
    if with_reference:
        axes.plot(factors, [point.nrmse for point in points], "o-", color="black")
        # A factor of 0 (no prior) has a place on this axis too.
        smallest = min((f for f in factors if f > 0), default=1.0)
        axes.set_xscale("symlog", linthresh=smallest, linscale=0.5)
        axes.set_xticks(factors, [f"{factor:g}" for factor in factors])
        axes.minorticks_off()
        axes.set_xlabel("penalisation factor")
        axes.set_ylabel("NRMSE")
        return
    known = [point for point in points if point.log_likelihood is not None]
    axes.plot([p.roughness for p in known], [p.log_likelihood for p in known], "o-", color="black")
    for point in known:
        axes.annotate(f"{point.factor:g}", (point.roughness, point.log_likelihood), fontsize=8, xytext=(4, -9),
                      textcoords="offset points")  # fmt: skip
    axes.set_xlabel("roughness (pixel differences relative to the mean)")
    axes.set_ylabel("log-likelihood")
    axes.ticklabel_format(useOffset=False)


def _spread(points: Sequence[Point]) -> list[Point]:
    """At most `_MOST_IMAGES` of the points, first and last included."""
    if len(points) <= _MOST_IMAGES:
        return list(points)
    step = (len(points) - 1) / (_MOST_IMAGES - 1)
    return [points[round(k * step)] for k in range(_MOST_IMAGES)]
