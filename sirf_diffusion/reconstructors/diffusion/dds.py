"""Decomposed diffusion sampling: a few preconditioned ascent steps with an anchor after each denoising."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...engines.em import update_order
from ...engines.objective import Objective
from ...priors import Penalty
from ..em.map_methods import relative_difference_penalty
from ..settings import count, real
from .consistency import DataConsistency, DataStepResult, DiffusionStep, share_of_levels, smooth_direction
from .loop import DiffusionReconstructor


@dataclass(frozen=True)
class AnchoredAscent(DataConsistency):
    r"""A fixed number of EM-preconditioned steps, held back by a quadratic anchor at the denoised image.

    .. math::
        x \leftarrow x + \frac{x}{s + x (\rho + h)} \left[ n\, \nabla L_k(x) + \rho\,(v - x) - \nabla R(x) \right],
        \qquad \rho = \frac{K}{K_0} \frac{\lambda}{\sigma^e c^2}

    for subset ``k`` of ``n`` at one of ``K`` noise levels, with the ``reference_steps`` :math:`K_0`, ``v`` the denoised
    image, ``R`` an optional penalty (``prior``, or ``axial_rdp`` in a volume) and ``h`` its curvature, the strength
    :math:`\lambda` and the exponent ``e`` of the anchor. The subsets go in Herman-Meyer order, counted through all
    noise levels. Without anchor and penalty, and with one subset, a step is one MLEM update.

    The published form leaves :math:`\rho` and ``h`` out of the preconditioner, which is unstable where
    :math:`x (\rho + h) > s`, at low counts; both have the same fixed points. :math:`\lambda` is the precision of a
    Gaussian around ``v`` in network units, where emitting voxels have mean 1, at noise level 1. It needs no retuning
    when the image unit changes: :math:`\rho` scales as the likelihood's curvature does.
    """

    name: ClassVar[str] = "anchored ascent"

    num_inner: int = count(
        3,
        "ascent steps per noise level; more fit the data closer, and its noise",
        balanced=4,
        balanced_volumes=3,
        fast=6,
    )
    anchor_strength: float = real(
        5.0,
        "larger stays nearer to the denoised image, in network units",
        volumes=0.6,
        published=10.0,
    )
    reference_steps: int = count(
        40,
        "noise levels that `anchor_strength` is meant for: with fewer it is less in proportion; 0: the same, however "
        "many",
        minimum=0,
        volumes=60,
        published=0,
    )
    anchor_exponent: float = real(
        1.0,
        "the strength at noise level `s` is `anchor_strength * s ** -anchor_exponent`; 0 is the published anchor, 2 "
        "that of `hqs`",
        published=0.0,
    )
    axial_rdp: float = real(
        1.0,
        "strength of the relative difference prior between planes; 0 for none, no effect on one plane",
        published=0.0,
    )
    smoothing: float = real(
        8.0, "smoothness of the steps in mm, see [below](#smooth-steps); 0 is the published step", published=0.0
    )
    #: Any penalty instead of ``axial_rdp``.
    prior: Penalty | None = None

    def set_up(self, objective: Objective, state: dict[str, Any] | None = None) -> None:
        """Prepare the penalty too; nothing is projected."""
        super().set_up(objective)
        if self.prior is not None:
            self.prior.set_up(objective.geometry, objective)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings, and what is known of a penalty that was given."""
        given = {} if self.prior is None else {"prior": self.prior.settings}
        return super().settings | given

    def set_scale(self, intensity_scale: float, covered: Tensor | None = None) -> None:
        """Tell the scale; the penalty between planes is relative to it."""
        super().set_scale(intensity_scale, covered)
        penalty = self.prior
        if penalty is None and self.axial_rdp > 0 and self.objective.geometry.shape[0] > 1:
            penalty = relative_difference_penalty(
                self.objective, self.axial_rdp, intensity_scale, neighbourhood="axial"
            )
        self.keep(penalty=penalty)

    def __call__(self, prior_image: Tensor, step: DiffusionStep) -> DataStepResult:
        """Make ``num_inner`` updates, started at the denoised image."""
        geometry, num_subsets, penalty = self.objective.geometry, self.objective.num_subsets, vars(self)["penalty"]
        order = update_order(num_subsets)
        anchor = self.admissible(prior_image)
        strength = self.anchor_strength * share_of_levels(step, self.reference_steps)
        x, rho = anchor, strength * step.sigma**-self.anchor_exponent / self.intensity_scale**2
        before: list[float] | None = None
        for inner in range(self.num_inner):
            subset = order[(step.index * self.num_inner + inner) % num_subsets]
            evaluation = self.objective.at(x, subset)
            if inner == 0 and subset is None:
                before = evaluation.value.tolist()
            slope = evaluation.gradient() * num_subsets
            bound = torch.as_tensor(rho, dtype=x.dtype, device=x.device)
            if rho > 0:
                slope += rho * (anchor - x)
            if penalty is not None:
                slope -= penalty.gradient(x)
                bound = bound + penalty.curvature(x)
            denominator = torch.where(self.inside, self.sensitivity + x * bound, torch.ones_like(x))
            update = smooth_direction(x / denominator, slope, geometry, self.smoothing, step.sigma)
            x = self.admissible(x + update)
        return DataStepResult(x, before=before, num_inner=[self.num_inner] * len(x))


class DDSReconstructor(DiffusionReconstructor):
    """PET-DDS: the diffusion loop with :class:`AnchoredAscent` as its data step.

    Chung et al. 2024, arXiv:2303.05754; for PET Singh et al. 2024, MELBA 2:547. ``prior`` takes any penalty of an
    image with ``gradient`` and ``curvature``.
    """

    method: ClassVar[str] = "dds"
    has_speeds: ClassVar[bool] = True
    title: ClassVar[str] = "DDS"
    about: ClassVar[str] = "diffusion sampling, proximal data steps towards each denoised image"
    references: ClassVar[tuple[str, ...]] = ("Singh2024", "Song2020")
    data_step: ClassVar[type[DataConsistency]] = AnchoredAscent
