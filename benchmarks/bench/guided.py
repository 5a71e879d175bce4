"""Sampling by guidance: the likelihood's gradient joins the score, instead of a data step after each denoising."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from sirf_diffusion.engines.em import RELATIVE_FLOOR, inside
from sirf_diffusion.engines.objective import Objective
from sirf_diffusion.geometry.checks import check_real
from sirf_diffusion.reconstructors.diffusion.chain import Chain
from sirf_diffusion.reconstructors.diffusion.loop import Denoised, DiffusionReconstructor

if TYPE_CHECKING:
    from sirf_diffusion.models.score_model import ScoreModel


class _Guided(DiffusionReconstructor):
    """The diffusion loop without a data step; subclasses bring the likelihood in where the chain moves."""

    def __init__(
        self,
        objective: Objective,
        model: ScoreModel,
        *,
        strength: float,
        num_steps: int = 200,
        eta: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(objective, model, None, num_steps=num_steps, eta=eta, **options)
        self.strength = check_real("strength", strength)
        self.settings["strength"] = self.strength

    def _admissible(self, image: Tensor) -> Tensor:
        """What the likelihood sees of an image: ``max(x, 0)`` inside the field of view, with EM's floor."""
        return image.clamp(min=RELATIVE_FLOOR * self.model.intensity_scale) * inside(self.objective.sensitivity())


class NaiveReconstructor(_Guided):
    r"""The likelihood's gradient at the *noisy* image added to the score (PET-Naive, Singh et al. 2024, MELBA 2:547).

    .. math::
        s'(u, t) = s(u, t) + \lambda\,(1 - t / t_{max})\, \nabla_u L(F(u)), \qquad F(u) = c \max(u, 0)

    in the one diffusion loop: with :math:`s'` in place of :math:`s`, Tweedie's formula gives the denoised image and
    the noise that go into its next step. With ``eta = 1`` and many steps that is the reverse-time stochastic equation
    of the paper, which takes 1000 steps. Parameters not listed are those of
    :class:`~sirf_diffusion.reconstructors.diffusion.loop.DiffusionReconstructor`.

    Parameters
    ----------
    strength
        :math:`\lambda \ge 0`.
    """

    method: ClassVar[str] = "naive"

    def __init__(self, objective: Objective, model: ScoreModel, *, strength: float = 0.1, **options: Any) -> None:
        super().__init__(objective, model, strength=strength, **options)

    def denoise(self, chain: Chain, model: ScoreModel) -> Denoised:
        """What the model finds, moved along the likelihood's gradient."""
        found, t = super().denoise(chain, model), self.times[chain.step]
        gamma, nu = float(model.schedule.gamma(t)), float(model.schedule.nu(t))
        noisy = model.to_image(chain.u).to(found.image)
        gradient = self.objective.at(self._admissible(noisy)).gradient() * (noisy > 0)
        # With voxels of the network's own size, to_latent is the adjoint of to_image but for the factor c^2.
        slope = model.intensity_scale**2 * model.to_latent(gradient).to(found.u0)
        slope = slope * (self.strength * (1 - t / float(model.schedule.t_max)))
        u0 = found.u0 + nu * nu / gamma * slope
        eps = found.eps - nu * slope
        image = model.to_image(u0).to(found.image) * inside(self.objective.sensitivity())
        return Denoised(found.step, u0, eps, image)


class DPSReconstructor(_Guided):
    r"""Diffusion posterior sampling (Chung et al. 2023, arXiv:2209.14687; for PET Singh et al. 2024, MELBA 2:547).

    After each step of the prior the chain moves along the likelihood's gradient at the *denoised* image, taken through
    the network:

    .. math::
        u \leftarrow u_{prior} + \frac{\lambda}{D}\, \nabla_u L\big(c \max(\hat u_0(u), 0)\big), \qquad
        D = L(y; y) - L

    with the Kullback-Leibler distance ``D`` between counts and expectation. Parameters not listed are those of
    :class:`~sirf_diffusion.reconstructors.diffusion.loop.DiffusionReconstructor`; ``num_steps`` is 1000 in the papers.

    Parameters
    ----------
    strength
        :math:`\lambda \ge 0`.

    Raises
    ------
    NotImplementedError
        If the objective does not tell its ``prompts``, or the model cannot be differentiated.
    """

    method: ClassVar[str] = "dps"

    def __init__(self, objective: Objective, model: ScoreModel, *, strength: float = 400.0, **options: Any) -> None:
        super().__init__(objective, model, strength=strength, **options)
        if not hasattr(model, "predict_with_gradient"):
            raise NotImplementedError(f"{type(model).__name__} has no predict_with_gradient: DPS needs its derivative")
        prompts = getattr(self.objective, "prompts", None)
        if prompts is None:
            raise NotImplementedError(
                f"DPS divides by the distance to the counts, which {type(self.objective).__name__} does not tell"
            )
        self._best = float((torch.xlogy(prompts.double(), prompts.double()) - prompts.double()).sum())
        self._move: Tensor | None = None

    def denoise(self, chain: Chain, model: ScoreModel) -> Denoised:
        """What the model finds, and the gradient through it, one sample at a time to bound the memory."""
        parts = [self._one(sample[None], self.times[chain.step], model) for sample in chain.u]
        u0, eps, image, self._move = (torch.cat(column) for column in zip(*parts, strict=True))
        return Denoised(self._level(chain), u0, eps, image * inside(self.objective.sensitivity()))

    def renoise(self, chain: Chain, denoised: Denoised, model: ScoreModel) -> None:
        """The prior's step, and the likelihood's after it."""
        super().renoise(chain, denoised, model)
        chain.u = chain.u + self._move

    def _one(self, u: Tensor, t: float, model: ScoreModel) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            u0, eps = model.predict_with_gradient(u, t)
            image = model.to_image(u0).to(self.objective.sensitivity())
            found = image.detach()
            evaluation = self.objective.at(self._admissible(found))
            distance = max(self._best - float(evaluation.value), 1e-9 * abs(self._best))
            weights = evaluation.gradient() * (found > 0)
            (slope,) = torch.autograd.grad(image, u, weights)
        return u0.detach(), eps.detach(), found, self.strength / distance * slope
