"""The curves of a training: ``log.csv``, a figure of it, and TensorBoard if it is wanted."""

from __future__ import annotations

import csv
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.atomic import save_figure
from ..files.outputs import write_csv


@dataclass(frozen=True)
class Curves:
    """What the curves of a validation are of, in names of columns and in words, and what they are relative to."""

    name: str = "sigma"
    title: str = "noise level"
    reference: str = "gaussian"
    relative_to: str = "best Gaussian filter"


SIGMA = Curves()
#: Seconds between two drawings of the figure; the last one is made when the log is closed.
DRAW_EVERY = 10.0


class TrainingLog:
    """Writes a row at each validation; rows after the step that a resumed training starts from are left out.

    Columns of ``log.csv``: ``step``, ``seconds`` of computing since the row before, ``training_loss`` since then, and
    ``rmse_sigma_S`` for each noise level ``S``. The row ``gaussian`` of ``reference.csv`` has the same for the best
    Gaussian filter. `Curves` has other names.
    """

    def __init__(
        self, work: Path, step: int, reference: dict[Any, float], tensorboard: bool = False, curves: Curves = SIGMA
    ) -> None:
        self.path, self.reference, self.curves = work / "log.csv", reference, curves
        self._figure, self._drawn, self._next = work / "validation.png", True, time.monotonic() + DRAW_EVERY
        self._rows = self._earlier(step)
        names = [f"rmse_{self.curves.name}_{shown(s)}" for s in reference]
        self._columns = ["step", "seconds", "training_loss", *names]
        values = [self.curves.reference, *(round(v, 5) for v in reference.values())]
        write_csv(work / "reference.csv", [["filter", *names], values])
        self._board = _tensorboard(work / "tensorboard", step) if tensorboard else None

    def add(self, step: int, seconds: float, loss: float, errors: dict[Any, float]) -> None:
        """One row; the figure anew, unless that was done within the last seconds."""
        self._rows.append([step, round(seconds, 1), round(loss, 5), *(round(v, 5) for v in errors.values())])
        write_csv(self.path, [self._columns, *self._rows])
        if self._board is not None:
            self._board.add_scalar("training loss", loss, step)
            for sigma, error in errors.items():
                self._board.add_scalar(f"denoising error/{self.curves.name} {shown(sigma)}", error, step)
            self._board.flush()
        self._drawn = self._drawn and not errors
        if time.monotonic() > self._next:
            self._draw()

    def close(self) -> None:
        """Close what is open, and draw what is not drawn yet."""
        if self._board is not None:
            self._board.close()
        self._draw()

    def _earlier(self, step: int) -> list[list[Any]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = list(csv.reader(file))[1:]
        return [row for row in rows if row and row[0].isdigit() and int(row[0]) <= step]

    def _draw(self) -> None:
        if self._drawn:
            return
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        for column, (sigma, best) in enumerate(self.reference.items(), start=3):
            curve = [float(row[column]) / best for row in self._rows]
            axes.plot([int(row[0]) for row in self._rows], curve, label=shown(sigma))
        axes.axhline(1, color="0.6", linestyle="--")
        axes.set(xlabel="step", ylabel=f"error / {self.curves.relative_to}", yscale="log")
        axes.legend(title=self.curves.title, ncols=2, fontsize="small")
        save_figure(self._figure, figure, 100)
        self._drawn, self._next = True, time.monotonic() + DRAW_EVERY


def shown(level: float | str) -> str:
    """A noise level, or what else an error is of, in a column's name."""
    return level if isinstance(level, str) else f"{level:g}"


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("TensorBoard logs need tensorboard: pip install tensorboard") from error
    return SummaryWriter(str(folder), purge_step=step + 1)
