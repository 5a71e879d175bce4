"""What a diffusion run keeps in a checkpoint, and how it goes on from one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..base import Reconstructor
from ..records import Cost
from .chain import Chain
from .checkpoint import Checkpoint
from .consistency import Adaptation, DataConsistency

if TYPE_CHECKING:
    from ...models.score_model import ScoreModel

_ADAPTED = "adaptation."


class ResumableReconstructor(Reconstructor):
    """A diffusion run that can be stored at any step: base of `DiffusionReconstructor`."""

    model: ScoreModel
    consistency: DataConsistency | None
    adaptation: Adaptation | None
    noise: str
    num_steps: int
    members: tuple[int, ...] | None = None
    resume_from: str | Path | None
    _resumed: Checkpoint | None = None
    _preparation: Cost
    _earlier: Cost
    _steps: list[dict[str, Any]]

    def _kept(self, part: str) -> Any:
        """What the checkpoint has of a part; None in a fresh run."""
        return None if self._resumed is None else self._resumed.metadata[part]

    def _set_up_data_step(self) -> None:
        if self.consistency is not None:
            self.consistency.set_up(self.objective, self._kept("consistency"))

    def _set_up_adaptation(self) -> None:
        if self.adaptation is not None:
            fixed = (self.objective, self.model, self.consistency, self.num_steps)
            self.adaptation.set_up(*fixed, self._kept("adaptation"))
            self.settings["adaptation"] = self.adaptation.settings

    def _checkpoint(self, chain: Chain) -> Checkpoint:
        adapted: dict[str, Tensor] = {}
        if self.adaptation is not None:
            adapted = {f"{_ADAPTED}{name}": tensor for name, tensor in self.adaptation.tensors().items()}
        return Checkpoint(
            chain.tensors() | adapted,
            {
                "fingerprint": self._fingerprint(),
                "intensity_scale": float(self.model.intensity_scale),
                "consistency": {} if self.consistency is None else self.consistency.state(),
                "adaptation": None if self.adaptation is None else self.adaptation.state(),
                "preparation": asdict(self._preparation),
                "cost": asdict(self._cost()),
                "step": chain.step,
                "steps": self._steps,
                "log_likelihood": self._trace,
            },
        )

    def _resume(self, checkpoint: Checkpoint) -> Chain:
        self._earlier = Cost(**checkpoint.metadata["cost"])
        self._steps = [dict(entry) for entry in checkpoint.metadata["steps"]]
        self._trace = list(checkpoint.metadata["log_likelihood"])
        if self.adaptation is not None:
            kept = {n.removeprefix(_ADAPTED): t for n, t in checkpoint.tensors.items() if n.startswith(_ADAPTED)}
            self.adaptation.resume(kept, checkpoint.metadata["adaptation"])
        device = self.objective.sensitivity().device
        metadata = checkpoint.metadata
        return Chain.of(checkpoint.tensors, metadata["step"], self.model.device, device, self.noise, self.members)

    def _fingerprint(self) -> dict[str, Any]:
        fingerprint = {
            "method": self.method,
            "model": self.model.hash,
            "conditioning": self.model.conditioning,
            "precision": self.model.precision,
            "intensity_scale": float(self.model.intensity_scale),
            "image_shape": list(self.objective.geometry.shape),
            "sensitivity": float(self.objective.sensitivity().double().sum()),
            "mean_activity": float(self.objective.uniform_image().max()),
            **self.settings,
        }
        return json.loads(json.dumps(fingerprint))
