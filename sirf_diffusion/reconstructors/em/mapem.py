"""Maximum a posteriori reconstruction: one front for all priors, with the algorithm that suits the prior."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...engines.em import em_update, inside, penalised_em_step, trues_per_plane, update_order
from ...engines.objective import Objective
from ...geometry.checks import check_count, check_finite, check_real
from ...priors.base import Penalty, checked_penalty
from ..base import Reconstructor
from ..records import Cost, StepRecord
from .bsrem import Iterate, bsrem

logger = logging.getLogger(__name__)

#: Of De Pierro's closed form: with so many, its limit cycle was narrower than what 100 iterations leave.
_FEW_SUBSETS = 2
#: Counts that a given image may predict, relative to those of the data, before it is scaled to them.
_MOST_OFF = 1.5


class MAPEM(Reconstructor):
    r"""Maximiser of the penalised log-likelihood :math:`L(x) - \beta R(x)`.

    Priors with a quadratic majoriser (anchor, quadratic, score): De Pierro's closed form (1995, doi:10.1109/42.370409).
    The penalty is replaced by the quadratic that touches it at the current image,
    :math:`\tfrac{\rho}{2}\|x - v\|^2`, and the EM surrogate plus that quadratic is maximised exactly, voxel by voxel.
    With one subset the objective never decreases. For the score prior this is "denoise, then penalised EM towards the
    denoised image", one network call per iteration.

    Others (relative difference prior): :func:`~sirf_diffusion.reconstructors.em.bsrem.bsrem`, which converges to the
    optimum with any number of subsets.

    Parameters
    ----------
    objective
        Poisson log-likelihood; its ``num_subsets`` are used.
    prior
        The penalty, on the objective's image grid.
    num_iterations
        Passes through the data. With BSREM 30 epochs of 7 to 20 subsets, or 200 iterations with one subset, bring the
        image within 1 % of the optimum for penalties of useful strength; the closed form needs 50 to 200 with one
        subset.
    num_inner
        Closed form only: EM passes for each evaluation of the prior. More than 1 saves network calls where the
        network is dearer than the projector; the fixed point is the same.
    subset_order
        Permutation of the subsets; that of Herman and Meyer if omitted.
    callbacks
        Called once per iteration.

    The starting image, unless given to ``set_up``, is the objective's early OSEM image.

    Notes
    -----
    With subsets, the closed form ends in a limit cycle around the optimum, as OSEM does, which is said for more than
    2; use one subset for an exact result. ``record["objective"]`` holds :math:`L - \beta R` wherever both terms were
    known, for explicit priors.

    Raises
    ------
    TypeError
        If ``prior`` is not a :class:`~sirf_diffusion.priors.Penalty`.
    ValueError
        For counts below 1, a wrong subset order, or ``num_inner`` above 1 with BSREM.
    """

    method: ClassVar[str] = "map-em"

    def __init__(
        self,
        objective: Objective,
        prior: Penalty,
        num_iterations: int,
        *,
        num_inner: int = 1,
        subset_order: Sequence[int] | None = None,
        callbacks: Iterable[Callable[[StepRecord], None]] = (),
    ) -> None:
        super().__init__(objective, callbacks=callbacks)
        self.prior = checked_penalty(prior)
        self.num_iterations = check_count("num_iterations", num_iterations)
        self.num_inner = check_count("num_inner", num_inner)
        if self.num_inner > 1 and not prior.has_majoriser:
            raise ValueError(f"num_inner must be 1 for {type(prior).__name__}, which BSREM evaluates in every update")
        self.subset_order = update_order(self.objective.num_subsets, subset_order)
        self.settings = {
            "algorithm": "de-pierro" if prior.has_majoriser else "bsrem",
            "prior": prior.settings,
            "num_iterations": self.num_iterations,
            "num_inner": self.num_inner,
            "subset_order": list(self.subset_order),
        }

    def set_up(self, initial_image: Any = None) -> None:
        """Prepare, the prior too: a score prior without an intensity scale takes it from the data."""
        self.prior.set_up(self.objective.geometry, self.objective)
        if self.prior.has_majoriser and self.objective.num_subsets > _FEW_SUBSETS:
            logger.warning(
                "MAPEM with %d subsets ends in a limit cycle around the maximum, which was 8 %% of the image wide with "
                "8 subsets of one scan: give the objective %d at most for the maximum", self.objective.num_subsets,
                _FEW_SUBSETS,
            )  # fmt: skip
        self.settings["prior"] = self.prior.settings
        super().set_up(initial_image)
        if initial_image is not None:
            self._scale_to_the_data()

    def _scale_to_the_data(self) -> None:
        """A given image of a longer frame, say, would be new to the network, which does not find the way back."""
        found, wanted = (trues_per_plane(self.objective, x) for x in (self._initial, self.objective.uniform_image()))
        ratio = found / wanted
        if not 1 / _MOST_OFF < ratio < _MOST_OFF:
            logger.warning("the initial image predicts %.3g times the counts of the data: it is scaled to them", ratio)
            self._initial = self._initial / ratio

    def _default_image(self) -> Tensor:
        # Nearer to the optimum than a uniform image by many iterations.
        return self.objective.early_image()

    def _run(self) -> Tensor:
        kept, done = self._take_over()
        x, self.prior.noise = kept.get("x", self._initial), kept.get("noise")
        iterates = self._closed_form(x, done) if self.prior.has_majoriser else self._bsrem(kept, done)
        for number, iterate in enumerate(iterates, start=done + 1):
            x = iterate.x
            check_finite(x, f"the image after iteration {number}")
            if iterate.log_likelihood is not None and iterate.is_new:
                self._trace.append(float(iterate.log_likelihood))
                if iterate.penalty is not None:
                    objective = float(iterate.log_likelihood - iterate.penalty)
                    self._extras.setdefault("objective", []).append(objective)
            last = number > self.num_iterations
            if not last and self._notify(self._iteration(number, x, iterate.log_likelihood, iterate.state)):
                break
        return x

    def _closed_form(self, x: Tensor, done: int) -> Iterator[Iterate]:
        prior, number = self.prior, self.objective.num_subsets
        full = self.objective.sensitivity()
        mask = inside(full)
        for _ in range(done, self.num_iterations):
            target, rho = prior.majoriser(x)
            penalty = prior.value(x) if prior.has_value and number == 1 else None
            log_likelihood: Tensor | None = None
            for _ in range(self.num_inner):
                for subset in self.subset_order:
                    evaluation = self.objective.at(x, subset)
                    if subset is None and log_likelihood is None:
                        log_likelihood = evaluation.value
                    x_em = em_update(self.objective, x, subset, evaluation=evaluation)
                    x = penalised_em_step(x_em, self.objective.sensitivity(subset), target, rho / number)
                    x = torch.where(mask, x, torch.zeros_like(x))
            noise = prior.noise
            yield Iterate(x, log_likelihood, penalty, state={} if noise is None else {"noise": noise})

    def _bsrem(self, kept: dict[str, Tensor], done: int) -> Iterator[Iterate]:
        order = self.subset_order
        if self._resumed is not None and "best" in kept:
            with self._resumed.taken_up():
                check_real("step", kept["step"], 0.0, 1.0, open_below=True)
                check_count("left", kept["left"], 0)
        return bsrem(self.objective, self.prior, self._initial, self.num_iterations, order, kept, done)

    def _spent(self) -> Cost:
        return Cost.now(self.objective, self.prior)
