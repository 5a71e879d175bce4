"""Decomposed diffusion sampling: a few preconditioned ascent steps with an anchor after each denoising."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ...engines.em import herman_meyer_order
from ...engines.objective import Objective
from ...geometry.checks import check_count, check_real
from .consistency import DataConsistency, DataStepResult, DiffusionStep, SmoothStep
from .loop import DiffusionReconstructor

if TYPE_CHECKING:
    from ...models.score_model import ScoreModel
    from ...priors import Penalty


class DDSReconstructor(DiffusionReconstructor):
    """PET-DDS (Singh et al. 2024, MELBA 2:547): the diffusion loop with :class:`AnchoredAscent` as its data step.

    In 3D with a transverse model, ``prior`` takes the relative difference prior along z that keeps neighbouring
    slices together. The parameters not listed are those of
    :class:`~sirf_diffusion.reconstructors.diffusion.loop.DiffusionReconstructor`.

    Parameters
    ----------
    num_inner
        Subset updates per noise level. Few of them are an early stop; more fit the data closer, and its noise.
    anchor_strength, anchor_exponent
        Strength of the anchor in network units, and how it falls with the noise level, >= 0, see
        :class:`AnchoredAscent`.
    prior
        Any penalty of an image with ``gradient`` and ``curvature``.
    smoothing
        Smoothness of the updates, mm, see :class:`~sirf_diffusion.reconstructors.diffusion.consistency.SmoothStep`; the
        published method has 0.
    """

    method: ClassVar[str] = "dds"

    def __init__(
        self,
        objective: Objective,
        model: ScoreModel,
        *,
        num_inner: int = 3,
        anchor_strength: float = 10.0,
        anchor_exponent: float = 0.0,
        prior: Penalty | None = None,
        smoothing: float = 0.0,
        **options: Any,
    ) -> None:
        data_step = AnchoredAscent(num_inner, anchor_strength, prior, smoothing, anchor_exponent)
        super().__init__(objective, model, data_step, **options)


class AnchoredAscent(DataConsistency):
    r"""A fixed number of EM-preconditioned steps, held back by a quadratic anchor at the denoised image.

    .. math::
        x \leftarrow x + \frac{x}{s + x (\rho + h)} \left[ n\, \nabla L_k(x) + \rho\,(v - x) - \nabla R(x) \right],
        \qquad \rho = \lambda\, \sigma^{-e} / c^2

    for subset ``k`` of ``n``, with ``v`` the denoised image, ``R`` an optional penalty and ``h`` its curvature. The
    subsets go in Herman-Meyer order, counted through all noise levels. Without anchor and penalty, and with one
    subset, a step is one MLEM update.

    The published form leaves :math:`\rho` and ``h`` out of the preconditioner, which is unstable where
    :math:`x (\rho + h) > s`, at low counts; both have the same fixed points.

    ``anchor_strength`` :math:`\lambda` is the precision of a Gaussian around ``v`` in network units, where emitting
    voxels have mean 1, at noise level 1: the standard deviation that the data may move the image by is about
    :math:`1 / \sqrt\lambda`. ``anchor_exponent`` ``e`` lets that precision fall as the noise rises, because an image
    that was denoised from more noise is less certain: 0 is the published anchor, 2 that of HQS. The strength needs no
    retuning when the image unit changes: :math:`\rho` scales as the likelihood's curvature does.

    Parameters
    ----------
    num_inner
        Updates per noise level, at least 1.
    anchor_strength
        :math:`\lambda \ge 0`.
    prior
        Optional penalty.
    smoothing
        See :class:`~sirf_diffusion.reconstructors.diffusion.consistency.SmoothStep`.
    anchor_exponent
        ``e >= 0``.
    """

    name: ClassVar[str] = "anchored ascent"

    def __init__(
        self,
        num_inner: int = 3,
        anchor_strength: float = 10.0,
        prior: Penalty | None = None,
        smoothing: float = 0.0,
        anchor_exponent: float = 0.0,
    ) -> None:
        self.num_inner = check_count("num_inner", num_inner)
        self.anchor_strength = check_real("anchor_strength", anchor_strength)
        self.prior = prior
        self.smoothing = check_real("smoothing", smoothing)
        self.anchor_exponent = check_real("anchor_exponent", anchor_exponent)

    def set_up(self, objective: Objective) -> None:
        """Nothing is projected."""
        super().set_up(objective)
        self.smooth_step = SmoothStep(objective.geometry, self.smoothing)

    @property
    def settings(self) -> dict[str, Any]:
        """Parameters, ready for JSON."""
        prior = None if self.prior is None else type(self.prior).__name__
        factor = None if self.prior is None else float(self.prior.penalisation_factor)
        return {
            "num_inner": self.num_inner,
            "anchor_strength": self.anchor_strength,
            "anchor_exponent": self.anchor_exponent,
            "prior": prior,
            "penalisation_factor": factor,
            "smoothing": self.smoothing,
        }

    def __call__(self, prior_image: Tensor, step: DiffusionStep) -> DataStepResult:
        """Make ``num_inner`` updates, started at the denoised image."""
        num_subsets = self.objective.num_subsets
        order = herman_meyer_order(num_subsets)
        anchor = self.admissible(prior_image)
        x, rho = anchor, self.anchor_strength * step.sigma**-self.anchor_exponent / self.intensity_scale**2
        before: list[float] | None = None
        for inner in range(self.num_inner):
            count = step.index * self.num_inner + inner
            subset = order[count % num_subsets] if num_subsets > 1 else None
            evaluation = self.objective.at(x, subset)
            if inner == 0 and subset is None:
                before = evaluation.value.tolist()
            slope = evaluation.gradient() * num_subsets
            bound = torch.as_tensor(rho, dtype=x.dtype, device=x.device)
            if rho > 0:
                slope += rho * (anchor - x)
            if self.prior is not None:
                slope -= self.prior.gradient(x)
                bound = bound + self.prior.curvature(x)
            denominator = torch.where(self.inside, self.sensitivity + x * bound, torch.ones_like(x))
            x = self.admissible(x + self.smooth_step.direction(x / denominator, slope, step.sigma))
        return DataStepResult(x, before=before, num_inner=[self.num_inner] * len(x))
