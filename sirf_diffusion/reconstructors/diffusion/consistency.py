"""The data-consistency seam of the diffusion loop: how a denoised image is brought towards the measured data."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...engines.em import RELATIVE_FLOOR, inside
from ...engines.objective import Objective
from ...geometry.images import ImageGeometry


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


class SmoothStep:
    r"""What a data step makes of an ascent direction: errors of a denoised image are smooth, so corrections should be.

    .. math:: d = \sqrt{P}\, K\, \sqrt{P}\, g

    for the gradient ``g`` and the diagonal preconditioner ``P``, such as ``x / s`` of EM, with ``K`` a Gaussian whose
    full width at half maximum is ``smoothing * sqrt(sigma)`` mm. Denoising from noise level ``sigma`` leaves little
    error at spatial frequencies above those that can be told from the noise, so that what the data would change
    there is mostly their own noise. ``K`` stands for the covariance of the denoised image's error, where ``P`` alone
    takes it to be white; its width follows that of the Gaussian filter which denoises best. It is symmetric and
    positive with norm 1 at most: ``d`` remains a direction of ascent and step sizes keep their limits.

    Parameters
    ----------
    geometry
        Image grid.
    smoothing
        Width in mm at ``sigma = 1``; 0 leaves ``P g``, the published step.
    """

    def __init__(self, geometry: ImageGeometry, smoothing: float) -> None:
        self.geometry, self.smoothing = geometry, smoothing
        self._kernels: tuple[float, list[Tensor]] | None = None

    def direction(self, preconditioner: Tensor, gradient: Tensor, sigma: float) -> Tensor:
        """The direction ``d`` for images ``[..., z, y, x]``."""
        if self.smoothing == 0:
            return preconditioner * gradient
        root = preconditioner.sqrt()
        d = root * gradient
        for axis, kernel in enumerate(self._at(sigma, d)):
            d = (d.movedim(axis - 3, -1) @ kernel).movedim(-1, axis - 3)
        return root * d

    def _at(self, sigma: float, like: Tensor) -> list[Tensor]:
        if self._kernels is None or self._kernels[0] != sigma:
            width = self.smoothing * math.sqrt(sigma) / math.sqrt(8 * math.log(2))
            sizes = zip(self.geometry.shape, self.geometry.voxel_size, strict=True)
            self._kernels = (sigma, [_gaussian(n, d, width).to(like) for n, d in sizes])
        return self._kernels[1]


def _gaussian(size: int, spacing: float, width: float) -> Tensor:
    """Symmetric smoothing matrix, rows and columns scaled alike so that edges are not darkened."""
    index = torch.arange(size, dtype=torch.float64) * spacing
    weights = torch.exp(-0.5 * ((index[:, None] - index) / width) ** 2)
    scale = weights.sum(1).rsqrt()
    return scale[:, None] * weights * scale


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


class DataConsistency(ABC):
    """A data step. Subclasses implement :meth:`__call__`; they keep no state that changes from step to step.

    The loop calls :meth:`set_up` once, then :meth:`set_scale`, then the object itself once per noise level (once per
    group of samples if these are split), always with the same ``step`` for all samples.
    """

    name: ClassVar[str] = ""
    objective: Objective
    sensitivity: Tensor
    inside: Tensor
    intensity_scale: float

    def set_up(self, objective: Objective) -> None:
        """Take what stays fixed from the objective; a subclass may project here."""
        self.objective = objective
        self.sensitivity = objective.sensitivity()
        self.inside = inside(self.sensitivity)

    def set_scale(self, intensity_scale: float) -> None:
        """Tell the scale ``c`` of ``x = c u``, in image units."""
        self.intensity_scale = float(intensity_scale)

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

        The floor is there because multiplicative updates never leave zero.
        """
        return image.clamp(min=RELATIVE_FLOOR * self.intensity_scale).mul_(self.inside)

    @property
    def settings(self) -> dict[str, Any]:
        """Parameters, ready for JSON."""
        return {}

    def summary(self) -> dict[str, Any]:
        """What :meth:`set_up` found and the run's record should keep, ready for JSON."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a resumed run needs instead of the projections of :meth:`set_up`, ready for JSON."""
        return {}

    def restore(self, objective: Objective, state: dict[str, Any]) -> None:
        """:meth:`set_up` from :meth:`state`."""
        self.set_up(objective)

    def early_image(self) -> Tensor | None:
        """An EM image that :meth:`set_up` happened to compute, for the intensity scale."""
        return None
