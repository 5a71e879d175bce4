"""Checkpoints of a diffusion run: written whole or not at all, without pickle, and refused where they do not belong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...files.weights import WeightsFormat
from ..records import StepRecord

_FORMAT = WeightsFormat("a checkpoint of a diffusion run", "sirf_diffusion_checkpoint", "start the run afresh")


@dataclass
class Checkpoint:
    """All that a diffusion run needs to go on: tensors (chain, images, generator states) and JSON-able ``metadata``."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all: a kill leaves the old checkpoint or the new one."""
        _FORMAT.write(path, self.tensors, self.metadata)

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
    """Callback that saves the run to ``path`` after every ``every``-th step and after the last.

    A run constructed with the same arguments and ``resume_from=path`` goes on from there and gives the result that the
    uninterrupted run gives.

    Parameters
    ----------
    path
        File to write, ``.safetensors``; its folder must exist. An older checkpoint is replaced.
    every
        Steps between two checkpoints.
    """

    def __init__(self, path: str | Path, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, found {every}")
        self.path, self.every = Path(path), every
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"the folder of the checkpoint {self.path} does not exist: make it first")

    def __call__(self, record: StepRecord) -> None:
        """Save if it is time."""
        if record.checkpoint is None:
            raise TypeError(f"{record.method} cannot be resumed: leave CheckpointCallback out")
        if record.step % self.every == 0 or record.step == record.num_steps:
            record.checkpoint().save(self.path)


def _both_floats(a: Any, b: Any) -> bool:
    return isinstance(a, float) and isinstance(b, float)
