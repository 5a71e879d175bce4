"""Figures of results: one reconstruction, or several methods against the truth.

Matplotlib is imported when a figure is drawn, with its own figure objects: no window, no global state.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..files.atomic import save_figure
from ..geometry.exam import POSITIONS, ExamInfo, position_of
from ..geometry.images import ImageGeometry

#: Top, bottom, left and right, in a panel's own coordinates.
_AT_EDGES = ((0.5, 0.95), (0.5, 0.05), (0.05, 0.5), (0.95, 0.5))
_LETTER = {"color": "C1", "fontsize": 9, "fontweight": "bold", "ha": "center", "va": "center"}


@dataclass(frozen=True)
class Trace:
    """Log-likelihood by step, the mean over samples; ``target`` where a likelihood schedule asked for one.

    It is that of the image after the data step; with ``before_data_step`` that of the image before it, for methods that
    do not form the other.
    """

    step: tuple[int, ...]
    log_likelihood: tuple[float, ...]
    target: tuple[float, ...] | None = None
    before_data_step: bool = False

    @classmethod
    def of(cls, steps: Sequence[Mapping[str, Any]]) -> Trace | None:
        """Of a record's trace: likelihoods after the data steps, or else those before them; None without any."""
        key = "log_likelihood_after" if any(s["log_likelihood_after"] for s in steps) else "log_likelihood_before"
        known = [s for s in steps if s[key]]
        if not known:
            return None
        targets = [s["target"] for s in known]
        return cls(
            step=tuple(s["step"] for s in known),
            log_likelihood=tuple(sum(s[key]) / len(s[key]) for s in known),
            target=None if None in targets else tuple(targets),
            before_data_step=key == "log_likelihood_before",
        )


@dataclass(frozen=True)
class Panel:
    """One method's column of the comparison."""

    title: str
    image: Tensor
    uncertainty: Tensor | None = None
    trace: Trace | None = None
    caption: str = ""


