"""What the objective functions of STIR's Python module and of SIRF have in common."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..geometry.checks import check_finite, check_image, check_tensor
from ..geometry.images import ImageGeometry
from .objective import Objective, ProjectionCounter

#: What makes a toolkit compute what is no number: it checks none of these.
CAUSES = "look for NaN, infinity and 0 in the normalisation factors, the additive term and the attenuation"


class ToolkitObjective(Objective):
    """An objective whose subsets are fixed by the toolkit, and that computes on the CPU."""

    device = torch.device("cpu")

    def __init__(self, num_subsets: int, geometry: ImageGeometry) -> None:
        self.num_subsets, self.geometry = num_subsets, geometry
        self.counter = ProjectionCounter()
        self._sensitivities: dict[int | None, Tensor] = {}
        self._made_of = self._parts()

    def with_embedded_projector(self, device: str | torch.device = "cpu") -> Objective:
        """The same log-likelihood by the embedded engine's projector, where that has a counterpart (ValueError)."""
        from .embedded.stand_in import StandInObjective

        return StandInObjective(self, self._toolkit_data(), device)

    def _toolkit_data(self) -> Any:
        """What the embedded engine needs of the toolkit's objects."""
        raise NotImplementedError

    def _parts(self) -> tuple[Any, float]:
        """What tells the data of the toolkit's object from others, and its model: `sum_of` a sensitivity."""
        raise NotImplementedError

    def check_unchanged(self) -> None:
        """RuntimeError if the toolkit's object computes with other data, or another model, than this one knows."""
        (before, seen), (now, sees) = self._made_of, self._parts()
        if now != before or not math.isclose(seen, sees, rel_tol=1e-4):
            raise RuntimeError(
                "the objective function was given other data or another model and set up again: make the objective, or "
                "the reconstructor, anew as well"
            )

    def _checked(self, x: Tensor, subset: int | None = None) -> Tensor:
        """Images ``[..., z, y, x]`` for the toolkit, which may have been compiled to take NaN for a number."""
        self.check_unchanged()
        self._check_subset(subset)
        check_tensor(x, "the image")
        x = x.detach().to("cpu", torch.float32)
        check_image(x, "the image", self.geometry.shape, batch=True)
        return x

    def _check_subset(self, subset: int | None) -> None:
        if subset is not None and not 0 <= subset < self.num_subsets:
            raise ValueError(f"subset must be in 0..{self.num_subsets - 1}, found {subset}")

    def _share(self, subset: int | None) -> float:
        """Of the data."""
        return 1.0 if subset is None else 1 / self.num_subsets


def sum_of(values: Tensor) -> float:
    """Of a few thousand of the values, which tells other ones."""
    flat = values.reshape(-1)
    return float(flat[:: max(1, len(flat) // 4096)].sum(dtype=torch.float64))


def finite(values: Tensor, what: str) -> Tensor:
    """The values that a toolkit computed, ValueError if any of them is not finite."""
    check_finite(values, what, CAUSES)
    return values


def check_prompts(prompts: Tensor) -> None:
    """ValueError for what cannot have been counted, which the toolkits take without a word; rounding counts as zero."""
    from .embedded.acquisition_model import without_rounding

    prompts = without_rounding(prompts, "prompts")
    if bad := int((~((prompts >= 0) & prompts.isfinite())).sum()):
        raise ValueError(f"{bad} prompts are negative or not finite: give raw counts, before any correction")
