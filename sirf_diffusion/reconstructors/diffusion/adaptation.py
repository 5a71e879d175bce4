"""The adaptation seam of the diffusion loop: fit the prior to the measured data while sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ...engines.objective import Objective
from .consistency import DataConsistency, DiffusionStep

if TYPE_CHECKING:
    from ...models.score_model import ScoreModel


class Adaptation:
    """A way to fit the prior to the data while sampling.

    The loop calls :meth:`set_up` (or, in a resumed run, :meth:`restore`) once, :meth:`begin` (or :meth:`resume`) at
    the start of each run, then the object itself at every noise level, before the images are denoised. The model
    given to the reconstructor must stay as it is: an adaptation that changes weights works on its own copy.
    """

    name: ClassVar[str] = ""

    def set_up(
        self, objective: Objective, model: ScoreModel, consistency: DataConsistency | None, num_steps: int
    ) -> None:
        """Take what stays fixed; may project."""

    def restore(
        self,
        objective: Objective,
        model: ScoreModel,
        consistency: DataConsistency | None,
        num_steps: int,
        state: dict[str, Any],
    ) -> None:
        """:meth:`set_up` of a resumed run, from :meth:`state`, without its projections."""
        self.set_up(objective, model, consistency, num_steps)

    def begin(self, model: ScoreModel, num_samples: int, batch_size: int) -> ScoreModel:
        """Forget earlier runs; returns the model for the first step."""
        return model

    def __call__(self, model: ScoreModel, u: Tensor, step: DiffusionStep) -> ScoreModel | None:
        """Called at every noise level with the model and the noisy latent images ``[samples, z, y, x]``.

        Returns the model that denoises them and takes the steps that follow, or None to keep the present one. All
        samples share it.
        """

    @property
    def settings(self) -> dict[str, Any]:
        """Parameters, ready for JSON."""
        return {}

    def summary(self) -> dict[str, Any]:
        """What the run's record should keep, ready for JSON."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides :meth:`tensors`, ready for JSON."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """What a resumed run needs in full precision."""
        return {}

    def resume(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Go on where :meth:`tensors` and :meth:`state` were taken; after :meth:`begin`."""

    @property
    def loss(self) -> float | None:
        """The loss before the last update, None if there was none at this noise level."""
        return None
