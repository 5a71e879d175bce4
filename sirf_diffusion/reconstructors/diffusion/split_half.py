"""The log-likelihood of the unknown true image, estimated from two halves of the data."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...engines.em import em_step
from ...engines.objective import Evaluation, Objective

logger = logging.getLogger(__name__)


def truth_log_likelihood(objective: Objective, iterations: Sequence[int] = (4, 8, 16)) -> float:
    r"""Estimate :math:`L(x_{true})` of the data at hand, in spite of their noise.

    The expectation of :math:`L(x_{true})` over measurements is easily had, but one measurement differs from it by
    about :math:`\sqrt{\mathrm{bins} / 2}`, which can be several MLEM iterations. Most of that difference is seen by
    any image that fits the data. So let :math:`x_a`, :math:`x_b` be ``n`` MLEM iterations on either half of the data,
    :math:`L_a + L_b = L`, and :math:`\bar L` the mean of :math:`L(x_a)` and :math:`L(x_b)`. A half's fit gains on its
    own noise and loses on the other's; to second order, with :math:`H` the linear map from data to fitted data,

    .. math::
        \tfrac12 [L_a(x_a) - L_b(x_a) + L_b(x_b) - L_a(x_b)] &\approx \mathrm{tr} H \\
        2 [L(\tfrac{x_a + x_b}{2}) - \bar L] &\approx \mathrm{tr} H^2 \\
        L(x_{true}) &\approx \bar L - \mathrm{tr} H + \mathrm{tr} H^2 + B_n

    where the noise of the measurement cancels. The bias cost :math:`B_n` of stopping after ``n`` iterations falls
    like a power of ``n`` and is extrapolated to zero from three values of ``n``, each twice the one before.

    Parameters
    ----------
    objective
        Log-likelihood with an even number of subsets; those of even and of odd number are the halves.
    iterations
        Three iteration numbers ``n, 2 n, 4 n``.

    Returns
    -------
    float
        The estimate. In simulated brain slices of 5e4 to 1e6 counts it was within half an MLEM iteration of the
        truth's.

    Raises
    ------
    ValueError
        If the number of subsets is odd.

    Notes
    -----
    Costs ``4 n + 7`` forward and ``4 n`` back projections of all data. Where the engine has no log-likelihoods of
    subsets, differences of theirs are integrals of gradients, and 12 forward and 9 back projections are added.
    """
    if objective.num_subsets % 2:
        raise ValueError(f"an even number of subsets is needed to split the data, found {objective.num_subsets}")
    halves = [_Half(objective, parity) for parity in (0, 1)]
    estimates = []
    for iteration in range(iterations[-1] + 1):
        own = [half.evaluate(half.x) for half in halves]
        if iteration in iterations:
            a, b = halves
            try:
                across = b.value(a.x) + a.value(b.x)
                within = sum(half.total(evaluations) for half, evaluations in zip(halves, own, strict=True))
                both, gap = within + across, within - across
            except NotImplementedError:
                both, gap = float(objective.value(a.x) + objective.value(b.x)), _gap(a, b)
            middle = float(objective.value((a.x + b.x) / 2))
            estimates.append(2 * middle - (both + gap) / 2)
        if iteration < iterations[-1]:
            for half, evaluations in zip(halves, own, strict=True):
                half.update(evaluations)
    logger.debug("truth's log-likelihood after %s iterations: %s", iterations, estimates)
    return _limit(*estimates)


class _Half:
    """MLEM on every other subset."""

    def __init__(self, objective: Objective, parity: int) -> None:
        self.objective = objective
        self.subsets = range(parity, objective.num_subsets, 2)
        self.sensitivity = torch.stack([objective.sensitivity(k) for k in self.subsets]).sum(0)
        self.x = objective.uniform_image()

    def evaluate(self, x: Tensor) -> list[Evaluation]:
        return [self.objective.at(x, k) for k in self.subsets]

    def value(self, x: Tensor) -> float:
        return self.total(self.evaluate(x))

    @staticmethod
    def total(evaluations: list[Evaluation]) -> float:
        return sum(float(evaluation.value) for evaluation in evaluations)

    @staticmethod
    def gradient(evaluations: list[Evaluation]) -> Tensor:
        return torch.stack([evaluation.gradient() for evaluation in evaluations]).sum(0)

    def update(self, evaluations: list[Evaluation]) -> None:
        self.x = em_step(self.x, self.gradient(evaluations), self.sensitivity)


def _gap(a: _Half, b: _Half) -> float:
    r""":math:`L_a(x_a) - L_a(x_b) - L_b(x_a) + L_b(x_b)` as an integral of gradients along the line between the images.

    Three Gauss-Legendre points are exact up to the fifth order in the images' difference.
    """
    step, total = a.x - b.x, 0.0
    for node, weight in zip(*np.polynomial.legendre.leggauss(3), strict=True):
        x = b.x + (1 + float(node)) / 2 * step
        slope = a.gradient(a.evaluate(x)) - b.gradient(b.evaluate(x))
        total += float(weight) / 2 * float((slope.double() * step).sum())
    return total


def _limit(first: float, second: float, third: float) -> float:
    """Limit of ``limit - C n^-p`` from its values at ``n``, ``2 n`` and ``4 n``; ``p`` is taken to be at least 1.

    It is about 2 for images made of objects in air. A slower decay would be extrapolated far beyond what was computed.
    """
    before, last = second - first, third - second
    if last <= 0:  # the bias is already below the estimate's other errors
        return third
    ratio = min(last / before, 0.5) if before > 0 else 0.5
    return third + last * ratio / (1 - ratio)
