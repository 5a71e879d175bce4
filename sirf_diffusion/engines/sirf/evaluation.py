"""One evaluation of SIRF's log-likelihood: value and gradient on demand, of one forward projection where possible."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..toolkit import finite

# Of quotients that are kept between a value and its gradient; beyond this the gradient projects once more.
QUOTIENT_BYTES = 1 << 30

DATA_NEEDED = (
    "needs the acquisition data, which SIRF's objective functions do not hand back: "
    "as_objective(obj, acquisition_data=...), or make obj with sirf_diffusion.get_engine('sirf'); list mode has none"
)


class SirfEvaluation:
    """One evaluation: a batch of images, their values and what was kept for their gradients."""

    def __init__(self, objective: Any, x: Tensor, subset: int | None) -> None:
        self._objective, self._subset = objective, subset
        self._x = x.clone() if x.is_inference() else x
        self._version = self._x._version if not self._x.is_inference() else None
        self._images = self._x.reshape(-1, *x.shape[-3:])
        self._values: dict[int, float] = {}
        self._quotients: dict[int, Tensor] = {}

    def value(self, keep: bool = True) -> Tensor:
        objective, data = self._objective, self._objective._data
        if data is None and self._subset is not None:
            raise NotImplementedError("the log-likelihood of one subset " + DATA_NEEDED)
        with objective.counter.timed():
            for i in range(len(self._images)):
                if i not in self._values:
                    self._evaluate(i, keep)
            values = torch.tensor([self._values[i] for i in range(len(self._images))], dtype=torch.float64)
        return finite(values, "SIRF's log-likelihood").reshape(self._x.shape[:-3])

    def gradient(self, active: Tensor | None = None) -> Tensor:
        chosen = range(len(self._images))
        if active is not None:
            chosen = torch.nonzero(active.reshape(-1)).reshape(-1).tolist()
        shape = self._x.shape if active is None else (len(chosen), *self._x.shape[-3:])
        with self._objective.counter.timed():
            parts = [self._one_gradient(i) for i in chosen]
            if len(parts) == 1:
                return parts[0].reshape(shape)
            return torch.stack(parts).reshape(shape) if parts else self._x.new_zeros(shape)

    def _evaluate(self, i: int, keep: bool) -> None:
        self._check_unchanged()
        objective, data = self._objective, self._objective._data
        if data is None:
            self._values[i] = objective._generic_value(self._images[i])
            return
        share = objective._share(self._subset)
        kept = (len(self._quotients) + 1) * share * data.bytes_of_quotient <= QUOTIENT_BYTES
        objective._image.fill(self._images[i])
        value, quotient = data.likelihood(objective._image.image, self._subset, keep and kept)
        objective.counter.forward += share
        self._values[i] = value
        if quotient is not None:
            self._quotients[i] = quotient

    def _one_gradient(self, i: int) -> Tensor:
        objective, data = self._objective, self._objective._data
        # Without a value before it, STIR's own loop is the faster one.
        if i in self._quotients:
            data.back_project(self._quotients[i], self._subset, objective._result.image)
            objective.counter.back += objective._share(self._subset)
            gradient = objective._result.values()[0] - objective.sensitivity(self._subset)
            return finite(gradient, "SIRF's gradient")
        self._check_unchanged()
        return objective._generic_gradient(self._images[i], self._subset)

    def _check_unchanged(self) -> None:
        if self._version is not None and self._x._version != self._version:
            raise RuntimeError("the image was changed in place between at() and taking its value or gradient")
