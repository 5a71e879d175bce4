"""OSEM as STIR's OSMAPOSL runs it, voxel for voxel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...engines.objective import Evaluation, Objective
from ...geometry.checks import check_image
from ..records import StepRecord
from .osem import OSEM

_SMALL = 1e-6


@dataclass(frozen=True)
class StirUpdates:
    """The updates that a parameter file asks for.

    Parameters
    ----------
    subset_order
        Subsets in the order of their use.
    first
        ``start at subiteration number``.
    relative_change
        ``minimum`` and ``maximum relative change``: limits of the factor by which an update multiplies a voxel, in
        force from subiteration 2 on.
    """

    subset_order: tuple[int, ...]
    first: int = 1
    relative_change: tuple[float, float] = (0.0, math.inf)


class OSMAPOSL(OSEM):
    r"""STIR's OSMAPOSL without a prior, :math:`x \leftarrow x\, \mathrm{clip}(1 + \nabla L_k(x) / s_k)`.

    It differs from :class:`OSEM` at the rim of the field of view, where few rays pass: OSEM has zeros there, STIR has
    values. It starts from an image of ones, and takes a given one as it is.

    Parameters
    ----------
    objective, num_iterations, callbacks
        As for :class:`OSEM`.
    updates
        What the parameter file asks for.
    """

    def __init__(
        self,
        objective: Objective,
        num_iterations: int,
        updates: StirUpdates,
        *,
        callbacks: Iterable[Callable[[StepRecord], None]] = (),
    ) -> None:
        super().__init__(objective, num_iterations, subset_order=updates.subset_order, callbacks=callbacks)
        self.updates = updates
        self.settings["relative_change"] = list(updates.relative_change)

    def set_up(self, initial_image: Any = None) -> None:
        """Fix the starting image ``[z, y, x]``; ones if omitted."""
        shape = self.objective.geometry.shape
        image = torch.ones(shape) if initial_image is None else initial_image
        image = image if isinstance(image, Tensor) else self._taken(image)
        check_image(image, "initial_image", shape)
        self._initial = image.detach().to(self.objective.sensitivity(), copy=True)
        self._begin()

    def _update(self, x: Tensor, subset: int | None, evaluation: Evaluation, number: int) -> Tensor:
        sensitivity = self.objective.sensitivity(subset)
        seen = sensitivity > 0
        ratio = (evaluation.gradient() + sensitivity) / torch.where(seen, sensitivity, torch.ones_like(sensitivity))
        limits = self.updates.relative_change if self.updates.first + number > 1 else (0.0, math.inf)
        return x * torch.where(seen, ratio, torch.zeros_like(ratio)).clamp(*limits)


def make_positive(x: Tensor) -> Tensor:
    """Values of 0 and below raised to a millionth of the smallest positive one, as STIR does before EM."""
    positive = x[x > 0]
    return torch.where(x > 0, x, _SMALL * (positive.min() if positive.numel() else torch.ones_like(x)))
