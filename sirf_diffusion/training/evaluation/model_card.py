"""A model card: what an evaluation found, as Markdown with figures, and as JSON."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...files.outputs import jsonable, write_json
from .acceptance import Evaluation, save_sheet


def write_card(evaluation: Evaluation, folder: str | os.PathLike[str]) -> Path:
    """Write ``README.md``, ``report.json`` and the figures into a new folder; returns the card's path.

    Raises
    ------
    FileExistsError
        If the folder exists and is not empty.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(17, "the folder is not empty: choose another, or remove it", str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    _draw_denoising(evaluation, folder / "denoising.png")
    save_sheet(evaluation.samples, folder / "samples.png")
    _draw_scales(evaluation, folder / "scales.png")
    _draw_calibration(evaluation, folder / "calibration.png")
    write_json(folder / "report.json", _numbers(evaluation))
    card = folder / "README.md"
    card.write_text("\n".join(_text(evaluation)) + "\n", encoding="utf-8")
    return card


def _draw_denoising(evaluation: Evaluation, path: Path) -> None:
    """Error against noise level, beside the filters."""
    curves = {
        "best Gaussian filter": evaluation.gaussian, "best non-local means": evaluation.non_local_means,
        "network, no anatomical image": evaluation.unconditional, "network": evaluation.network,
    }  # fmt: skip
    _draw(path, curves, "noise level (mean activity = 1)", "root mean squared error", xscale="log", yscale="log")


def _draw_scales(evaluation: Evaluation, path: Path) -> None:
    """Error against the brightness of the image."""
    curves = {f"noise level {sigma:g}": errors for sigma, errors in evaluation.scales.items()}
    _draw(path, curves, "brightness of the image", "root mean squared error / brightness")


def _draw_calibration(evaluation: Evaluation, path: Path) -> None:
    """The two ratios that should be 1."""
    curves = {
        "noise balance": evaluation.balance, "predicted / actual error": evaluation.predicted,
        "right": dict.fromkeys(evaluation.balance, 1.0),
    }  # fmt: skip
    _draw(path, curves, "noise level (mean activity = 1)", "ratio", xscale="log")


def _draw(path: Path, curves: dict[str, dict[float, float]], xlabel: str, ylabel: str, **scales: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=xlabel, ylabel=ylabel, **scales)
    axes.grid(alpha=0.3, which="both")
    for name, values in curves.items():
        if values:
            axes.plot(list(values), list(values.values()), marker="o", label=name)
    axes.legend()
    figure.savefig(path, dpi=110)


def _text(evaluation: Evaluation) -> list[str]:
    about = evaluation.about
    training = about.get("training") or {}
    millimetres = " x ".join(f"{v:g}" for v in about["voxel_size_mm"])
    rows = {
        "network": f"{about['parameters'] / 1e6:.2f} million parameters, {about['architecture']}",
        "predicts": f"`{about['prediction']}`, schedule {about['schedule']}",
        "images": f"voxels of {millimetres} mm (z, y, x); {about['intensity_rule']}",
        "tracer": about["tracer"] or "not told",
        "trained": f"imported: {training['imported']}" if "imported" in training else f"{training.get('steps')} steps",
        "licence": about["licence"] or "not told",
        "SHA-256": f"`{about['sha256']}`",
        "data": f"{evaluation.num_slices} {_pieces(about)} of the {evaluation.split} volumes of {evaluation.data}",
    }
    lines = [f"# {Path(evaluation.model).stem}", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    lines += ["", "## Checks", ""]
    lines += [f"- {'passed' if c.passed else '**failed**'}: {c.name}: {c.found}" for c in evaluation.checks()]
    lines += ["", "## Denoising error", "", *denoising_table(evaluation), "", "![Denoising error](denoising.png)", ""]
    lines += ["## Unconditional samples", ""]
    lines += [f"Mean activity of emitting pixels: {', '.join(f'{v:.2f}' for v in evaluation.sample_means)}.", ""]
    lines += ["![Samples](samples.png)", "", "## Brighter and darker images", ""]
    lines += ["Flat curves: the model does not mind the intensity scale.", "", "![Scales](scales.png)", ""]
    lines += ["## Calibration", ""]
    lines += ["Both ratios are 1 for a perfect model: the noise that is taken away with the error that is left against"]
    lines += ["the noise put in, and the error that the model's Jacobian predicts against the actual one.", ""]
    return [*lines, "![Calibration](calibration.png)"]


def _pieces(about: dict[str, Any]) -> str:
    return "cubes" if (about["architecture"] or {}).get("spatial_dims") == 3 else "slices"


def denoising_table(evaluation: Evaluation) -> list[str]:
    """Errors by noise level as Markdown."""
    names = ["network", "best Gaussian", "ratio", "best non-local means", "ratio"]
    names += ["noise balance", "predicted / actual error"]
    if evaluation.unconditional:
        names.append("without anatomical image")
    lines = ["| noise level | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
    for sigma, error in evaluation.network.items():
        gaussian, nlm = evaluation.gaussian[sigma], evaluation.non_local_means[sigma]
        cells = [f"{sigma:g}", f"{error:.4f}", f"{gaussian:.4f}", f"{error / gaussian:.2f}", f"{nlm:.4f}"]
        cells += [f"{error / nlm:.2f}", f"{evaluation.balance[sigma]:.3f}", f"{evaluation.predicted[sigma]:.2f}"]
        if evaluation.unconditional:
            cells.append(f"{evaluation.unconditional[sigma]:.4f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _numbers(evaluation: Evaluation) -> dict[str, Any]:
    content = {name: value for name, value in vars(evaluation).items() if name != "samples"}
    return jsonable(_with_named_levels(content) | {"checks": [asdict(check) for check in evaluation.checks()]})


def _with_named_levels(content: Any) -> Any:
    """Noise levels and scales as texts that are easily looked up: 0.4, and 1 instead of 1.0."""
    if not isinstance(content, dict):
        return content
    return {f"{k:g}" if isinstance(k, float) else k: _with_named_levels(value) for k, value in content.items()}
