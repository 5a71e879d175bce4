"""PET-DEFT: a frozen score model, steered at every noise level by a network that sees the likelihood's gradient."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...engines.em import em_update, update_order
from ...engines.objective import Objective
from ...models.h_transform import INCREMENTS, HTransform, non_negative
from ..settings import choice, count, flag, real, setting
from .chain import Chain
from .consistency import DataConsistency, DataStepResult, DiffusionStep, orientation_of_step
from .lisch import AscentToSchedule
from .loop import Denoised, DiffusionReconstructor
from .sampling import SOLVERS, Sampling


def _name_or_file(name: str, value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise ValueError(f"{name} must be the name of a bundled h-transform or a file, found {value!r}")
    return os.fspath(value)


@dataclass(frozen=True)
class SteeredSampling(Sampling):
    """Settings of the loop, for few steps; the h-transform among them."""

    num_steps: int = count(5, "noise levels, 5 to 100; more cost time and change little", minimum=2)
    eta: float = real(0.5, "share of fresh noise, 0 to 1", maximum=1.0)
    crop: bool = flag(True, "whether the networks look at the object only, as in training")
    solver: str = choice("multistep", "order of a step: `ddim` the first; `multistep` the second", SOLVERS)
    h_transform: str = setting(
        "brain-fdg-deft", "the network that steers: a bundled name, or a file of `train --supervised`",
        _name_or_file, "name or file", volumes="brain-fdg-deft-3d",
    )  # fmt: skip


@dataclass(frozen=True)
class FinalConsistency(AscentToSchedule):
    """Nothing, but after the last noise level, if wanted, the ascent to the likelihood of the truth.

    The network has used the data already. Where they are unlike those of its training, the ascent puts right what it
    missed.
    """

    name: ClassVar[str] = "ascent after the last noise level"

    final_consistency: bool = flag(False, "after the last noise level, ascend to the likelihood's target as lisch does")

    def set_up(self, objective: Objective, state: dict[str, Any] | None = None) -> None:
        """Compute the schedule, if it is wanted, or take it over."""
        if self.final_consistency:
            super().set_up(objective, state)
        else:
            DataConsistency.set_up(self, objective)

    def __call__(self, prior_image: Tensor, step: DiffusionStep) -> DataStepResult:
        """Ascend after the last noise level."""
        if self.final_consistency and step.index + 1 == step.num_steps:
            return super().__call__(prior_image, step)
        return DataStepResult(prior_image.clamp(min=0))

    def summary(self) -> dict[str, Any]:
        """The schedule, if there is one."""
        return super().summary() if self.final_consistency else {}

    def state(self) -> dict[str, Any]:
        """As `summary`, for a resumed run."""
        return super().state() if self.final_consistency else {}

    def early_image(self) -> Tensor | None:
        """The last MLEM image of the schedule, if there is one."""
        return super().early_image() if self.final_consistency else None


class DEFTReconstructor(DiffusionReconstructor):
    r"""PET-DEFT: the diffusion loop whose clean images are those of an h-transform beside the score model.

    .. math:: v = D(u_t), \quad e = v \nabla L / s, \quad u_0 = [\hat u_0(u_t, v, e)]_+, \quad
              \epsilon = (u_t - \gamma u_0) / \nu

    with :math:`\hat u_0` of `sirf_diffusion.models.h_transform.HTransform`: one network pass more than unconditional
    sampling, and one forward and one back projection, at each noise level. The noise is recomputed after the clip, so
    that image and noise remain a pair. Webber et al. 2025, MICCAI, arXiv:2506.24034.

    The network was trained at certain counts and on a certain scanner; other data give a warning, which the record has
    under ``h_transform``. Parameters are those of `DiffusionReconstructor`; ``model`` must be the score model that the
    h-transform was trained with.
    """

    method: ClassVar[str] = "deft"
    title: ClassVar[str] = "DEFT"
    about: ClassVar[str] = "supervised: five denoising steps that a trained network steers by the data"
    references: ClassVar[tuple[str, ...]] = ("Webber2025deft", "Denker2024", "Song2020")
    sampling: ClassVar[type[Sampling]] = SteeredSampling
    data_step: ClassVar[type[DataConsistency]] = FinalConsistency
    #: For the schedule of the final consistency, as of lisch.
    num_subsets: ClassVar[int] = 2
    default_model: ClassVar[str] = "brain-fdg"

    def set_up(self, initial_image: Any = None) -> None:
        """As of `DiffusionReconstructor`; reads the h-transform, and compares the data with those of its training.

        HTransformFileError if its file cannot be used, or belongs to another score model.
        """
        self.h = HTransform.load(self.sampling_settings.h_transform, self.model)  # type: ignore[attr-defined]
        super().set_up(initial_image)
        model, objective = self.model, self.objective
        self._counts = self.h.counts(model, objective.sensitivity())
        #: The same data in the subsets of the increments.
        self._subsets = objective.with_subsets(self.h.config.num_updates or objective.num_subsets)
        early, scanner = model.to_latent(objective.early_image()), objective.describe().get("scanner")
        self.outside: list[str] = self.h.outside(self._counts, early, objective.geometry.shape[0], scanner)

    def process(self) -> DEFTReconstructor:
        """Run the chain; returns the reconstructor itself."""
        super().process()
        self.record["h_transform"] = {"sha256": self.h.sha256, "outside_training": self.outside}
        return self

    def denoise(self, chain: Chain, model: Any) -> Denoised:
        """The clean images that score model and data agree on, not negative, and the noise that goes with them."""
        step = self._level(chain)
        v, _ = model.predict(chain.u, step.t, orientation_of_step(step.index, self.num_steps))
        parts = [self._increments(x) for x in model.to_image(v).split(self.batch_size)]
        increments = [model.to_latent(torch.cat(part)).to(v) for part in zip(*parts, strict=True)]
        u0 = self.h.estimate(model, chain.u, v, step.t, increments, self._counts)
        u0, eps = non_negative(model.schedule, chain.u, u0, step.t)
        return Denoised(step, u0, eps, model.to_image(u0).to(self.objective.sensitivity()))

    def _increments(self, image: Tensor) -> list[Tensor]:
        """What one EM update adds to images, image units; and what ordered subsets add, if it is wanted."""
        part = self.consistency
        x = part.admissible(image.to(part.sensitivity))
        gradient = self.objective.gradient(x)
        found = [x * gradient / torch.where(part.inside, part.sensitivity, torch.ones_like(x[0]))]
        if updates := self.h.config.num_updates:
            after, order = x, cycle(update_order(self._subsets.num_subsets))
            for _ in range(INCREMENTS):
                for subset in islice(order, updates):
                    after = em_update(self._subsets, after, subset)
                found.append(after - x)
        return found

    def _starting_image(self) -> Tensor:
        return self._initial if self._given else self.objective.early_image()

    def _fingerprint(self) -> dict[str, Any]:
        return super()._fingerprint() | {"h_transform": self.h.sha256}
