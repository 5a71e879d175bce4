"""A reverse diffusion whose data step the user writes, behind the methods of an objective function.

A run of this package's samplers alternates between a network and a data step. Here the data step is the user's: BSREM,
SVRG, CIL's algorithms, or anything else that asks an objective function for values and gradients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..engines import as_objective
from ..engines.objective import Evaluation, NativeImages, Objective
from ..priors import AnchorPenalty
from ..reconstructors.diffusion.hqs import HQSReconstructor
from ..reconstructors.diffusion.lisch import LikelihoodScheduledReconstructor
from ..reconstructors.diffusion.loop import Denoised, DiffusionReconstructor
from ..reconstructors.settings import SPEEDS
from .containers import ObjectiveNames, to_container, to_tensor

if TYPE_CHECKING:
    from ..models.score_model import ScoreModel
    from ..reconstructors.diffusion.chain import Chain
    from ..reconstructors.diffusion.likelihood_schedule import LikelihoodSchedule


class StepwiseObjective(ObjectiveNames, ABC):
    """The objective of one noise level of a reverse diffusion, with the methods of ``sirf.STIR.ObjectiveFunction``.

    It is maximised. Images are those of the objective given (SIRF's, the embedded engine's) or tensors ``[z, y, x]``;
    what comes back is of the kind that was given. The run of one sample is

    .. code-block:: python

        objective.set_up(image)
        while not objective.finished:
            x = objective.admissible(objective.get_denoised_image())
            ...  # some steps of your own towards higher objective.value(x), with objective.gradient(x)
            objective.advance(x)

    and the ``x`` of the last step is the sample. With another ``seed`` it is another sample.

    Parameters
    ----------
    objective
        Log-likelihood: anything that ``sirf_diffusion.as_objective`` takes.
    model
        Score model; it is bound to the image grid by :meth:`set_up` if it is not.
    initial_image
        Image to start the chain from; made from the data if omitted.
    settings
        ``seed`` and the settings of the sampler, as in
        :class:`~sirf_diffusion.reconstructors.diffusion.loop.DiffusionReconstructor`.
    """

    def __init__(self, objective: Any, model: ScoreModel, *, initial_image: Any = None, **settings: Any) -> None:
        self._given, self._model, self._initial_image = objective, model, initial_image
        self._settings = settings
        self._reconstructor: DiffusionReconstructor | None = None
        self._chain: Chain
        self._level: Denoised

    def set_up(self, image: Any = None) -> None:
        """Prepare, and go to the first noise level (also in order to start again).

        Parameters
        ----------
        image
            Passed to ``set_up`` of an objective function of an engine: only its grid matters. May be omitted if that
            has been set up already.
        """
        if image is not None and not isinstance(self._given, Objective):
            self._given.set_up(image)
        reconstructor = self._sampler(as_objective(self._given))
        with torch.no_grad():
            reconstructor.set_up(self._initial_image)
            self._reconstructor, self._chain = reconstructor, reconstructor.begin()
            self._level = reconstructor.denoise(self._chain, reconstructor.model)

    def advance(self, image: Any) -> bool:
        """Move to the next noise level: put fresh noise on an image that fits the data, and denoise that.

        Parameters
        ----------
        image
            Result of the data step at this noise level.

        Returns
        -------
        bool
            Whether there is another noise level; if not, the image is the sample.
        """
        if self.finished:
            raise RuntimeError(f"all {self.num_steps} noise levels are done: call set_up() to start again")
        chain, sampler = self._chain, self._ready()
        chain.x = self._tensor(image)[None].clone()
        if not bool(torch.isfinite(chain.x).all()):
            raise FloatingPointError(f"the image given to step {chain.step + 1} of {self.num_steps} is not finite")
        chain.step += 1
        if self.finished:
            return False
        with torch.no_grad():
            sampler.renoise(chain, self._level, sampler.model)
            self._level = sampler.denoise(chain, sampler.model)
        return True

    @property
    def finished(self) -> bool:
        self._ready()
        return self._chain.step >= self.num_steps

    @property
    def num_steps(self) -> int:
        """Number of noise levels."""
        return self._ready().num_steps

    @property
    def step_num(self) -> int:
        """Number of the present noise level, from 0."""
        self._ready()
        return self._level.step.index

    @property
    def noise_level(self) -> float:
        """Present noise level, relative to an image of unit mean."""
        self._ready()
        return self._level.step.sigma

    @property
    def intensity_scale(self) -> float:
        """``c``, image units per network unit."""
        return float(self._ready().model.intensity_scale)

    def get_denoised_image(self) -> Any:
        """What the model finds at this noise level, not clipped: where a data step starts."""
        image = self._level_image()
        objective = self._likelihood()
        return objective.to_image(image) if isinstance(objective, NativeImages) else image.clone()

    def admissible(self, image: Any, out: Any = None) -> Any:
        """An image that the likelihood and EM-type updates accept: at least 1e-6 ``c`` inside the field of view, zero
        outside.
        """
        return to_container(self._ready().consistency.admissible(self._tensor(image)), image, out)

    # sirf.STIR.ObjectiveFunction --------------------------------------------------------------------------------------

    def value(self, image: Any, subset: int | None = None) -> float:
        """Value of this noise level's objective, or of a subset's share of it."""
        return self._value(self._tensor(image), _subset(subset))

    def gradient(self, image: Any, subset: int | None = -1, out: Any = None) -> Any:
        """Gradient with respect to the image, in ``out`` (which may be ``image``) or a new image.

        That of a subset is not multiplied by the number of subsets: they add up to that of all data (-1 or None).
        """
        return to_container(self._gradient(self._tensor(image), _subset(subset)), image, out)

    def get_subset_sensitivity(self, subset: int) -> Any:
        """Sensitivity of one subset, an image of the engine or a tensor."""
        objective = self._likelihood()
        sensitivity = objective.sensitivity(None if objective.num_subsets == 1 else _subset(subset))
        return objective.to_image(sensitivity) if isinstance(objective, NativeImages) else sensitivity.clone()

    def get_num_subsets(self) -> int:
        return self.num_subsets

    def set_num_subsets(self, n: int) -> None:
        """Number of subsets of an engine's objective function; takes effect at :meth:`set_up`.

        Raises
        ------
        ValueError
            If the log-likelihood was given as an ``Objective``, whose subsets are fixed, and has another number.
        """
        if not isinstance(self._given, Objective):
            self._given.set_num_subsets(n)
            self._reconstructor = None
        elif n != self._given.num_subsets:
            raise ValueError(f"this log-likelihood was made with {self._given.num_subsets} subsets, asked for {n}")

    @property
    def num_subsets(self) -> int:
        return self._given.num_subsets if isinstance(self._given, Objective) else self._given.get_num_subsets()

    @property
    def device(self) -> torch.device:
        """Where the log-likelihood is computed."""
        return self._likelihood().device

    @abstractmethod
    def _sampler(self, objective: Objective) -> DiffusionReconstructor:
        """The sampler whose data step the user writes."""

    @abstractmethod
    def _value(self, x: Tensor, subset: int | None) -> float:
        """Value at ``x [z, y, x]``."""

    @abstractmethod
    def _gradient(self, x: Tensor, subset: int | None) -> Tensor:
        """Gradient at ``x [z, y, x]``."""

    def _level_image(self) -> Tensor:
        self._ready()
        return self._level.image[0]

    def _likelihood(self) -> Objective:
        return self._ready().objective

    def _ready(self) -> DiffusionReconstructor:
        if self._reconstructor is None:
            raise RuntimeError(f"{type(self).__name__} is not set up: call set_up(image) first")
        return self._reconstructor

    def _tensor(self, image: Any) -> Tensor:
        objective = self._likelihood()
        if not isinstance(image, Tensor) and isinstance(objective, NativeImages):
            image = objective.to_tensor(image)
        x = to_tensor(image).to(self._level_image())
        if tuple(x.shape) != objective.geometry.shape:
            raise ValueError(f"image has shape {tuple(x.shape)}, expected {objective.geometry.shape} (z, y, x)")
        return x


class HQSObjective(StepwiseObjective):
    r"""The likelihood with a pull to the denoised image, as in half-quadratic splitting.

    .. math:: \Phi_k(x) = L(x) - \frac{\rho_k}{2} \lVert x - v \rVert^2, \qquad
        \rho_k = \frac{K}{K_0} \frac{\beta}{(c\,\sigma_k)^2}

    ``v`` is the denoised image at noise level :math:`\sigma_k`. The objective is concave; a data step may stop long
    before its maximum. A subset has its own share of the likelihood and ``1 / num_subsets`` of the pull. The scheme is
    that of :class:`~sirf_diffusion.reconstructors.diffusion.hqs.HQSReconstructor`.

    The parameters are those of :class:`StepwiseObjective`, and ``beta``, the weight of the prior at ``reference_steps``
    noise levels :math:`K_0`.
    """

    @property
    def anchor_strength(self) -> float:
        r""":math:`\rho_k`, counts per image unit squared."""
        return self._ready().consistency.pull(self._level.step)

    def _sampler(self, objective: Objective) -> DiffusionReconstructor:
        return HQSReconstructor(objective, self._model, **self._settings)

    def _value(self, x: Tensor, subset: int | None) -> float:
        return float(self._likelihood().value(x, subset) - self._pull(subset).value(x))

    def _gradient(self, x: Tensor, subset: int | None) -> Tensor:
        return self._likelihood().gradient(x, subset) - self._pull(subset).gradient(x)

    def _pull(self, subset: int | None) -> AnchorPenalty:
        share = 1.0 if subset is None else 1.0 / self._likelihood().num_subsets
        return AnchorPenalty(self._level_image(), share * self.anchor_strength)


class LikelihoodScheduledObjective(StepwiseObjective):
    r"""The likelihood up to the value that a schedule allows at this noise level, and flat beyond it.

    .. math:: \Phi_k(x) = \min(L(x), L_k)

    From the denoised image an ascent moves as long as :math:`L(x) < L_k`; then the gradient is zero and
    :meth:`reached` is true: time to :meth:`advance`. An ascent in small steps, or one that interpolates its last step,
    meets :math:`L_k` and does not overshoot it. The scheme is that of
    :class:`~sirf_diffusion.reconstructors.diffusion.lisch.LikelihoodScheduledReconstructor` (Webber et al. 2025,
    arXiv:2412.04339).

    The gradient of a subset is that of the subset's likelihood, or zero where *all data* reach :math:`L_k`. Knowing
    that costs a forward projection of all data, unless the same image was asked about just before: with many subsets
    ask ``reached(x)`` once per epoch, and take gradients of the log-likelihood itself in between.

    The parameters are those of :class:`StepwiseObjective`; ``target``, ``num_em_iterations``, ``margin`` and
    ``num_em_iterations_max`` say where the schedule ends, and ``schedule_exponent`` how early it rises: 1 unless given,
    as published, because a loop of your own has no anchor that an early schedule needs. The speed is ``"accurate"``.
    """

    _last: tuple[Tensor, Evaluation] | None = None

    def set_up(self, image: Any = None) -> None:
        """Compute the schedule, and go to the first noise level (also in order to start again)."""
        self._last = None
        super().set_up(image)

    @property
    def schedule(self) -> LikelihoodSchedule:
        return self._ready().consistency.schedule

    @property
    def target(self) -> float:
        """:math:`L_k`, the log-likelihood at which the present noise level ends."""
        exponent = self._ready().consistency.schedule_exponent
        return self.schedule.at(((self.step_num + 1) / self.num_steps) ** exponent)

    def log_likelihood(self, image: Any) -> float:
        """``L(x)``, not cut off at the target."""
        return float(self._evaluation(self._tensor(image)).value)

    def reached(self, image: Any) -> bool:
        """Whether an image fits the data as closely as this noise level asks for."""
        # Rounding in float32 projections must not decide whether a target counts as met.
        return self.log_likelihood(image) >= self.target - 1e-9 * abs(self.target)

    def _sampler(self, objective: Objective) -> DiffusionReconstructor:
        published = {"speed": SPEEDS[0], "schedule_exponent": 1.0}
        return LikelihoodScheduledReconstructor(objective, self._model, **published | self._settings)

    def _value(self, x: Tensor, subset: int | None) -> float:
        if subset is not None:
            raise NotImplementedError("the schedule is one of the likelihood of all data: subsets have no value")
        return min(self.log_likelihood(x), self.target)

    def _gradient(self, x: Tensor, subset: int | None) -> Tensor:
        if self.reached(x):
            return torch.zeros_like(x)
        return self._evaluation(x).gradient() if subset is None else self._likelihood().gradient(x, subset)

    def _evaluation(self, x: Tensor) -> Evaluation:
        """Of the image asked about last, if it is the same: value and gradient then share one forward projection."""
        if self._last is None or not torch.equal(self._last[0], x):
            kept = x.clone()  # the user's loop may change its image, which the evaluation still looks at
            self._last = (kept, self._likelihood().at(kept))
        return self._last[1]


def _subset(subset: int | None) -> int | None:
    return None if subset is None or subset < 0 else int(subset)
