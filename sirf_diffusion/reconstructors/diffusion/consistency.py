"""Interfaces of two parts of the diffusion loop: data consistency and adaptation of the network."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ...engines.em import RELATIVE_FLOOR, inside
from ...engines.objective import Objective
from ...geometry.gaussian import gaussian_smooth
from ...geometry.images import ImageGeometry
from ..settings import Settings

if TYPE_CHECKING:
    from ...models.score_model import ScoreModel


def orientation_of_step(index: int, num_steps: int) -> int | None:
    """For `ScoreModel.predict` at a noise level: orientations take turns, but all of them see to the last image."""
    return None if index + 1 == num_steps else index


@dataclass(frozen=True)
class DiffusionStep:
    """Where the chain is: ``index`` (from 0) of ``num_steps``, time ``t``, relative noise level ``sigma`` and the next.

    The level after the last one is 0.
    """

    index: int
    num_steps: int
    t: float
    sigma: float
    sigma_next: float = 0.0


def share_of_levels(step: DiffusionStep, reference_steps: int) -> float:
    """What a pull to the denoised image that adds up over noise levels is multiplied by; 1 at ``reference_steps``.

    With fewer levels each of them holds the image less, so that data and network keep their balance. 0: 1 always.
    """
    return step.num_steps / reference_steps if reference_steps else 1.0


def smooth_direction(
    preconditioner: Tensor, gradient: Tensor, geometry: ImageGeometry, smoothing: float, sigma: float
) -> Tensor:
    r"""What a data step makes of an ascent direction: errors of a denoised image are smooth, so corrections should be.

    .. math:: d = \sqrt{P}\, K\, \sqrt{P}\, g

    for the gradient ``g`` and the diagonal preconditioner ``P``, such as ``x / s`` of EM, with ``K`` a symmetric
    Gaussian whose full width at half maximum is ``smoothing * sqrt(sigma)`` mm; ``smoothing`` 0 leaves ``P g``, the
    published step. Denoising from noise level ``sigma`` leaves little error at spatial frequencies above those that can
    be told from the noise, so that what the data would change there is mostly their own noise. ``K`` stands for the
    covariance of the denoised image's error, where ``P`` alone takes it to be white. It is positive with norm 1 at
    most: ``d`` remains a direction of ascent and step sizes keep their limits.
    """
    if smoothing == 0:
        return preconditioner * gradient
    root = preconditioner.sqrt()
    return root * gaussian_smooth(root * gradient, geometry, smoothing * math.sqrt(sigma), symmetric=True)


@dataclass
class DataStepResult:
    """Result of a data step.

    ``x`` images ``[samples, z, y, x]``; log-likelihoods before and after per sample where they were computed anyway;
    the target if there was one; updates per sample.
    """

    x: Tensor
    before: list[float] | None = None
    after: list[float] | None = None
    target: float | None = None
    num_inner: list[int] | None = None

    @staticmethod
    def joined(parts: list[DataStepResult]) -> DataStepResult:
        """One result of those of successive groups of samples."""
        if len(parts) == 1:
            return parts[0]

        def concatenated(name: str) -> Any:
            lists = [getattr(part, name) for part in parts]
            return None if any(values is None for values in lists) else list(chain.from_iterable(lists))

        values = {name: concatenated(name) for name in ("before", "after", "num_inner")}
        return DataStepResult(torch.cat([part.x for part in parts]), target=parts[0].target, **values)


@dataclass(frozen=True)
class DataConsistency(Settings, ABC):
    """A data step: its settings, and how it brings denoised images towards the data.

    The loop calls :meth:`set_up` once, then :meth:`set_scale`, then the object itself once per noise level (once per
    group of samples if these are split), always with the same ``step`` for all samples. A step keeps no state that
    changes from level to level.
    """

    objective: Objective = field(init=False, repr=False, compare=False)
    sensitivity: Tensor = field(init=False, repr=False, compare=False)
    inside: Tensor = field(init=False, repr=False, compare=False)
    intensity_scale: float = field(init=False, repr=False, compare=False)
    covered: Tensor | None = field(init=False, repr=False, compare=False)

    def set_up(self, objective: Objective, state: dict[str, Any] | None = None) -> None:
        """Take what stays fixed from the objective; a subclass may project here, but for what a resumed run's ``state``
        has.
        """
        sensitivity = objective.sensitivity()
        self.keep(objective=objective, sensitivity=sensitivity, inside=inside(sensitivity))

    def set_scale(self, intensity_scale: float, covered: Tensor | None = None) -> None:
        """Tell the scale ``c`` of ``x = c u``, in image units, and which voxels the network covers if not all."""
        self.keep(
            intensity_scale=float(intensity_scale), covered=None if covered is None else covered.to(self.inside.device)
        )

    def keep(self, **state: Any) -> None:
        """Keep what belongs to one acquisition beside the settings, which are fixed."""
        vars(self).update(state)

    @abstractmethod
    def __call__(self, prior_image: Tensor, step: DiffusionStep) -> DataStepResult:
        """Bring ``prior_image`` towards the data.

        Parameters
        ----------
        prior_image
            Denoised images ``[samples, z, y, x]`` in image units, not clipped. Must not be changed in place.
        step
            Position in the chain.
        """

    def admissible(self, image: Tensor) -> Tensor:
        """A copy that the likelihood accepts: at least ``1e-6 c`` inside the field of view, zero outside.

        The floor is there because multiplicative updates never leave zero. What the network does not cover stays there.
        """
        floor = RELATIVE_FLOOR * self.intensity_scale
        if self.covered is not None:
            image = torch.where(self.covered, image, floor)
        return image.clamp(min=floor).mul_(self.inside)

    def summary(self) -> dict[str, Any]:
        """What :meth:`set_up` found and the run's record should keep, ready for JSON."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a resumed run gives :meth:`set_up` instead of its projections, ready for JSON."""
        return {}

    def early_image(self) -> Tensor | None:
        """An EM image that :meth:`set_up` happened to compute, for the intensity scale."""
        return None


class Adaptation:
    """A way to fit the prior to the data while sampling.

    The loop calls :meth:`set_up` once, :meth:`begin` (and in a resumed run :meth:`resume`) at the start of each run,
    then the object itself at every noise level, before the images are denoised. The model
    given to the reconstructor must stay as it is: an adaptation that changes weights works on its own copy.
    """

    name: ClassVar[str] = ""

    def set_up(
        self,
        objective: Objective,
        model: ScoreModel,
        consistency: DataConsistency | None,
        num_steps: int,
        state: dict[str, Any] | None = None,
    ) -> None:
        """Take what stays fixed; may project, but for what a resumed run's :meth:`state` has."""

    def begin(self, model: ScoreModel, num_samples: int, batch_size: int) -> ScoreModel:
        """Forget earlier runs; returns the model for the first step."""
        return model

    def __call__(self, model: ScoreModel, u: Tensor, step: DiffusionStep) -> ScoreModel | None:
        """Called at every noise level with the model and the noisy latent images ``[samples, z, y, x]``.

        Returns the model that denoises them and takes the steps that follow, or None to keep the present one. All
        samples share it.
        """

    @property
    def settings(self) -> dict[str, Any]:
        """Parameters, ready for JSON."""
        return {}

    def summary(self) -> dict[str, Any]:
        """What the run's record should keep, ready for JSON."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides :meth:`tensors`, ready for JSON."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """What a resumed run needs in full precision."""
        return {}

    def resume(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Go on where :meth:`tensors` and :meth:`state` were taken; after :meth:`begin`."""

    @property
    def loss(self) -> float | None:
        """The loss before the last update, None if there was none at this noise level."""
        return None
