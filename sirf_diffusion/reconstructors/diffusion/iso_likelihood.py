"""Iso-likelihood sampling: images from the prior that have exactly the log-likelihood of an MLEM iteration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...engines.em import em_update
from ..settings import real
from .consistency import DataConsistency, DataStepResult, DiffusionStep
from .lisch import AscentToSchedule, LikelihoodScheduledReconstructor

#: Relative distance from the target that is left, and most EM steps and bisections to get there.
_TOLERANCE, _MOST_UPDATES, _MOST_CUTS = 1e-7, 200, 40


@dataclass(frozen=True)
class AscentOntoLevelSet(AscentToSchedule):
    r"""The published ascent, and after the last step each sample is moved onto :math:`L(x) = L(x_{MLEM, N})`.

    A sample below it takes EM steps; then, or if it lies above, it is cut back on the line to the last image below, the
    uniform image if there is no other, by bisection.
    """

    name: ClassVar[str] = "ascent onto an iso-likelihood surface"

    num_em_iterations: float | None = real(
        None, "the MLEM iteration, possibly fractional, whose log-likelihood they have; of the truth if not given"
    )
    schedule_exponent: float = real(1.0, "as of lisch")
    anchor_strength: float = real(0.0, "as of lisch")

    def __call__(self, prior_image: Tensor, step: DiffusionStep) -> DataStepResult:
        """Ascend; at the last noise level, onto the surface."""
        result = super().__call__(prior_image, step)
        if step.index + 1 < step.num_steps:
            return result
        images = [self._onto(x[None], result.target) for x in result.x]
        return replace(result, x=torch.cat(images), after=[float(self.objective.value(x[0])) for x in images])

    def _tell_missed(self, *what: Any) -> None:
        """Nothing is missed: EM steps follow."""

    def _onto(self, x: Tensor, target: float) -> Tensor:
        value, tolerance = float(self.objective.value(x[0])), _TOLERANCE * abs(target)
        low = torch.where(self.inside, x.mean(), 0.0)[None]
        low_value = float(self.objective.value(low[0]))
        for _ in range(_MOST_UPDATES):
            if value >= target:
                break
            low, low_value = x, value
            x = em_update(self.objective, x)
            value = float(self.objective.value(x[0]))
        for _ in range(_MOST_CUTS):
            if abs(value - target) <= tolerance or low_value >= target:
                break
            middle = torch.lerp(low, x, 0.5)
            middle_value = float(self.objective.value(middle[0]))
            if middle_value >= target:
                x, value = middle, middle_value
            else:
                low = middle
        return x


class IsoLikelihoodReconstructor(LikelihoodScheduledReconstructor):
    """Samples from the prior that fit the data exactly as well as MLEM iteration ``num_em_iterations`` does.

    Each is as consistent with the data as the early-stopped MLEM image, and as likely an image as the model knows; what
    differs between them, these data do not tell at that iteration. Webber et al. 2025, IEEE TMI 44(11):4445.
    """

    method: ClassVar[str] = "iso-likelihood"
    title: ClassVar[str] = "Iso-likelihood"
    about: ClassVar[str] = "samples with exactly the log-likelihood of an MLEM iteration"
    data_step: ClassVar[type[DataConsistency]] = AscentOntoLevelSet
