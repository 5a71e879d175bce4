"""A user's prior, written on NumPy arrays, as a penalty on tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..geometry.images import ImageGeometry
from ..priors import Penalty


class CallbackPenalty(Penalty):
    """Calls ``value(x)``, ``gradient(x, out)``, ``curvature(x, out)`` and ``hessian_times(x, v, out)`` of an object.

    The object knows no penalisation factor and sees float32 arrays ``[z, y, x]``; inputs are read-only.

    Raises
    ------
    NotImplementedError
        If something is asked that the object does not have.
    FloatingPointError
        If the object returns NaN or infinity, which would ruin the image that it is used for.
    """

    def __init__(self, obj: Any, penalisation_factor: float = 1.0) -> None:
        super().__init__(penalisation_factor)
        self.obj = obj
        self.has_curvature = callable(getattr(obj, "curvature", None))
        self.has_kappa = callable(getattr(obj, "set_kappa", None))

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "name": type(self.obj).__name__}

    def set_kappa(self, kappa: Tensor | None, grid: ImageGeometry | None = None) -> None:
        super().set_kappa(kappa, grid)
        self.obj.set_kappa(None if kappa is None else kappa.numpy())

    def value(self, x: Tensor) -> Tensor:
        values = [float(self.obj.value(_read_only(image))) for image in _images(x)]
        result = self.penalisation_factor * torch.tensor(values, dtype=torch.float64)
        if not bool(torch.isfinite(result).all()):
            raise FloatingPointError(f"{type(self.obj).__name__}.value is not finite")
        return result.reshape(x.shape[:-3])

    def gradient(self, x: Tensor) -> Tensor:
        return self._called("gradient", x)

    def curvature(self, x: Tensor) -> Tensor:
        return self._called("curvature", x)

    def hessian_times(self, x: Tensor, v: Tensor) -> Tensor:
        return self._called("hessian_times", x, v)

    def _prepare(self, geometry: ImageGeometry) -> None:
        if callable(getattr(self.obj, "set_up", None)):
            self.obj.set_up(geometry)

    def _called(self, name: str, *inputs: Tensor) -> Tensor:
        function = getattr(self.obj, name, None)
        if function is None:
            raise NotImplementedError(f"{type(self.obj).__name__} has no {name}")
        first = inputs[0]
        results = []
        for images in zip(*(_images(each.expand_as(first)) for each in inputs), strict=True):
            # Filled with NaN: an object that forgets a part of its output is found out.
            out = np.full(tuple(first.shape[-3:]), np.nan, dtype=np.float32)
            function(*(_read_only(image) for image in images), out)
            if not np.isfinite(out).all():
                number = int((~np.isfinite(out)).sum())
                raise FloatingPointError(
                    f"{type(self.obj).__name__}.{name} left {number} values that are not finite; it must overwrite out"
                )
            results.append(torch.from_numpy(out))
        return self.penalisation_factor * torch.stack(results).reshape(first.shape).to(first)


def _images(x: Tensor) -> Tensor:
    return x.detach().reshape(-1, *x.shape[-3:])


def _read_only(image: Tensor) -> np.ndarray:
    array = image.to("cpu", torch.float32).numpy().view()
    array.flags.writeable = False
    return array
