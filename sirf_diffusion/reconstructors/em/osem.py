"""Maximum-likelihood EM with ordered subsets, and the EM step that every other reconstructor is built from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ...engines.objective import Evaluation, Objective
from ..base import Reconstructor, check_count, check_finite, inside
from ..records import StepRecord


class OSEM(Reconstructor):
    r"""Ordered-subsets expectation maximisation.

    .. math:: x \leftarrow \frac{x}{s_k} A_k^T \frac{y_k}{A_k x + b_k}

    (Shepp and Vardi 1982, doi:10.1109/TMI.1982.4307558; Hudson and Larkin 1994, doi:10.1109/42.363108).

    Parameters
    ----------
    objective
        Poisson log-likelihood; its ``num_subsets`` are used.
    num_iterations
        Passes through all subsets (epochs).
    subset_order
        Order of the subsets within an epoch, a permutation of ``range(num_subsets)``; that of Herman and Meyer (1993,
        doi:10.1109/42.241889) if omitted. STIR's own OSMAPOSL uses ``range(num_subsets)``.
    callbacks
        Called once per epoch.

    Notes
    -----
    ``record["log_likelihood"]`` holds the values that cost nothing: with one subset, that of the image *before* each
    update; with more subsets the full log-likelihood is never formed and the list is empty.
    """

    method: ClassVar[str] = "osem"

    def __init__(
        self,
        objective: Objective,
        num_iterations: int,
        *,
        subset_order: Sequence[int] | None = None,
        callbacks: Iterable[Callable[[StepRecord], None]] = (),
    ) -> None:
        super().__init__(objective, callbacks=callbacks)
        self.num_iterations = check_count("num_iterations", num_iterations)
        self.subset_order = self._order(subset_order)
        self.settings = {"num_iterations": self.num_iterations, "subset_order": list(self.subset_order)}

    def _order(self, requested: Sequence[int] | None) -> tuple[int | None, ...]:
        order = checked_order(requested, self.objective.num_subsets)
        return order if len(order) > 1 else (None,)

    def _run(self) -> Tensor:
        x = self._initial
        for epoch in range(self.num_iterations):
            before: Tensor | None = None
            for subset in self.subset_order:
                evaluation = self.objective.at(x, subset)
                if subset is None:
                    before = evaluation.value
                    self._trace.append(float(before))
                x = em_update(self.objective, x, subset, evaluation=evaluation)
            check_finite(x, f"the image after epoch {epoch + 1}")
            if self.callbacks and self._notify(self._step(epoch + 1, x, before)):
                break
        return x

    def _step(self, epoch: int, x: Tensor, before: Tensor | None) -> StepRecord:
        return StepRecord.of_iteration(
            self.method,
            epoch,
            self.num_iterations,
            x,
            before,
            self.objective.counter,
            time.perf_counter() - self._start,
        )


class MLEM(OSEM):
    """Maximum-likelihood EM: :class:`OSEM` with all data in each update, whatever subsets the objective has."""

    method: ClassVar[str] = "mlem"

    def __init__(
        self, objective: Objective, num_iterations: int, *, callbacks: Iterable[Callable[[StepRecord], None]] = ()
    ) -> None:
        super().__init__(objective, num_iterations, callbacks=callbacks)

    def _order(self, requested: Sequence[int] | None) -> tuple[int | None, ...]:
        return (None,)


def em_update(
    objective: Objective,
    x: Tensor,
    subset: int | None = None,
    *,
    evaluation: Evaluation | None = None,
    step_size: float = 1.0,
    floor: float = 0.0,
) -> Tensor:
    r"""One EM update, :math:`x + \delta\, \frac{x}{s_k} \nabla L_k(x)`, of an image or a batch of images.

    With ``step_size`` 1 and all data this is MLEM and never lowers the likelihood; steps below 2 converge.

    Parameters
    ----------
    objective
        The log-likelihood.
    x
        Current image ``[..., z, y, x]``.
    subset
        Subset number; all data if omitted.
    evaluation
        ``objective.at(x, subset)`` if the caller has it already: then no forward projection is made here.
    step_size
        Relative step in (0, 2).
    floor
        Smallest value that voxels inside the field of view may take.

    Returns
    -------
    Tensor
        The updated image; zero outside the field of view. Voxels that this subset does not see are kept.
    """
    if evaluation is None:
        evaluation = objective.at(x, subset)
    gradient = evaluation.gradient()
    updated = em_step(x, gradient, objective.sensitivity(subset), step_size, floor)
    return updated.mul_(inside(objective.sensitivity()))


def em_step(x: Tensor, gradient: Tensor, sensitivity: Tensor, step_size: float = 1.0, floor: float = 0.0) -> Tensor:
    r""":math:`\max(x (1 + \delta \nabla L / s),\ floor)` where the sensitivity is positive, ``x`` elsewhere."""
    seen = sensitivity > 1e-9 * sensitivity.max()
    ratio = gradient / torch.where(seen, sensitivity, torch.ones_like(sensitivity))
    # Rounding can push the bracket below zero where EM sends a voxel to zero; a negative image is never right.
    updated = (x * (1 + step_size * ratio)).clamp_min(floor)
    return torch.where(seen, updated, x)


def penalised_em_step(x_em: Tensor, sensitivity: Tensor, target: Tensor, rho: Tensor | float) -> Tensor:
    r"""Maximiser of the EM surrogate with a quadratic anchor, in closed form.

    .. math:: \arg\max_x\ \sum_j s_j (x_{EM,j} \log x_j - x_j) - \tfrac12 \rho_j (x_j - v_j)^2

    the positive root of :math:`\rho x^2 + (s - \rho v) x - s x_{EM} = 0` (De Pierro 1995, doi:10.1109/42.370409). With
    :math:`x_{EM}` the EM update of the current image, the penalised log-likelihood never decreases.

    Parameters
    ----------
    x_em
        EM update of the current image, non-negative ``[..., z, y, x]``.
    sensitivity
        ``s`` (that of the subset, with ``rho / num_subsets``, when subsets are used).
    target
        Anchor ``v`` in image units, of any sign.
    rho
        Strength, counts per image unit squared, a number or one per voxel, >= 0.

    Returns
    -------
    Tensor
        Non-negative image; ``x_em`` for ``rho = 0``, ``max(v, 0)`` for large ``rho`` or zero sensitivity.

    Notes
    -----
    Both roots are written so that nothing cancels: the textbook form returns exactly 0 in float32 for a weak anchor,
    and zero is absorbing.
    """
    rho = torch.as_tensor(rho, dtype=x_em.dtype, device=x_em.device)
    b = sensitivity - rho * target
    product = rho * sensitivity * x_em
    d = torch.sqrt(b * b + 4 * product)
    tiny = torch.finfo(x_em.dtype).tiny
    weak = 2 * sensitivity * x_em / (b + d).clamp_min(tiny)
    strong = (d - b) / (2 * rho).clamp_min(tiny)
    return torch.where(b >= 0, weak, strong)


def herman_meyer_order(num_subsets: int) -> tuple[int, ...]:
    """Order of subsets in which successive ones differ most: mixed-radix reversal over the prime factors.

    Herman and Meyer 1993, doi:10.1109/42.241889.
    """
    factors = []
    rest, prime = num_subsets, 2
    while rest > 1:
        while rest % prime == 0:
            factors.append(prime)
            rest //= prime
        prime += 1
    order = []
    for number in range(num_subsets):
        position, stride, rest = 0, num_subsets, number
        for factor in factors:
            stride //= factor
            position += (rest % factor) * stride
            rest //= factor
        order.append(position)
    return tuple(order)


def checked_order(order: Sequence[int] | None, num_subsets: int) -> tuple[int, ...]:
    """``order`` if it is a permutation of the subsets, the Herman-Meyer order if it is None."""
    if order is None:
        return herman_meyer_order(num_subsets)
    if sorted(order) != list(range(num_subsets)):
        raise ValueError(f"subset_order must hold each of 0..{num_subsets - 1} once, found {list(order)}")
    return tuple(int(k) for k in order)
