"""What a diffusion run keeps in a checkpoint, and how it goes on from one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...files.outputs import jsonable
from ..base import Reconstructor
from ..checkpoint import Checkpoint
from ..records import Cost
from .chain import Chain
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
    num_samples: int
    members: tuple[int, ...] | None = None
    _preparation: Cost

    def _kept(self, part: str, read: Callable[[Any], Any]) -> Any:
        """What the checkpoint has of a part, read; None in a fresh run."""
        if self._resumed is None:
            return None
        with self._resumed.taken_up():
            return read(self._resumed.metadata[part])

    def _set_up_data_step(self) -> None:
        if self.consistency is not None:
            set_up = partial(self.consistency.set_up, self.objective)
            set_up() if self._resumed is None else self._kept("consistency", set_up)

    def _set_up_adaptation(self) -> None:
        if self.adaptation is not None:
            self.model.coarse = None  # what is adapted to the data is the model itself
            set_up = partial(self.adaptation.set_up, self.objective, self.model, self.consistency, self.num_steps)
            set_up() if self._resumed is None else self._kept("adaptation", set_up)
            self.settings["adaptation"] = self.adaptation.settings

    def _checkpoint(self, chain: Chain) -> Checkpoint:
        adapted: dict[str, Tensor] = {}
        if self.adaptation is not None:
            # Copies, as the network goes on changing.
            adapted = {f"{_ADAPTED}{name}": tensor.clone() for name, tensor in self.adaptation.tensors().items()}
        return Checkpoint(
            chain.tensors() | adapted,
            {
                **self._kept_so_far(chain.step),
                "intensity_scale": float(self.model.intensity_scale),
                "box": self.model.box,
                "consistency": {} if self.consistency is None else self.consistency.state(),
                "adaptation": None if self.adaptation is None else self.adaptation.state(),
                "preparation": asdict(self._preparation),
            },
        )

    def _resume(self, checkpoint: Checkpoint) -> Chain:
        number = self.num_samples if self.members is None else len(self.members)
        _, step = self._take_over(number)
        tensors, device = checkpoint.tensors, self.objective.sensitivity().device
        with checkpoint.taken_up():
            if self.adaptation is not None:
                kept = {n.removeprefix(_ADAPTED): t for n, t in tensors.items() if n.startswith(_ADAPTED)}
                self.adaptation.resume(kept, checkpoint.metadata["adaptation"])
            model = self.model
            chain = Chain.of(tensors, step, model.device, device, self.noise, self.members, model.window)
            expected = model.to_latent(chain.x.to(chain.u)).shape
            if chain.u.shape != expected or len(chain.generators) != self.num_samples:
                raise ValueError(f"noisy images of shape {tuple(chain.u.shape)}, expected {tuple(expected)}")
            return chain

    def _fingerprint(self) -> dict[str, Any]:
        model = self._of_model()
        return super()._fingerprint() | jsonable({"model": model.pop("hash"), **model})

    def _of_model(self) -> dict[str, Any]:
        """What tells the model, as it is bound, from others."""
        return {
            "hash": self.model.hash,
            "conditioning": self.model.conditioning,
            "precision": self.model.precision,
            "intensity_scale": float(self.model.intensity_scale),
            **({} if self.model.coarse is None else {"coarse": self.model.coarse.describe()}),
        }
