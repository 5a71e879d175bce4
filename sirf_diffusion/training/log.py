"""The curves of a training: ``log.csv``, a figure of it, and TensorBoard if it is wanted."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from .evaluation.validation import ValidationSet


class TrainingLog:
    """Writes a row at each validation; rows after the step that a resumed training starts from are taken out.

    Columns of ``log.csv``: ``step``, ``seconds`` of computing since the row before, ``training_loss`` since then, and
    ``rmse_sigma_S`` for each noise level ``S``. The row ``gaussian`` of ``reference.csv`` has the same for the best
    Gaussian filter.
    """

    def __init__(self, work: Path, step: int, reference: dict[float, float], tensorboard: bool = False) -> None:
        self.path, self.reference = work / "log.csv", reference
        self._figure = work / "validation.png"
        self._trim(step)
        with (work / "reference.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["filter", *(f"rmse_sigma_{s:g}" for s in reference)])
            writer.writerow(["gaussian", *(round(value, 5) for value in reference.values())])
        self._board = _tensorboard(work / "tensorboard", step) if tensorboard else None

    def add(self, step: int, seconds: float, loss: float, errors: dict[float, float]) -> None:
        """One row, and the figure anew."""
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", "seconds", "training_loss", *(f"rmse_sigma_{s:g}" for s in errors)])
            writer.writerow([step, round(seconds, 1), round(loss, 5), *(round(v, 5) for v in errors.values())])
        if self._board is not None:
            self._board.add_scalar("training loss", loss, step)
            for sigma, error in errors.items():
                self._board.add_scalar(f"denoising error/sigma {sigma:g}", error, step)
            self._board.flush()
        if errors:
            self._draw()

    def close(self) -> None:
        """Close what is open."""
        if self._board is not None:
            self._board.close()

    def _trim(self, step: int) -> None:
        if not self.path.exists():
            return
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        # A row may be incomplete if the process was killed while it wrote.
        kept = [row for row in rows[1:] if len(row) == len(rows[0]) and row[0].isdigit() and int(row[0]) <= step]
        if not kept:
            self.path.unlink()
            return
        partial = self.path.with_name(".log.csv.partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([rows[0], *kept])
        partial.replace(self.path)

    def _draw(self) -> None:
        from matplotlib.figure import Figure

        with self.path.open(newline="", encoding="utf-8") as file:
            rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        for sigma, best in self.reference.items():
            curve = [row[f"rmse_sigma_{sigma:g}"] / best for row in rows]
            axes.plot([row["step"] for row in rows], curve, label=f"{sigma:g}")
        axes.axhline(1, color="0.6", linestyle="--")
        axes.set(xlabel="step", ylabel="error / best Gaussian filter", yscale="log")
        axes.legend(title="noise level", ncols=2, fontsize="small")
        figure.savefig(self._figure, dpi=100)


def relative_error(errors: dict[float, float], reference: dict[float, float]) -> float:
    """Geometric mean over noise levels of error over that of the best Gaussian filter; early stopping watches it."""
    return math.exp(sum(math.log(errors[sigma] / reference[sigma]) for sigma in reference) / len(reference))


def reference_errors(validation: ValidationSet | None) -> dict[float, float]:
    """Errors of the best Gaussian filter; empty without validation."""
    return {} if validation is None else validation.gaussian_errors()


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("TensorBoard logs need tensorboard: pip install tensorboard") from error
    return SummaryWriter(str(folder), purge_step=step + 1)
