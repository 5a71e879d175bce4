"""Likelihood-scheduled sampling: at every noise level, fit the data exactly as closely as an MLEM iteration would."""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...engines.em import RELATIVE_FLOOR
from ...engines.objective import Objective
from ..settings import count, real
from .consistency import DataConsistency, DataStepResult, DiffusionStep, smooth_direction
from .likelihood_schedule import LikelihoodSchedule
from .loop import DiffusionReconstructor
from .sampling import ReusingSampling

logger = logging.getLogger(__name__)

#: With a pull to the denoised image: where the next update's share of the gain ends the ascent.
CONVERGED = 0.1


@dataclass(frozen=True)
class AscentToSchedule(DataConsistency):
    r"""EM-type ascent until the log-likelihood reaches the schedule's value for this noise level.

    .. math::
        x \leftarrow x + \delta\, \frac{x}{s + \rho_k x} \left[ \nabla L(x) + \rho_k (v - x) \right]
        \quad \text{while } L(x) < L_k, \qquad \rho_k = \frac{\lambda}{c^2 (\sigma_k^2 - \sigma_{k+1}^2)}

    from the denoised image ``v`` at relative noise level :math:`\sigma_k`, with the update smoothed if ``smoothing`` is
    positive. :math:`L_k` is the log-likelihood of MLEM at iteration :math:`N\, ((k + 1) / K)^e` for level ``k`` of
    ``K``, with ``N`` the iteration where the schedule ends and ``e`` the ``schedule_exponent``. Below 1, coarse
    structures, which the network cannot add later, are taken from the data while the noise level is high; at more
    projections.

    :math:`\lambda` is the ``anchor_strength``; the published method has 0. Then the likelihood is met at the last noise
    levels by fitting noise, which the network no longer removes, and true structures stay too smooth. With an anchor,
    the data move an image by no more than the denoiser's uncertainty: :math:`L_k` may lie out of reach, and the ascent
    ends where an update would gain less than a tenth of what those before it have gained. Anchored to the variance that
    a step removes, a chain of many small steps takes about as much from the data as one of few large steps.

    The likelihood is tested before anything is projected back, so an image that already fits costs one forward
    projection. Samples that have arrived drop out of the projections. The last update is shortened to where the
    likelihood, interpolated between its two ends, meets :math:`L_k`, so that the step size does not decide by how
    much the target is overshot. An update that lowers what is ascended is halved. No voxel loses more than half of what
    plain EM leaves it, whatever :math:`\delta`. More than ``4 N / delta + 10`` updates are not made; missing
    the last target that way gives a warning, missing another is logged, and the record has all of them.
    """

    name: ClassVar[str] = "ascent to a likelihood schedule"

    target: float | None = real(
        None, "log-likelihood at the end of the schedule; that expected of the truth if not given", minimum=-math.inf
    )
    num_em_iterations: float | None = real(
        None, "instead of `target`: the MLEM iteration, possibly fractional, whose log-likelihood ends the schedule"
    )
    margin: float = real(
        1.0,
        "where the data cannot be halved: standard deviations below the expected log-likelihood at which to end",
        minimum=-math.inf,
    )
    step_size: float = real(
        1.8,
        "over-relaxation of the EM steps, below 2; changes cost, hardly the image",
        maximum=2.0,
        open_below=True,
        open_above=True,
    )
    num_em_iterations_max: int = count(50, "most MLEM iterations spent on the schedule; it ends there at the latest")
    smoothing: float = real(0.0, "smoothness of the steps in mm, see [below](#smooth-steps); 0 is EM's step")
    schedule_exponent: float = real(
        0.0,
        "how early the schedule rises: noise level k of K ends at MLEM iteration `N (k / K)^exponent`; 1 is the "
        "published schedule, 0 asks for the target at every level",
        published=1.0,
    )
    anchor_strength: float = real(
        2.5,
        "how strongly the denoised image holds the data step; 0 is the published step",
        volumes=0.4,
        balanced=1.5,
        balanced_volumes=0.4,
        published=0.0,
    )
    schedule: LikelihoodSchedule = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target is not None and self.num_em_iterations is not None:
            raise ValueError("give target or num_em_iterations, not both")

    def set_up(self, objective: Objective, state: dict[str, Any] | None = None) -> None:
        """Compute the schedule, or take it over."""
        super().set_up(objective)
        if state is None:
            ending = (self.target, self.num_em_iterations, self.margin, self.num_em_iterations_max)
            self.keep(schedule=LikelihoodSchedule.compute(objective, *ending), _warned=False)
        else:
            self.keep(schedule=LikelihoodSchedule(**state), _warned=False)

    def __call__(self, prior_image: Tensor, step: DiffusionStep) -> DataStepResult:
        """Ascend from the denoised image; each sample stops at the schedule's value."""
        target = self.schedule.at(((step.index + 1) / step.num_steps) ** self.schedule_exponent)
        num_max = math.ceil(4 * self.schedule.num_iterations / self.step_size) + 10
        ascent = _Ascent(self, self.admissible(prior_image), target, step)
        while ascent.active.numel():
            ascent.update(num_max)
        if ascent.missed:
            self._tell_missed(step, target, min(ascent.after), num_max)
        return DataStepResult(ascent.x, ascent.before, ascent.after, target, ascent.count.tolist())

    def _tell_missed(self, step: DiffusionStep, target: float, found: float, num_max: int) -> None:
        message = (
            f"step {step.index + 1} of {step.num_steps}: the likelihood's target {target:.8g} was not reached in "
            f"{num_max} updates (found {found:.8g})"
        )
        if step.index + 1 < step.num_steps:
            logger.info("%s; later steps may make up for it", message)
        elif not vars(self)["_warned"]:
            self.keep(_warned=True)
            warnings.warn(f"{message}: too high for this model, or step_size too small", RuntimeWarning, stacklevel=3)

    def summary(self) -> dict[str, Any]:
        """The schedule."""
        return {"schedule": self.schedule.to_dict()}

    def state(self) -> dict[str, Any]:
        """The schedule, whose projections a resumed run must not repeat."""
        return self.schedule.to_dict()

    def early_image(self) -> Tensor | None:
        """The last MLEM image of the schedule."""
        return self.schedule.image


