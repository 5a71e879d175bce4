"""Checkpoints of a run: written whole or not at all, without pickle, and refused where they do not belong."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files.outputs import jsonable
from ..files.weights import WeightsFileError, WeightsFormat
from ..geometry.checks import check_count, check_finite, check_real
from .records import Cost, StepRecord

logger = logging.getLogger(__name__)

_FORMAT = WeightsFormat("a checkpoint of a reconstruction", "sirf_diffusion_checkpoint", "start the run afresh")


@dataclass
class Checkpoint:
    """All that a run needs to go on: tensors (images, chain, generator states) and ``metadata``, written as JSON."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]
    path: str = ""

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all: a kill leaves the old checkpoint or the new one."""
        _FORMAT.write(path, self.tensors, jsonable(self.metadata))

    @classmethod
    def load(cls, path: str | Path) -> Checkpoint:
        """Read a checkpoint; ``FileNotFoundError``, or for a file that is none or not whole `WeightsFileError`."""
        metadata, tensors, _ = _FORMAT.read(path)
        found = cls(tensors, metadata, str(path))
        with found.taken_up():
            metadata["step"] = check_count("step", metadata["step"], 0)
            Cost.of(metadata["cost"])
            for key in ("fingerprint", "extras"):
                metadata[key] = {**metadata[key]}
            metadata["log_likelihood"] = [float(value) for value in metadata["log_likelihood"]]
            metadata["steps"] = [{**entry} for entry in metadata["steps"]]
            for name, tensor in tensors.items():
                check_finite(tensor, f"tensor {name!r}")
        return found

    @contextmanager
    def taken_up(self) -> Iterator[None]:
        """What does not fit where a run goes on from this checkpoint is a `WeightsFileError` that names the file."""
        try:
            yield
        except WeightsFileError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError) as error:
            found = f"{type(error).__name__}: {error}"
            raise WeightsFileError(
                f"{self.path} cannot be read as a checkpoint of this run ({found:.300}): {_FORMAT.remedy} (--restart)"
            ) from error

    def check(self, expected: dict[str, Any]) -> None:
        """Raise `WeightsFileError` naming the first setting in which this run differs from the one that wrote it."""
        found = self.metadata["fingerprint"]
        for key in sorted(set(found) | set(expected)):
            mine, theirs = expected.get(key), found.get(key)
            numbers = isinstance(mine, float) and isinstance(theirs, float)
            if not (abs(mine - theirs) <= 1e-6 * abs(theirs) if numbers else mine == theirs):
                found = f"{key} was {theirs!r:.200}, this run has {mine!r:.200}"
                raise WeightsFileError(f"checkpoint {self.path} is of another run: {found}")


class CheckpointCallback:
    """Callback that saves the run to ``path`` now and then and after the last step.

    A run constructed with the same arguments, whose ``resume_from`` is ``path`` before `set_up`, goes on from there and
    gives the result that the uninterrupted run gives. A checkpoint that cannot be written (full disk) is a warning, and
    the run goes on.

    Parameters
    ----------
    path
        File to write, ``.safetensors``; its folder must exist. An older checkpoint is replaced.
    every
        Steps between two checkpoints.
    seconds
        Least time between two checkpoints.
    """

    def __init__(self, path: str | Path, every: int = 1, seconds: float = 0.0) -> None:
        self.path, self.every = Path(path), check_count("every", every)
        self.seconds = check_real("seconds", seconds)
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"the folder of the checkpoint {self.path} does not exist: make it first")
        self._latest: Checkpoint | None = None
        self._when = time.monotonic()
        self._warned = False

    def __call__(self, record: StepRecord) -> None:
        """Save if it is time."""
        if record.checkpoint is None:
            raise TypeError(f"{record.method} cannot be resumed: leave CheckpointCallback out")
        self._latest, last = record.checkpoint(), record.step == record.num_steps
        if last or (record.step % self.every == 0 and time.monotonic() - self._when >= self.seconds):
            self.write()

    def write(self) -> None:
        """Save the last step, if it is not saved yet."""
        if self._latest is not None:
            try:
                self._latest.save(self.path)
            except OSError as problem:
                if not self._warned:
                    logger.warning("%s cannot be written, the run is not kept: %s", self.path, problem.strerror)
                self._warned = True
            else:
                self._latest = None
            self._when = time.monotonic()
