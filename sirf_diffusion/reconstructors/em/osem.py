"""Maximum-likelihood EM with ordered subsets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...engines.em import em_update, update_order
from ...engines.objective import Evaluation, Objective
from ...geometry.checks import check_count, check_finite
from ..base import Reconstructor
from ..records import StepRecord
from ..settings import Settings, count


@dataclass(frozen=True)
class OSEMSettings(Settings):
    """Of `OSEM`."""

    num_iterations: int = count(
        1, "passes through the data; one with 9 subsets suits counts as low as those of the demo, raise it for more"
    )


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
    title: ClassVar[str] = "OSEM"
    about: ClassVar[str] = "maximum likelihood, stopped early"
    references: ClassVar[tuple[str, ...]] = ("Hudson1994",)
    num_subsets: ClassVar[int] = 9

    @classmethod
    def parts(cls) -> tuple[type[Settings], ...]:
        return (OSEMSettings,)

    def __init__(
        self,
        objective: Objective,
        num_iterations: int = OSEMSettings.num_iterations,
        *,
        subset_order: Sequence[int] | None = None,
        callbacks: Iterable[Callable[[StepRecord], None]] = (),
    ) -> None:
        super().__init__(objective, callbacks=callbacks)
        self.num_iterations = check_count("num_iterations", num_iterations)
        self.subset_order = self._order(subset_order)
        self.settings = {"num_iterations": self.num_iterations, "subset_order": list(self.subset_order)}

    def _order(self, requested: Sequence[int] | None) -> tuple[int | None, ...]:
        return update_order(self.objective.num_subsets, requested)

    def _run(self) -> Tensor:
        kept, done = self._take_over()
        x, number = kept.get("x", self._initial), done * len(self.subset_order)
        for epoch in range(done, self.num_iterations):
            before: Tensor | None = None
            for subset in self.subset_order:
                evaluation = self.objective.at(x, subset)
                if subset is None:
                    before = evaluation.value
                    self._trace.append(float(before))
                x = self._update(x, subset, evaluation, number)
                number += 1
            check_finite(x, f"the image after epoch {epoch + 1}")
            if self._notify(self._iteration(epoch + 1, x, before)):
                break
        return x

    def _update(self, x: Tensor, subset: int | None, evaluation: Evaluation, number: int) -> Tensor:
        """The update after ``number`` others."""
        return em_update(self.objective, x, subset, evaluation=evaluation)


class MLEM(OSEM):
    """Maximum-likelihood EM: :class:`OSEM` with all data in each update, whatever subsets the objective has."""

    method: ClassVar[str] = "mlem"

    def __init__(
        self, objective: Objective, num_iterations: int, *, callbacks: Iterable[Callable[[StepRecord], None]] = ()
    ) -> None:
        super().__init__(objective, num_iterations, callbacks=callbacks)

    def _order(self, requested: Sequence[int] | None) -> tuple[int | None, ...]:
        return (None,)