def comparison_figure(
    path: str | os.PathLike[str],
    truth: Tensor,
    panels: Sequence[Panel],
    geometry: ImageGeometry,
    *,
    anatomy: Tensor | None = None,
    true_log_likelihood: float | None = None,
    title: str = "",
) -> None:
    """Draw images, error maps, posterior spread and the likelihood schedule, and write the figure to ``path``.

    The middle planes of ``truth`` and of the panels' images are shown, all ``[z, y, x]`` on one grid; below the truth
    an MR or CT image of the same, and ``true_log_likelihood`` as a line in the plot of the schedule.
    """
    from matplotlib.figure import Figure

    plane = truth.shape[0] // 2
    window = _window(truth[plane])
    peak = float(truth[plane].max())
    error_peak = 0.5 * peak
    spread_peak = max(
        (float(p.uncertainty[plane][window].max()) for p in panels if p.uncertainty is not None), default=1
    )
    aspect = geometry.voxel_size[1] / geometry.voxel_size[2]

    columns = len(panels) + 1
    rows = 3 if any(p.uncertainty is not None or p.trace is not None for p in panels) else 2
    figure = Figure(figsize=(1.75 * columns + 0.6, 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for row in axes:
        for axis in row:
            axis.set_axis_off()
    _show(axes[0][0], truth[plane][window], 0, peak, "gray_r", aspect)
    axes[0][0].set_title("truth", fontsize=9)
    if anatomy is not None:
        _show(axes[1][0], anatomy[plane][window], 0, float(anatomy[plane].max()), "gray", aspect)
        axes[1][0].set_title("anatomy (not used)", fontsize=8)
    shown: dict[str, Any] = {}
    for column, panel in enumerate(panels, start=1):
        shown["image"] = _show(axes[0][column], panel.image[plane][window], 0, peak, "gray_r", aspect)
        axes[0][column].set_title(panel.title, fontsize=9)
        error = (panel.image - truth)[plane][window]
        shown["error"] = _show(axes[1][column], error, -error_peak, error_peak, "RdBu_r", aspect)
        axes[1][column].set_title(panel.caption, fontsize=8)
        if panel.uncertainty is not None:
            spread = panel.uncertainty[plane][window]
            shown["SD"] = _show(axes[2][column], spread, 0, spread_peak, "magma", aspect)
    for row, name in enumerate(("image", "error", "SD")[:rows]):
        if name in shown:
            figure.colorbar(shown[name], ax=list(axes[row]), fraction=0.02, pad=0.005, label=name).ax.tick_params(
                labelsize=7
            )
    traced = [p for p in panels if p.trace is not None]
    first_with_spread = next((i for i, p in enumerate(panels, start=1) if p.uncertainty is not None), columns)
    if rows == 3 and traced and first_with_spread >= 2:
        grid = axes[2][0].get_gridspec()
        _plot_traces(figure.add_subplot(grid[2, :first_with_spread]), traced, true_log_likelihood)
    if title:
        figure.suptitle(title, fontsize=10)
    save_figure(path, figure, 130)


def report_figure(
    path: str | os.PathLike[str],
    image: Tensor,
    geometry: ImageGeometry,
    *,
    uncertainty: Tensor | None = None,
    trace: Trace | None = None,
    anatomical: Tensor | None = None,
    title: str = "",
    unit: str = "",
    exam: ExamInfo | None = None,
) -> None:
    """Draw one reconstruction: middle planes, standard deviation, anatomical image, and the log-likelihood of the run.

    A volume is shown in its three middle planes (transverse, coronal, sagittal), a single plane alone.
    """
    shown = f" [{unit}]" if unit else ""
    rows = [(f"reconstruction{shown}", image, "gray_r")]
    if uncertainty is not None:
        rows.append((f"standard deviation{shown}", uncertainty, "magma"))
    if anatomical is not None:
        rows.append(("anatomical image", anatomical, "gray"))
    figure_of_views(path, [(*row, 0.0, float(row[1].max()) or 1.0) for row in rows], geometry, title, trace, exam)


def figure_of_views(
    path: str | os.PathLike[str], stacks: Sequence[tuple[str, Tensor, str, float, float]], geometry: ImageGeometry,
    title: str = "", trace: Trace | None = None, exam: ExamInfo | None = None,
) -> None:  # fmt: skip
    """Draw the middle planes of images on one grid, a row each: name, image, colours, lowest and highest value.

    Planes lie as they are stored, along the scanner's axes. Where ``exam`` says how the patient lay, letters at their
    edges say where that is in the patient: right, left, anterior, posterior, head, feet.
    """
    from matplotlib.figure import Figure

    views = _views(stacks[0][1].shape, geometry)
    columns = len(views) + (trace is not None)
    figure, letters = Figure(figsize=(3.2 * columns, 3.2 * len(stacks) + 0.5), layout="constrained"), edge_letters(exam)
    axes = figure.subplots(len(stacks), columns, squeeze=False)
    for row, (name, volume, colours, low, high) in enumerate(stacks):
        for column, (view, index, aspect) in enumerate(views):
            shown = _show(axes[row][column], volume[index], low, high, colours, aspect)
            axes[row][column].set_axis_off()
            axes[row][column].set_title(f"{name}, {view}", fontsize=8)
            put_letters(axes[row][column], letters.get(view, ""))
        figure.colorbar(shown, ax=list(axes[row][: len(views)]), fraction=0.03, pad=0.01)
        if trace is not None and row > 0:
            axes[row][-1].set_axis_off()
    if trace is not None:
        _plot_traces(axes[0][-1], [Panel("this run", stacks[0][1], trace=trace)], None)
    if title:
        width = int(13 * figure.get_figwidth())  # characters
        figure.suptitle(
            "\n".join(textwrap.fill(line, width, break_on_hyphens=False) for line in title.splitlines()), fontsize=9
        )
    save_figure(path, figure, 130)


def put_letters(axis: Any, letters: str) -> None:
    """Write the letters of a view's edges, see `edge_letters`."""
    for letter, place in zip(letters, _AT_EDGES, strict=False):
        axis.text(*place, letter, transform=axis.transAxes, **_LETTER)


def edge_letters(exam: ExamInfo | None) -> dict[str, str]:
    """Letters of the top, bottom, left and right edge of each view; none where nobody said how the patient lay."""
    try:
        position = position_of(exam)
    except ValueError:  # on a side
        position = None
    if position is None:
        return {}
    x, y, z = (ends[::sign] for ends, sign in zip(("RL", "AP", "FH"), POSITIONS[position], strict=True))
    return {"transverse": y + x, "coronal": z + x, "sagittal": z + y}


def format_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Rows of text with right-aligned columns; ``columns`` maps each key to a format, and its heading is the key.

    Examples
    --------
    >>> print(format_table([{"method": "osem", "nrmse": 0.25}], {"method": "s", "nrmse": ".3f"}))
    method  nrmse
    osem    0.250
    """
    lines = [""] * (1 + len(rows))
    for name, form in columns.items():
        cells = [name.replace("_", " "), *("-" if row.get(name) is None else format(row[name], form) for row in rows)]
        width, align = max(map(len, cells)), "<" if form.endswith("s") else ">"
        lines = [f"{line}{cell:{align}{width}}  " for line, cell in zip(lines, cells, strict=True)]
    return "\n".join(line.rstrip() for line in lines)


def _plot_traces(axis: Any, panels: Sequence[Panel], true_value: float | None) -> None:
    for number, panel in enumerate(panels):
        trace = panel.trace
        steps = torch.tensor(trace.step, dtype=torch.float64)
        progress = 100 * steps / max(float(steps.max()), 1)
        label = f"{panel.title} (before the data step)" if trace.before_data_step else panel.title
        axis.plot(progress, trace.log_likelihood, color=f"C{number}", lw=1.2, label=label)
        if trace.target is not None:
            axis.plot(
                progress, trace.target, color=f"C{number}", lw=0, marker=".", ms=3, label=f"{panel.title}: schedule"
            )
    values = torch.tensor([v for p in panels for v in p.trace.log_likelihood], dtype=torch.float64)
    values = values[torch.isfinite(values)]
    if values.numel():
        # The first steps may lie far below: show the part of the run that tells something.
        targets = [target for p in panels for target in p.trace.target or ()]
        low = min([*targets, float(values.quantile(0.15))])
        high = max([*targets, float(values.max()), *([] if true_value is None else [true_value])])
        margin = 0.1 * (high - low) or 1.0
        axis.set_ylim(low - margin, high + margin)
    if true_value is not None:
        axis.axhline(true_value, color="k", lw=0.8, ls="--", label="truth")
    axis.set_xlabel("progress of the run [%]", fontsize=8)
    axis.set_ylabel("log-likelihood", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=7, frameon=False)


def _window(plane: Tensor) -> tuple[slice, slice]:
    """A square around what is not zero, with a small border."""
    inside = (plane > 0.02 * plane.max()).nonzero()
    if inside.numel() == 0:
        return slice(None), slice(None)
    low, high = inside.min(0).values, inside.max(0).values
    side = int((high - low).max()) + 9
    starts = [max(int(c) - side // 2, 0) for c in (low + high) // 2]
    return slice(starts[0], starts[0] + side), slice(starts[1], starts[1] + side)


def _views(shape: Sequence[int], geometry: ImageGeometry) -> list[tuple[str, tuple[Any, ...], float]]:
    nz, ny, nx = shape
    dz, dy, dx = geometry.voxel_size
    views: list[tuple[str, tuple[Any, ...], float]] = [("transverse", (nz // 2,), dy / dx)]
    if nz > 1:
        views += [
            ("coronal", (slice(None), ny // 2), dz / dx),
            ("sagittal", (slice(None), slice(None), nx // 2), dz / dy),
        ]
    return views


def _show(axis: Any, plane: Tensor, low: float, high: float, colours: str, aspect: float) -> Any:
    pixels = plane.detach().cpu().numpy()
    return axis.imshow(pixels, vmin=low, vmax=high, cmap=colours, aspect=aspect, interpolation="nearest")
