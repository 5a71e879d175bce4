"""The figures of a report, as PNG in memory. Matplotlib is imported when one is drawn; no window, no global state."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from benchmarks.bench.cases import Case
from benchmarks.bench.measures import expected_ranks

Row = Mapping[str, Any]
_COLUMNS = 7


def image_grid(case: Case, maps: Mapping[str, Mapping[str, Tensor]], titles: Mapping[str, str]) -> bytes:
    """Truth and MR, and of each method one realisation, and bias and SD over all of them; one window for each kind."""
    from sirf_diffusion.study.report import _window

    plane = case.truth.shape[0] // 2
    window = _window(case.truth[plane])
    names = [name for name in titles if f"{case.spec.name}/{name}" in maps]
    peak = float(case.truth[plane].max())
    kinds = (("first", "gray_r", 0.0, peak), ("bias", "RdBu_r", -peak / 2, peak / 2), ("sd", "magma", 0.0, peak / 4))
    columns = min(_COLUMNS, max(len(names), 1))
    groups = [names[i : i + columns] for i in range(0, len(names), columns)] or [[]]
    rows = len(groups) * len(kinds)
    figure = _figure(1.6 * (columns + 1), 1.65 * rows + 0.3)
    axes = figure.subplots(rows, columns + 1, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for group, members in enumerate(groups):
        top = group * len(kinds)
        truth = _show(axes[top][0], case.truth[plane][window], "gray_r", 0, peak, "truth")
        mr = case.mr[plane][window]
        if bool(mr.any()):
            _show(axes[top + 1][0], mr, "gray", 0, float(mr.max()), "MR")
        for row, (kind, colours, low, high) in enumerate(kinds):
            drawn = None if row else truth
            for column, name in enumerate(members, start=1):
                found = maps[f"{case.spec.name}/{name}"].get(kind)
                if found is not None:
                    title = titles[name] if row == 0 else {"bias": "bias", "sd": "SD"}[kind]
                    drawn = _show(axes[top + row][column], found[plane][window], colours, low, high, title)
            if drawn is not None:
                bar = figure.colorbar(drawn, ax=list(axes[top + row]), pad=0.01, aspect=12)
                bar.ax.tick_params(labelsize=6)
    return _png(figure)


def bias_against_sd(rows: Sequence[Row]) -> bytes:
    """A curve for each method as its first parameter varies; the tuned value is the large dot."""
    figure, axis = _plot("SD over realisations [%]", "bias [%]")
    for colour, members in _by_method(rows):
        points = sorted((r for r in members if "bias" in r), key=lambda r: r["variant"])
        if points:
            x, y = ([100 * r[name] for r in points] for name in ("sd", "bias"))
            axis.plot(x, y, color=colour, lw=1, marker=".", ms=4)
        for r in points:
            if r["variant"] == 1:
                axis.plot(100 * r["sd"], 100 * r["bias"], "o", color=colour, ms=7, label=r["title"])
    _legend(axis)
    return _png(figure)


def lesion_recovery(rows: Sequence[Row]) -> bytes:
    """Contrast recovery of each kind of lesion: 1 is right."""
    tuned = _tuned(rows)
    kinds = list(dict.fromkeys(name[4:] for r in tuned for name in r if name.startswith("crc ")))
    figure = _figure(8, 0.26 * len(tuned) + 1.2)
    axis = figure.subplots()
    for number, kind in enumerate(kinds):
        places = [i + 0.18 * (number - (len(kinds) - 1) / 2) for i in range(len(tuned))]
        axis.plot([r.get(f"crc {kind}", math.nan) for r in tuned], places, "o", ms=5, color=f"C{number}", label=kind)
    axis.axvline(1, color="k", lw=0.7)
    axis.set_yticks(range(len(tuned)), [r["title"] for r in tuned], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("contrast recovery", fontsize=8)
    axis.tick_params(axis="x", labelsize=7)
    axis.grid(axis="y", lw=0.3)
    _legend(axis)
    return _png(figure)


def calibration(rows: Sequence[Row]) -> bytes:
    """Rank of the truth among the samples: on the line if calibrated, high at the ends if they spread too little."""
    members = [r for r in _tuned(rows) if r.get("ranks")]
    columns = min(max(len(members), 1), 6)
    lines = -(-max(len(members), 1) // columns)
    figure = _figure(1.9 * columns, 1.8 * lines)
    axes = figure.subplots(lines, columns, squeeze=False).flat
    for axis in axes[len(members) :]:
        axis.set_axis_off()
    for axis, row in zip(axes, members, strict=False):
        ranks = row["ranks"]
        total = sum(ranks)
        axis.bar(range(len(ranks)), [r / total for r in ranks], color="0.6")
        axis.step(range(len(ranks)), expected_ranks(len(ranks) - 1, "balanced"), color="k", lw=0.7, where="mid")
        axis.set_title(row["title"], fontsize=7)
        axis.tick_params(labelsize=6)
    return _png(figure)


def cost_against_error(rows: Sequence[Row]) -> bytes:
    """NRMSE against projections and against seconds; methods that no other beats in both are joined by a line."""
    tuned = [r for r in _tuned(rows) if "forward" in r]
    figure = _figure(11, 4)
    for axis, (label, cost) in zip(
        figure.subplots(1, 2),
        (("forward and back projections", lambda r: r["forward"] + r["back"]), ("seconds", lambda r: r["seconds"])),
        strict=True,
    ):
        best, front = math.inf, []
        for x, y in sorted((cost(r), r["nrmse"]) for r in tuned):
            if y < best:
                best = y
                front.append((x, y))
        axis.plot(*zip(*front, strict=True), color="0.6", lw=0.8, zorder=1) if front else None
        for colour, members in _by_method(tuned):
            x, y = ([value(r) for r in members] for value in (cost, lambda r: r["nrmse"]))
            axis.scatter(x, y, s=28, color=colour, label=members[0]["title"], zorder=2)
        axis.set_xscale("log")
        axis.set_xlabel(label, fontsize=8)
        axis.set_ylabel("NRMSE", fontsize=8)
        axis.tick_params(labelsize=7)
    _legend(axis)
    return _png(figure)


def error_by_counts(rows: Sequence[Row]) -> bytes:
    """NRMSE against the number of prompts."""
    figure, axis = _plot("prompts per plane", "NRMSE")
    for colour, members in _by_method(_tuned(rows)):
        points = sorted((r["prompts"], r["nrmse"]) for r in members if "nrmse" in r)
        axis.plot(*zip(*points, strict=True), color=colour, marker=".", lw=1, label=members[0]["title"])
    axis.set_xscale("log")
    _legend(axis)
    return _png(figure)


def _tuned(rows: Sequence[Row]) -> list[Row]:
    return [r for r in rows if r["variant"] == 1 and "nrmse" in r]


def _by_method(rows: Sequence[Row]) -> list[tuple[Any, list[Row]]]:
    from matplotlib import colormaps

    names = list(dict.fromkeys(r["method"] for r in rows))
    colours = colormaps["tab20"].colors  # type: ignore[attr-defined]
    return [(colours[i % len(colours)], [r for r in rows if r["method"] == name]) for i, name in enumerate(names)]


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _plot(x: str, y: str) -> tuple[Any, Any]:
    figure = _figure(7.5, 4.5)
    axis = figure.subplots()
    axis.set_xlabel(x, fontsize=8)
    axis.set_ylabel(y, fontsize=8)
    axis.tick_params(labelsize=7)
    return figure, axis


def _show(axis: Any, pixels: Tensor, colours: str, low: float, high: float, title: str) -> Any:
    axis.set_title(title, fontsize=7)
    return axis.imshow(pixels.numpy(), cmap=colours, vmin=low, vmax=high, interpolation="nearest")


def _legend(axis: Any) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=6, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()
