"""What a prior is: a penalty on an image, with its derivatives, as plain tensor functions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor


class Penalty(ABC):
    r"""A penalty :math:`\beta R(x)`; reconstructors maximise :math:`L(x) - \beta R(x)`.

    STIR's sign and scaling throughout: "priors" are penalties, ``gradient`` points uphill of the penalty, and
    everything that is returned already contains the penalisation factor. Images are tensors ``[..., z, y, x]`` in
    image units; leading dimensions are independent images.

    Parameters
    ----------
    penalisation_factor
        :math:`\beta \ge 0`; may be changed at any time.

    Attributes
    ----------
    explicit : bool
        Whether ``value`` is a closed formula whose gradient ``gradient`` is. A learned prior is not explicit.
    has_majoriser : bool
        Whether ``curvature`` bounds the Hessian everywhere, so that ``majoriser`` lies above the penalty for all
        images.
    """

    explicit: ClassVar[bool] = True
    has_majoriser: ClassVar[bool] = False

    def __init__(self, penalisation_factor: float) -> None:
        self.penalisation_factor = penalisation_factor

    @property
    def penalisation_factor(self) -> float:
        r""":math:`\beta`."""
        return self._penalisation_factor

    @penalisation_factor.setter
    def penalisation_factor(self, value: float) -> None:
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"penalisation_factor must be a finite number of at least 0, found {value!r}")
        self._penalisation_factor = float(value)

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        r""":math:`\beta R(x)`, float64, one number per image."""

    @abstractmethod
    def gradient(self, x: Tensor) -> Tensor:
        r""":math:`\beta \nabla R(x)`, shape of ``x``."""

    @abstractmethod
    def curvature(self, x: Tensor) -> Tensor:
        r"""Diagonal ``C`` with :math:`\beta \nabla^2 R(x) \preceq \mathrm{diag}(C)`, shape of ``x``."""

    @abstractmethod
    def hessian_times(self, x: Tensor, v: Tensor) -> Tensor:
        r""":math:`\beta \nabla^2 R(x)\, v`, shape of ``x``."""

    @property
    def settings(self) -> dict[str, Any]:
        """What a record needs to name this prior: class, factor and parameters, JSON-able."""
        return {"name": type(self).__name__, "penalisation_factor": self.penalisation_factor}

    def majoriser(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Anchor and strength of the quadratic :math:`\tfrac12 \sum_j \rho_j (z_j - v_j)^2` that touches the penalty
        at ``x``.

        With :math:`g` the gradient and :math:`C` the curvature: :math:`v = x - g / C`, :math:`\rho = C` (up to a
        constant).

        Returns
        -------
        tuple of Tensor
            ``(v, rho)``, both of the shape of ``x`` or broadcastable to it; ``rho`` contains the penalisation factor.
        """
        rho = self.curvature(x)
        safe = rho.clamp_min(torch.finfo(rho.dtype).tiny)
        return x - self.gradient(x) / safe, rho
