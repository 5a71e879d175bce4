"""A batch of scans of one scanner, projected together: EM and OSEM of all their images at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice

import torch
from torch import Tensor

from ..em import RELATIVE_FLOOR, STARTING_FLOOR, herman_meyer_order
from .projector import Projector
from .subsets import largest_num_subsets

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

    @property
    def _seen(self) -> Tensor:
        return self.sensitivity > 1e-9 * self.sensitivity.amax((-3, -2, -1), keepdim=True)

    def increment(self, x: Tensor) -> Tensor:
        """What one EM update adds to images ``[B, z, y, x]``: one forward and one back projection of each."""
        seen = self._seen
        x = x.clamp(min=RELATIVE_FLOOR) * seen
        expected = self.factors * self.projector.forward(x) + self.background
        ratio = torch.where(self.prompts > 0, self.prompts / expected, torch.zeros_like(expected)) - 1
        gradient = self.projector.adjoint(self.factors * torch.nan_to_num(ratio, posinf=0.0))
        return x * gradient / torch.where(seen, self.sensitivity, torch.ones_like(self.sensitivity))

    def increments(self, x: Tensor, num_updates: int, times: int) -> list[Tensor]:
        """`increment`, and what so many updates of about as many subsets add, once and up to ``times`` times."""
        found = [self.increment(x)]
        if num_updates:
            number = largest_num_subsets(self.projector.basic_views, num_updates)
            subsets, order = OrderedSubsets(self, number), cycle(range(number))
            image = start = x.clamp(min=RELATIVE_FLOOR) * self._seen
            for _ in range(times):
                for k in islice(order, num_updates):
                    image = subsets.update(image, k)
                found.append(image - start)
        return found

    def osem(self, num_iterations: int, num_subsets: int, inside: Tensor) -> Tensor:
        """Images after so many epochs, from uniform ones where the mask ``inside`` is true."""
        subsets = OrderedSubsets(self, num_subsets)
        image = subsets.uniform_images(inside)
        for _ in range(num_iterations):
            image = subsets.epoch(image)
        return image


class OrderedSubsets:
    """Scans in subsets of their views, in the order in which successive ones differ most."""

    def __init__(self, scans: Scans, num_subsets: int) -> None:
        projector, self.scans = scans.projector, scans
        self._parts = [projector.subset_views(k, num_subsets) for k in herman_meyer_order(num_subsets)]
        self._views = [list(part) if part is not None else slice(None) for part in self._parts]
        self._factors = [scans.factors[..., view, :] for view in self._views]
        #: Those of the subsets, ``[B, z, y, x]`` each.
        self.sensitivities = [projector.adjoint(f, p) for f, p in zip(self._factors, self._parts, strict=True)]

    def uniform_images(self, inside: Tensor) -> Tensor:
        """Even images with as many counts as the prompts, where the mask is true."""
        prompts, sensitivity = self.scans.prompts, sum(self.sensitivities)
        scale = prompts.sum((-3, -2, -1), keepdim=True) / sensitivity.sum((-3, -2, -1), keepdim=True)
        return scale.clamp_min(STARTING_FLOOR) * inside

    def update(self, image: Tensor, k: int) -> Tensor:
        """The EM update of one subset, differentiable."""
        scans, part, view = self.scans, self._parts[k], self._views[k]
        background = scans.background.expand_as(scans.prompts)[..., view, :]
        expected = self._factors[k] * scans.projector.forward(image, part) + background
        ratio = scans.prompts[..., view, :] / expected.clamp_min(_SMALLEST)
        back = scans.projector.adjoint(self._factors[k] * ratio, part)
        return image * back / self.sensitivities[k].clamp_min(_SMALLEST)

    def epoch(self, image: Tensor) -> Tensor:
        """The updates of all subsets."""
        for k in range(len(self._parts)):
            image = self.update(image, k)
        return image
