"""A model card: what an evaluation found, as Markdown with figures, and as JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...files.outputs import OutputFolder, jsonable
from .acceptance import Evaluation, save_sheet


def card_folder(path: str | os.PathLike[str], settings: Mapping[str, Any]) -> OutputFolder:
    """A folder for a card; ``settings`` is what the evaluation depends on."""
    return OutputFolder(path, settings, record_name="report.json", advice="give another folder")


def write_card(evaluation: Evaluation, card: OutputFolder) -> Path:
    """Write ``README.md``, ``report.json`` and the figures; returns the card's path."""
    with card.staged(_numbers(evaluation)) as folder:
        _write(evaluation, folder)
    return card / "README.md"


def _write(evaluation: Evaluation, folder: Path) -> None:
    curves, level = evaluation.curves, "noise level (mean activity = 1)"
    denoising = {
        "best Gaussian filter": curves["gaussian"], "best non-local means": curves["non_local_means"],
        "network, no anatomical image": curves["unconditional"], "network": curves["network"],
    }  # fmt: skip
    _draw(folder / "denoising.png", denoising, level, "root mean squared error", xscale="log", yscale="log")
    save_sheet(evaluation.samples, folder / "samples.png")
    scales = {f"noise level {sigma:g}": errors for sigma, errors in evaluation.scales.items()}
    _draw(folder / "scales.png", scales, "brightness of the image", "root mean squared error / brightness")
    calibration = {
        "noise balance": curves["balance"], "predicted / actual error": curves["predicted"],
        "right": dict.fromkeys(curves["balance"], 1.0),
    }  # fmt: skip
    _draw(folder / "calibration.png", calibration, level, "ratio", xscale="log")
    (folder / "README.md").write_text("\n".join(_text(evaluation)) + "\n", encoding="utf-8")


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
    pieces = "cubes" if about["architecture"].get("spatial_dims") == 3 else "slices"
    rows = {
        "network": f"{about['parameters'] / 1e6:.2f} million parameters, {about['architecture']}",
        "predicts": f"`{about['prediction']}`, schedule {about['schedule']}",
        "images": f"voxels of {millimetres} mm (z, y, x); {about['intensity_rule']}",
        "tracer": about["tracer"] or "not told",
        "trained": f"imported: {training['imported']}" if "imported" in training else f"{training.get('steps')} steps",
        "licence": about["licence"] or "not told",
        "SHA-256": f"`{about['sha256']}`",
        "data": f"{evaluation.num_slices} {pieces} of the {evaluation.split} volumes of {evaluation.data}",
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


def denoising_table(evaluation: Evaluation) -> list[str]:
    """Errors by noise level as Markdown."""
    curves = evaluation.curves
    names = ["network", "best Gaussian", "ratio", "best non-local means", "ratio"]
    names += [
        "noise balance",
        "predicted / actual error",
        *["without anatomical image"][: len(curves["unconditional"])],
    ]
    lines = ["| noise level | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
    for sigma, error in curves["network"].items():
        found = {name: values[sigma] for name, values in curves.items() if values}
        cells = [f"{sigma:g}", f"{error:.4f}"]
        for name in ("gaussian", "non_local_means"):
            cells += [f"{found[name]:.4f}", f"{error / found[name]:.2f}"]
        cells += [f"{found['balance']:.3f}", f"{found['predicted']:.2f}"]
        cells += [f"{found['unconditional']:.4f}"] if "unconditional" in found else []
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _numbers(evaluation: Evaluation) -> dict[str, Any]:
    content = {name: value for name, value in vars(evaluation).items() if name not in ("samples", "curves")}
    checks = [asdict(check) for check in evaluation.checks()]
    return jsonable(_with_named_levels({**content, **evaluation.curves}) | {"checks": checks})


def _with_named_levels(content: Any) -> Any:
    """Noise levels and scales as texts that are easily looked up: 0.4, and 1 instead of 1.0."""
    if not isinstance(content, dict):
        return content
    return {f"{k:g}" if isinstance(k, float) else k: _with_named_levels(value) for k, value in content.items()}
