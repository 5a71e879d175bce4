"""Block-sequential regularised EM with variance reduction, for penalties that have no quadratic majoriser."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...engines.em import inside
from ...engines.objective import Objective
from ...priors.base import Penalty

logger = logging.getLogger(__name__)

EPOCHS_PER_SNAPSHOT = 2
RELATIVE_OFFSET = 1e-2
SMALLEST_STEP = 1e-3
# Relative steps of 2 and more diverge.
LARGEST_SUBSET_STEP = 1.5
STEP_RECOVERY = 1.25
# A voxel that was large at the snapshot and has fallen to zero since would leap back by its old size, or far more.
LARGEST_GROWTH = 10.0


@dataclass
class Iterate:
    """An image and what is known of it: values are None where the algorithm had no need of them.

    ``is_new`` tells whether the values are others than those of the iterate before; ``state`` is what the algorithm
    needs beside the image to go on from here.
    """

    x: Tensor
    log_likelihood: Tensor | None = None
    penalty: Tensor | None = None
    is_new: bool = True
    state: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class _Snapshot:
    x: Tensor
    gradients: Tensor
    total: Tensor
    log_likelihood: Tensor
    penalty: Tensor
    preconditioner: Tensor

    @property
    def value(self) -> float:
        return float(self.log_likelihood - self.penalty)


def bsrem(
    objective: Objective,
    prior: Penalty,
    x: Tensor,
    num_iterations: int,
    order: Sequence[int | None],
    kept: Mapping[str, Tensor] | None = None,
    done: int = 0,
) -> Iterator[Iterate]:
    r"""Maximise :math:`L(x) - \beta R(x)`; yields one iterate per epoch, and at the end the best image seen.

    .. math::
        x \leftarrow \max\!\Big(x + \alpha\, P \big[n (\nabla L_k(x) - \nabla L_k(\tilde x)) + \nabla L(\tilde x)
        - \beta \nabla R(x)\big],\ 0\Big), \qquad
        P = \frac{\tilde x + \delta}{s + (\tilde x + \delta)\, C(\tilde x)}

    with the penalty's curvature ``C`` and the full sensitivity ``s`` (or ``n / 1.5`` times that of the subset which
    sees a voxel best, if that is larger). BSREM (De Pierro and Yamagishi 2001, doi:10.1109/42.921475; Ahn and Fessler
    2003, doi:10.1109/TMI.2003.812251) damps the disagreement between subsets by a vanishing step; here the gradients
    stored at a snapshot :math:`\tilde x` cancel it (SVRG: Twyman et al. 2023, doi:10.1109/TMI.2022.3203237), so that
    steps stay long and the iterates converge to the optimum itself. Without ``C`` in the preconditioner a strong
    penalty makes the ascent oscillate. No update makes a voxel larger than ten times :math:`x + \delta`.

    The first epoch has no snapshot and is plain BSREM. Then every second epoch starts from a snapshot, which costs a
    full projection and back-projection and gives the objective's value: if that fell, the ascent returns to the
    previous snapshot and halves ``alpha`` (which recovers by a quarter at each success), so that the values of the
    snapshots that are kept never decrease. With one subset each epoch is a snapshot: preconditioned gradient ascent.

    ``x`` is the image of the start. After ``done`` epochs ``kept`` has the image ``x`` and the `Iterate.state` of then.
    """
    number = objective.num_subsets
    sensitivity = objective.sensitivity()
    mask = inside(sensitivity)
    if number > 1:
        # Where subsets see a voxel unequally (the rim), a step made for all of them would diverge in the best one.
        best_seen = number * torch.stack([objective.sensitivity(subset) for subset in range(number)]).amax(0)
        sensitivity = torch.maximum(sensitivity, best_seen / LARGEST_SUBSET_STEP)
    offset = RELATIVE_OFFSET * float(x[mask].mean())
    # Zero everywhere along a line that has counts would make the likelihood infinite.
    floor = RELATIVE_OFFSET**2 * offset

    def precondition(at: Tensor) -> Tensor:
        return (at + offset) / (sensitivity + (at + offset) * prior.curvature(at))

    def advance(image: Tensor, gradient: Tensor, preconditioner: Tensor, step: float) -> Tensor:
        moved = image + step * preconditioner * (gradient - prior.gradient(image))
        moved = torch.minimum(moved, LARGEST_GROWTH * (image + offset)).clamp_min(floor)
        return torch.where(mask, moved, torch.zeros_like(moved))

    epoch, step, left, kept = done, 1.0, 0, kept or {}
    best: _Snapshot | None = None
    x = kept.get("x", x)
    if "best" in kept:
        best, step, left = _take(objective, prior, kept["best"], precondition), float(kept["step"]), int(kept["left"])
    if epoch == 0 and number > 1 and num_iterations > 1:
        preconditioner = precondition(x)
        for subset in order:
            x = advance(x, number * objective.gradient(x, subset), preconditioner, 1.0)
        epoch = 1
        yield Iterate(x)

    while epoch < num_iterations:
        is_new = False
        if left == 0:
            snapshot, left = _take(objective, prior, x, precondition), EPOCHS_PER_SNAPSHOT if number > 1 else 1
            is_new = best is None or snapshot.value >= best.value - 1e-8 * abs(best.value)
            if is_new:
                best, step = snapshot, min(1.0, STEP_RECOVERY * step)
            elif step > SMALLEST_STEP:
                step /= 2
                logger.info("BSREM: objective fell by %.3g, step halved to %g", best.value - snapshot.value, step)
            x = best.x
        for subset in order:
            gradient = best.total
            if x is not best.x:
                stored = best.gradients[subset or 0]
                gradient = gradient + number * (objective.gradient(x, subset) - stored)
            x = advance(x, gradient, best.preconditioner, step)
        epoch, left = epoch + 1, left - 1
        state = {"best": best.x, "step": torch.tensor(step, dtype=torch.float64), "left": torch.tensor(left)}
        yield Iterate(x, best.log_likelihood, best.penalty, is_new, state)
    last = objective.at(x).value
    penalty = prior.value(x)
    is_new = best is None or float(last - penalty) >= best.value
    if not is_new:
        x, last, penalty = best.x, best.log_likelihood, best.penalty
    yield Iterate(x, last, penalty, is_new)


def _take(objective: Objective, prior: Penalty, x: Tensor, precondition) -> _Snapshot:
    subsets = range(objective.num_subsets) if objective.num_subsets > 1 else (None,)
    evaluations = [objective.at(x, subset) for subset in subsets]
    try:
        # Values first: engines that project for them keep what the gradients need.
        value = torch.stack([evaluation.value for evaluation in evaluations]).sum(0)
    except NotImplementedError:
        value = objective.value(x)
    gradients = torch.stack([evaluation.gradient() for evaluation in evaluations])
    return _Snapshot(x, gradients, gradients.sum(0), value, prior.value(x), precondition(x))
