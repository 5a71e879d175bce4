"""Half-quadratic splitting: maximise the likelihood with a quadratic pull to each denoised image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...engines.em import em_update, penalised_em_step, update_order
from ...engines.objective import Evaluation
from ..settings import count, real
from .consistency import DataConsistency, DataStepResult, DiffusionStep, share_of_levels
from .loop import DiffusionReconstructor


@dataclass(frozen=True)
class PenalisedEM(DataConsistency):
    r"""EM towards the maximiser of the likelihood with a quadratic pull to the denoised image.

    .. math:: \max_x\ L(x) - \frac{\rho_k}{2} \lVert x - v \rVert^2, \qquad
        \rho_k = \frac{K}{K_0} \frac{\beta}{(c\,\sigma_k)^2}

    at level ``k`` of ``K``, with the ``reference_steps`` :math:`K_0`. ``v`` is the denoised image at relative noise
    level :math:`\sigma_k`. Each update is De Pierro's closed form, which has no step size, keeps the image positive
    and, with one subset, never lowers that objective. Subsets share the pull (:math:`\rho_k / n` each) and go in
    Herman-Meyer order, counted through all noise levels.
    """

    name: ClassVar[str] = "penalised EM"

    num_inner: int = count(3, "EM updates per noise level", balanced=4, balanced_volumes=3, fast=6)
    beta: float = real(
        12.0,
        "weight of the network against the data, the same for any count level and unit; 1 treats the denoised image as "
        "known to within the noise level",
        open_below=True,
        volumes=5.0,
        published=1.0,
    )
    reference_steps: int = count(
        40,
        "noise levels that `beta` is meant for: with fewer it is less in proportion; 0: the same, however many",
        minimum=0,
        volumes=60,
        published=0,
    )

    def pull(self, step: DiffusionStep) -> float:
        r""":math:`\rho_k`, counts per image unit squared."""
        return self.beta * share_of_levels(step, self.reference_steps) / (self.intensity_scale * step.sigma) ** 2

    def __call__(
        self, prior_image: Tensor, step: DiffusionStep, evaluation: Evaluation | None = None
    ) -> DataStepResult:
        """Make ``num_inner`` updates, started at the denoised image.

        ``evaluation`` is that of all data at ``admissible(prior_image)``, if the caller has it already: without
        subsets, it saves a projection.
        """
        num_subsets = self.objective.num_subsets
        order = update_order(num_subsets)
        given = evaluation
        rho = self.pull(step) / num_subsets
        x = self.admissible(prior_image)
        before: list[float] | None = None
        for inner in range(self.num_inner):
            subset = order[(step.index * self.num_inner + inner) % num_subsets]
            first = inner == 0 and subset is None and given is not None
            evaluation = given if first else self.objective.at(x, subset)
            if inner == 0 and subset is None:
                before = evaluation.value.tolist()
            x_em = em_update(self.objective, x, subset, evaluation=evaluation)
            sensitivity = self.sensitivity if subset is None else self.objective.sensitivity(subset)
            x = self.admissible(penalised_em_step(x_em, sensitivity, prior_image, rho))
        return DataStepResult(x, before=before, num_inner=[self.num_inner] * len(x))


class HQSReconstructor(DiffusionReconstructor):
    """Plug-and-play half-quadratic splitting: the diffusion loop with :class:`PenalisedEM` as its data step.

    The scheme of DiffPIR (Zhu et al. 2023, arXiv:2305.08995), with a Poisson likelihood in place of least squares.
    """

    method: ClassVar[str] = "hqs"
    has_speeds: ClassVar[bool] = True
    title: ClassVar[str] = "HQS"
    about: ClassVar[str] = "diffusion sampling, half-quadratic splitting with a closed-form EM data step"
    references: ClassVar[tuple[str, ...]] = ("Zhu2023", "DePierro1995", "Song2020")
    data_step: ClassVar[type[DataConsistency]] = PenalisedEM
