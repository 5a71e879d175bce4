"""Checkpoints of a run: written whole or not at all, without pickle, and refused where they do not belong."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files.outputs import jsonable
from ..files.weights import WeightsFormat
from ..geometry.checks import check_count, check_real
from .records import StepRecord

logger = logging.getLogger(__name__)

_FORMAT = WeightsFormat("a checkpoint of a reconstruction", "sirf_diffusion_checkpoint", "start the run afresh")


@dataclass
class Checkpoint:
    """All that a run needs to go on: tensors (images, chain, generator states) and ``metadata``, written as JSON."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all: a kill leaves the old checkpoint or the new one."""
        _FORMAT.write(path, self.tensors, jsonable(self.metadata))

    @classmethod
    def load(cls, path: str | Path) -> Checkpoint:
        """Read a checkpoint; ``FileNotFoundError`` or, for a file that is not a whole checkpoint, ``ValueError``."""
        metadata, tensors, _ = _FORMAT.read(path)
        del metadata["version"]
        return cls(tensors, metadata)

    def check(self, path: str | Path, expected: dict[str, Any]) -> None:
        """Raise ``ValueError`` naming the first setting in which this run differs from the one that wrote the file."""
        found = self.metadata["fingerprint"]
        for key in sorted(set(found) | set(expected)):
            mine, theirs = expected.get(key), found.get(key)
            same = abs(mine - theirs) <= 1e-6 * abs(theirs) if _both_floats(mine, theirs) else mine == theirs
            if not same:
                raise ValueError(f"checkpoint {path} is of another run: {key} was {theirs!r}, this run has {mine!r}")


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


def _both_floats(a: Any, b: Any) -> bool:
    return isinstance(a, float) and isinstance(b, float)