class LikelihoodScheduledReconstructor(DiffusionReconstructor):
    """PET-LiSch: the diffusion loop with :class:`AscentToSchedule` as its data step.

    Idea and name: Webber et al. 2025, IEEE TMI 44(11):4445, arXiv:2412.04339. What matters is one number, how closely
    the result fits the data. By default it is as closely as the true image does, estimated from the data, see
    :class:`~sirf_diffusion.reconstructors.diffusion.likelihood_schedule.LikelihoodSchedule`; where an engine cannot
    divide the data by itself, give it an objective with an even number of subsets for that. The chain does not use
    subsets.
    """

    method: ClassVar[str] = "lisch"
    has_speeds: ClassVar[bool] = True
    title: ClassVar[str] = "LiSch"
    about: ClassVar[str] = "diffusion sampling to a likelihood schedule; no strength to tune"
    references: ClassVar[tuple[str, ...]] = ("Webber2025", "Song2020")
    sampling: ClassVar[type[ReusingSampling]] = ReusingSampling
    data_step: ClassVar[type[DataConsistency]] = AscentToSchedule
    #: The end of the schedule is estimated from two halves of the data; the sampling itself uses all of them.
    num_subsets: ClassVar[int] = 2

    @property
    def schedule(self) -> LikelihoodSchedule:
        """The likelihood schedule; exists after :meth:`set_up`."""
        return self.consistency.schedule


