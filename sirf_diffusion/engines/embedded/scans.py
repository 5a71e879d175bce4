"""A batch of scans of one scanner, projected together: EM and OSEM of all their images at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..em import RELATIVE_FLOOR, STARTING_FLOOR, herman_meyer_order
from .projector import Projector

_SMALLEST = 1e-9


@dataclass(frozen=True)
class Scans:
    """Prompts ``[B, sinograms, views, bins]``, expected to be ``factors * forward(images) + background``.

    ``background`` need only broadcast against the prompts.
    """

    projector: Projector
    prompts: Tensor
    factors: Tensor
    background: Tensor

    @cached_property
    def sensitivity(self) -> Tensor:
        """``A^T 1`` of each scan, ``[B, z, y, x]``."""
        return self.projector.adjoint(self.factors)

    def increment(self, x: Tensor) -> Tensor:
        """What one EM update adds to images ``[B, z, y, x]``: one forward and one back projection of each."""
        seen = self.sensitivity > 1e-9 * self.sensitivity.amax((-3, -2, -1), keepdim=True)
        x = x.clamp(min=RELATIVE_FLOOR) * seen
        expected = self.factors * self.projector.forward(x) + self.background
        ratio = torch.where(self.prompts > 0, self.prompts / expected, torch.zeros_like(expected)) - 1
        gradient = self.projector.adjoint(self.factors * torch.nan_to_num(ratio, posinf=0.0))
        return x * gradient / torch.where(seen, self.sensitivity, torch.ones_like(self.sensitivity))

    def osem(self, num_iterations: int, num_subsets: int, inside: Tensor) -> Tensor:
        """Images after so many epochs, from uniform ones where the mask ``inside`` is true."""
        projector, background = self.projector, self.background.expand_as(self.prompts)
        parts = [projector.subset_views(k, num_subsets) for k in herman_meyer_order(num_subsets)]
        views = [list(part) if part is not None else slice(None) for part in parts]
        factors = [self.factors[..., view, :] for view in views]
        sensitivities = [projector.adjoint(f, p) for f, p in zip(factors, parts, strict=True)]
        scale = self.prompts.sum((-3, -2, -1), keepdim=True) / sum(sensitivities).sum((-3, -2, -1), keepdim=True)
        image = scale.clamp_min(STARTING_FLOOR) * inside
        for _ in range(num_iterations):
            for view, part, factor, sensitivity in zip(views, parts, factors, sensitivities, strict=True):
                expected = factor * projector.forward(image, part) + background[..., view, :]
                ratio = self.prompts[..., view, :] / expected.clamp_min(_SMALLEST)
                image = image * projector.adjoint(factor * ratio, part) / sensitivity.clamp_min(_SMALLEST)
        return image
