"""The anchored and the likelihood-scheduled objective function, for people who write their own loops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..engines.objective import Evaluation, Objective
from ..priors import AnchorPenalty
from ..reconstructors.diffusion.hqs import HQSReconstructor
from ..reconstructors.diffusion.lisch import LikelihoodScheduledReconstructor
from ..reconstructors.diffusion.loop import DiffusionReconstructor
from .stepwise import StepwiseObjective

if TYPE_CHECKING:
    from ..models.score_model import ScoreModel
    from ..reconstructors.diffusion.likelihood_schedule import LikelihoodSchedule


class HQSObjective(StepwiseObjective):
    r"""The likelihood with a pull to the denoised image, as in half-quadratic splitting.

    .. math:: \Phi_k(x) = L(x) - \frac{\rho_k}{2} \lVert x - v \rVert^2, \qquad \rho_k = \beta / (c\,\sigma_k)^2

    ``v`` is the denoised image at noise level :math:`\sigma_k`. The objective is concave; a data step may stop long
    before its maximum. A subset has its own share of the likelihood and ``1 / num_subsets`` of the pull. The scheme is
    that of :class:`~sirf_diffusion.reconstructors.diffusion.hqs.HQSReconstructor`.

    The parameters are those of :class:`StepwiseObjective`, and ``beta``, the weight of the prior.
    """

    @property
    def anchor_strength(self) -> float:
        r""":math:`\rho_k`, counts per image unit squared."""
        return self._ready().consistency.beta / (self.intensity_scale * self.noise_level) ** 2

    def _sampler(self, objective: Objective, model: ScoreModel, settings: dict[str, Any]) -> DiffusionReconstructor:
        return HQSReconstructor(objective, model, **settings)

    def _value(self, x: Tensor, subset: int | None) -> float:
        pull = self._share(subset) * self._pull().value(x)
        return float(self._likelihood().value(x, subset) - pull)

    def _gradient(self, x: Tensor, subset: int | None) -> Tensor:
        return self._likelihood().gradient(x, subset) - self._share(subset) * self._pull().gradient(x)

    def _pull(self) -> AnchorPenalty:
        return AnchorPenalty(self._level_image(), self.anchor_strength)

    def _share(self, subset: int | None) -> float:
        return 1.0 if subset is None else 1.0 / self._likelihood().num_subsets


class LikelihoodScheduledObjective(StepwiseObjective):
    r"""The likelihood up to the value that a schedule allows at this noise level, and flat beyond it.

    .. math:: \Phi_k(x) = \min(L(x), L_k)

    From the denoised image an ascent moves as long as :math:`L(x) < L_k`; then the gradient is zero and
    :meth:`reached` is true: time to :meth:`advance`. An ascent in small steps, or one that interpolates its last step,
    meets :math:`L_k` and does not overshoot it. The scheme is that of
    :class:`~sirf_diffusion.reconstructors.diffusion.lisch.LikelihoodScheduledReconstructor` (Webber et al. 2025,
    arXiv:2412.04339).

    The gradient of a subset is that of the subset's likelihood, or zero where *all data* reach :math:`L_k`. Knowing
    that costs a forward projection of all data, unless the same image was asked about just before: with many subsets
    ask ``reached(x)`` once per epoch, and take gradients of the log-likelihood itself in between.

    The parameters are those of :class:`StepwiseObjective`; ``target``, ``num_em_iterations``, ``margin`` and
    ``num_em_iterations_max`` say where the schedule ends, and ``schedule_exponent`` how early it rises: 1 unless given,
    as published, because a loop of your own has no anchor that an early schedule needs.
    """

    _last: tuple[Tensor, Evaluation] | None = None

    def set_up(self, image: Any = None) -> None:
        """Compute the schedule, and go to the first noise level (also in order to start again)."""
        self._last = None
        super().set_up(image)

    @property
    def schedule(self) -> LikelihoodSchedule:
        return self._ready().consistency.schedule

    @property
    def target(self) -> float:
        """:math:`L_k`, the log-likelihood at which the present noise level ends."""
        exponent = self._ready().consistency.schedule_exponent
        return self.schedule.at(((self.step_num + 1) / self.num_steps) ** exponent)

    def log_likelihood(self, image: Any) -> float:
        """``L(x)``, not cut off at the target."""
        return self._likelihood_at(self._tensor(image))

    def reached(self, image: Any) -> bool:
        """Whether an image fits the data as closely as this noise level asks for."""
        return self._reached(self._tensor(image))

    def _sampler(self, objective: Objective, model: ScoreModel, settings: dict[str, Any]) -> DiffusionReconstructor:
        return LikelihoodScheduledReconstructor(objective, model, **{"schedule_exponent": 1.0, **settings})

    def _value(self, x: Tensor, subset: int | None) -> float:
        if subset is not None:
            raise NotImplementedError("the schedule is one of the likelihood of all data: subsets have no value")
        return min(self._likelihood_at(x), self.target)

    def _gradient(self, x: Tensor, subset: int | None) -> Tensor:
        if self._reached(x):
            return torch.zeros_like(x)
        return self._evaluation(x).gradient() if subset is None else self._likelihood().gradient(x, subset)

    def _reached(self, x: Tensor) -> bool:
        # Rounding in float32 projections must not decide whether a target counts as met.
        return self._likelihood_at(x) >= self.target - 1e-9 * abs(self.target)

    def _likelihood_at(self, x: Tensor) -> float:
        return float(self._evaluation(x).value)

    def _evaluation(self, x: Tensor) -> Evaluation:
        """Of the image asked about last, if it is the same: value and gradient then share one forward projection."""
        if self._last is None or not torch.equal(self._last[0], x):
            kept = x.clone()  # the user's loop may change its image, which the evaluation still looks at
            self._last = (kept, self._likelihood().at(kept))
        return self._last[1]