class _Ascent:
    """Ascent of several images, each to the target and no further. Only those still ``active`` are projected."""

    def __init__(self, parent: AscentToSchedule, start: Tensor, target: float, step: DiffusionStep) -> None:
        number = len(start)
        self.x, self.target = start, target
        self.objective, self.step_size = parent.objective, parent.step_size
        self.smoothing, self.sigma = parent.smoothing, step.sigma
        self.floor = RELATIVE_FLOOR * parent.intensity_scale * parent.inside
        self.sensitivity = torch.where(parent.inside, parent.sensitivity, torch.ones_like(parent.sensitivity))
        if parent.covered is not None:  # no step elsewhere
            self.sensitivity = self.sensitivity.masked_fill(~parent.covered, math.inf)
        self.rho = parent.anchor_strength / (parent.intensity_scale**2 * (step.sigma**2 - step.sigma_next**2))
        self.anchor = start.clone() if self.rho else start
        self.active = torch.arange(number)
        self.count = torch.zeros(number, dtype=torch.long)
        self.base: list[Tensor | None] = [None] * number  # where the present update of a sample started
        self.base_value, self.slope = [0.0] * number, [0.0] * number
        self.base_height, self.gained = [0.0] * number, [0.0] * number
        self.before, self.after = [0.0] * number, [0.0] * number
        self.missed = False
        # Rounding in float32 projections must not decide whether a target counts as met.
        self.tolerance = 1e-9 * abs(target)

    def update(self, num_max: int) -> None:
        """Evaluate the active images once; those that are below the target move on."""
        samples = self.active.tolist()
        evaluation = self.objective.at(self.x if len(samples) == len(self.x) else self.x[self.active])
        values = evaluation.value.tolist()
        heights = [v - self._pull(k) for k, v in zip(samples, values, strict=True)]
        fell = [self.base[k] is not None and h < self.base_height[k] for k, h in zip(samples, heights, strict=True)]
        done = [v >= self.target - self.tolerance and not f for v, f in zip(values, fell, strict=True)]
        spent = [int(self.count[k]) >= num_max for k in samples]
        ascending = torch.tensor([not (f or d or s) for f, d, s in zip(fell, done, spent, strict=True)])
        # Before any image changes: an engine may still look at the image it was given.
        gradients = iter(evaluation.gradient(ascending.to(self.x.device)) if bool(ascending.any()) else ())
        remaining = []
        for k, value, height, f, d, s in zip(samples, values, heights, fell, done, spent, strict=True):
            if self.base[k] is None and not self.count[k]:
                self.before[k] = value
            if d:
                self.after[k] = self._step_back(k, value)
            elif f:
                self.after[k] = self.base_value[k]
                self._halve(k, give_up=s)
            else:
                self.after[k] = value
                d = not s and not self._ascend(k, value, height, next(gradients))
            self.missed |= s and not d
            if not (d or s):
                self.count[k] += 1
                remaining.append(k)
        self.active = torch.tensor(remaining, dtype=torch.long)

    def _pull(self, k: int) -> float:
        """What the anchor takes from the log-likelihood at a sample's present image."""
        if not self.rho:
            return 0.0
        return 0.5 * self.rho * float((self.x[k] - self.anchor[k]).square().sum(dtype=torch.float64))

    def _ascend(self, k: int, value: float, height: float, gradient: Tensor) -> bool:
        """Move a sample; False if there is little left to gain."""
        x = self.x[k].clone()
        uphill = gradient + self.rho * (self.anchor[k] - x) if self.rho else gradient
        preconditioner = x / (self.sensitivity + self.rho * x)
        update = smooth_direction(preconditioner, uphill, self.objective.geometry, self.smoothing, self.sigma)
        if self.rho:
            gain = 0.5 * float(torch.sum(uphill * update, dtype=torch.float64))
            if gain < CONVERGED * self.gained[k]:
                return False
            self.gained[k] += gain
        self.base[k], self.base_value[k], self.base_height[k] = x, value, height
        lowest = torch.maximum(0.5 * (x + update), self.floor)
        self.x[k] = torch.maximum(x + self.step_size * update, lowest)
        self.slope[k] = float(torch.sum(gradient * (self.x[k] - self.base[k]), dtype=torch.float64))
        return True

    def _halve(self, k: int, give_up: bool) -> None:
        share = 0.0 if give_up else 0.5
        self.x[k] = torch.lerp(self.base[k], self.x[k], share)
        self.slope[k] *= share

    def _step_back(self, k: int, value: float) -> float:
        """Shorten the last update to meet the target; returns the log-likelihood there."""
        if self.base[k] is None or value <= self.target:
            return value
        gained, slope = value - self.base_value[k], self.slope[k]
        share = share_of_step(self.target - self.base_value[k], gained, slope)
        self.x[k] = torch.lerp(self.base[k], self.x[k], share)
        return self.base_value[k] + share * slope + share * share * (gained - slope)


def share_of_step(wanted: float, gained: float, slope: float) -> float:
    """Share ``a`` of a step that gained ``gained`` in log-likelihood at which it has gained ``wanted``, or little more.

    ``0 < wanted <= gained``; ``slope`` is the derivative at the start. Along a line the log-likelihood is concave:
    the chord's share is always enough, and too much by up to half of ``gained``. The parabola's share is right to a
    few per cent of ``gained``, either way. Four fifths of the way from chord to parabola is enough in practice.
    """
    chord = wanted / gained
    curvature = gained - slope
    if curvature >= 0:  # only by rounding
        return chord
    parabola = 2 * wanted / (slope + math.sqrt(max(slope * slope + 4 * curvature * wanted, 0.0)))
    return chord + 0.8 * (min(parabola, chord) - chord)
