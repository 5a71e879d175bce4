"""How closely to fit the data, and when: the log-likelihoods of MLEM, up to where the truth is expected."""

from __future__ import annotations

import bisect
import logging
import math
import warnings
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...engines.em import em_update
from ...engines.objective import Objective
from .split_half import truth_log_likelihood

logger = logging.getLogger(__name__)

REFERENCE_ITERATION = 5


@dataclass
class LikelihoodSchedule:
    r"""Log-likelihoods of MLEM from the uniform image, truncated at a target.

    ``at(fraction)`` is the log-likelihood at MLEM iteration ``fraction * num_iterations``, linear between iterations:
    the target of the noise level that ends at this fraction of the chain (Webber et al. 2025, arXiv:2412.04339).

    The target can be given, as a number or as an MLEM iteration. Otherwise it is the log-likelihood of the true image,
    which is what a posterior sample has: a better fit is a fit to noise.

    ``"split-half"``, if the objective has an even number of subsets: estimated for this very measurement from two
    halves of the data, see :func:`~sirf_diffusion.reconstructors.diffusion.split_half.truth_log_likelihood`.

    ``"expected"`` otherwise: :math:`E - m\,\mathrm{SD}` with mean and standard deviation over measurements, :math:`E
    = L(y; y) - \sum_i e(q_i)`, :math:`e(q) = E[\mathrm{KL}(Y, q)]` for :math:`Y \sim \mathrm{Poisson}(q)`, about 1/2
    per bin, at the expected counts ``q`` of the fifth MLEM image. The standard deviation, about
    :math:`\sqrt{\mathrm{bins} / 2}`, can be several iterations, and errors of the model, such as in the scatter
    estimate, shift ``E``.

    Parameters
    ----------
    values
        :math:`L` of MLEM iterations 0, 1, ..., non-decreasing.
    num_iterations
        Iteration, possibly fractional, where the schedule ends.
    target
        Log-likelihood there.
    rule
        How the target was chosen: ``"given"``, ``"split-half"`` or ``"expected"``.
    image
        The last MLEM image; None if the schedule was restored from its numbers.
    """

    values: list[float]
    num_iterations: float
    target: float
    rule: str = "given"
    image: Tensor | None = field(default=None, repr=False, compare=False)

    def at(self, fraction: float) -> float:
        """Log-likelihood at a fraction in [0, 1] of the way."""
        return _interpolated(self.values, fraction * self.num_iterations)

    def to_dict(self) -> dict[str, Any]:
        """The numbers, ready for JSON."""
        return {name: value for name, value in vars(self).items() if name != "image"}

    @classmethod
    def compute(
        cls,
        objective: Objective,
        target: float | None = None,
        num_em_iterations: float | None = None,
        margin: float = 1.0,
        num_em_iterations_max: int = 50,
    ) -> LikelihoodSchedule:
        """Run MLEM until the target is reached: one forward and one back projection per iteration, one forward to end.

        Parameters
        ----------
        objective
            The log-likelihood; all data are used at every iteration.
        target, num_em_iterations
            Where to end; at most one of them. With neither, the truth's log-likelihood is estimated.
        margin
            ``m``, standard deviations below the expected log-likelihood of the truth.
        num_em_iterations_max
            Where to end at the latest.

        Warns
        -----
        RuntimeWarning
            If the iterations end before the target is reached.
        """
        if num_em_iterations is not None and num_em_iterations > num_em_iterations_max:
            raise ValueError(
                f"num_em_iterations = {num_em_iterations:g} exceeds num_em_iterations_max = {num_em_iterations_max}"
            )
        rule = "given"
        if target is None and num_em_iterations is None:
            rule = "expected" if objective.num_subsets % 2 else "split-half"
        if rule == "split-half":
            target = truth_log_likelihood(objective)
        elif rule == "expected":
            logger.warning(
                "the likelihood's target is the expectation over measurements, which can be off by several iterations: "
                "an objective with an even number of subsets allows a better estimate"
            )
        last = num_em_iterations_max if num_em_iterations is None else math.ceil(num_em_iterations)
        x, values = objective.uniform_image(), []
        for iteration in range(last + 1):
            evaluation = objective.at(x)
            # MLEM never lowers the likelihood; rounding may.
            values.append(max(float(evaluation.value), values[-1] if values else -math.inf))
            if rule == "expected" and iteration == min(REFERENCE_ITERATION, last):
                expected, deviation = objective.expected_log_likelihood(x)
                target = expected - margin * deviation
            if iteration == last or (target is not None and values[-1] >= target):
                break
            x = em_update(objective, x, evaluation=evaluation)
        if num_em_iterations is not None:
            end, target = float(num_em_iterations), _interpolated(values, num_em_iterations)
        else:
            end, target = _ending(values, target)
        logger.info("likelihood schedule: %.2f MLEM iterations, target %.8g (%s)", end, target, rule)
        return cls(values, end, target, rule, x)


def _ending(values: list[float], target: float) -> tuple[float, float]:
    """Fractional iteration at which the target is reached, and the target; the last ones there are if it is not."""
    if target <= values[0]:
        return 0.0, values[0]
    if target > values[-1]:
        warnings.warn(
            f"{len(values) - 1} MLEM iterations reach a likelihood of {values[-1]:.8g}, not the target {target:.8g}: "
            "the schedule ends there. Raise num_em_iterations_max, or check the background and the system model",
            RuntimeWarning,
            stacklevel=4,
        )
        return float(len(values) - 1), values[-1]
    above = bisect.bisect_left(values, target)
    return above - 1 + (target - values[above - 1]) / (values[above] - values[above - 1]), target


def _interpolated(values: list[float], position: float) -> float:
    below = min(int(position), len(values) - 1)
    above = min(below + 1, len(values) - 1)
    return values[below] + (position - below) * (values[above] - values[below])
