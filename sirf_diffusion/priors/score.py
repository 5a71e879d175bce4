"""A diffusion model as a penalty: the negative log-density of noisy versions of the images it was trained on."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from .base import Penalty

# The score prior's defaults wherever it is offered: class, objects of SIRF, blocks of STIR's parameter files, commands.
NOISE_LEVEL = 0.2
PENALISATION_FACTOR = 0.2

# Gauss-Legendre points per straight path: exact where the gradient is a polynomial of up to degree 15 along it.
PATH_POINTS = 8


@runtime_checkable
class ResidualModel(Protocol):
    """What the prior needs of a model; :class:`~sirf_diffusion.models.ScoreModel` bound to a grid offers it."""

    @property
    def intensity_scale(self) -> float:
        """``c``: image units per network unit."""
        ...

    def residual(self, x: Tensor, sigma: float) -> Tensor:
        """``x - c D(x / c, sigma)`` in image units (through the grid adapter and its adjoint), ``[..., z, y, x]``."""
        ...


class ScorePenalty(Penalty):
    r"""Penalty :math:`\beta R` with :math:`R = -\log p_\sigma`, the density of clean images plus noise of SD :math:`c
    \sigma`.

    .. math:: \beta \nabla R(x) = \beta\, \frac{x - c\, D(x / c, \sigma)}{(c \sigma)^2}

    By Tweedie's formula this is exact for the ideal denoiser ``D`` (Romano, Elad and Milanfar 2017,
    doi:10.1137/16M1102884, with :math:`\lambda = \beta / (c \sigma)^2`). :math:`\beta = 1` is the Bayesian choice for
    the smoothed density.

    Parameters
    ----------
    model
        A model bound to the image grid (:class:`ResidualModel`).
    sigma
        Noise level in network units (relative to a unit-mean image), > 0. 0.05 to 0.3 is useful: small is sharp and
        rough, large is smooth and biased.
    penalisation_factor
        :math:`\beta`.
    lipschitz
        Bound of the largest eigenvalue of ``I - dD/du``; 1 holds for the ideal denoiser. See
        :meth:`estimate_lipschitz`.
    kappa
        Non-negative image ``[z, y, x]``: the gradient is multiplied by :math:`\kappa_j^2`, as the penalties on
        neighbours are where kappa is smooth. Then it is the gradient of a function only approximately.

    Notes
    -----
    A network is not exactly the gradient of anything, so ``value`` is a path integral from the zero image,
    :math:`\int_0^1 \langle \beta \nabla R(a x), x \rangle\, da` (8 network calls), which agrees with the gradient
    only as far as the network is conservative; :meth:`loop_discrepancy` measures that. Do not line-search on it. No
    image is clipped.

    Raises
    ------
    TypeError
        If the model offers no ``residual``.
    ValueError
        For ``sigma`` or ``lipschitz`` that is not positive.
    """

    explicit: ClassVar[bool] = False
    has_majoriser: ClassVar[bool] = True

    def __init__(
        self,
        model: ResidualModel,
        sigma: float = NOISE_LEVEL,
        penalisation_factor: float = PENALISATION_FACTOR,
        *,
        lipschitz: float = 1.0,
        kappa: Tensor | None = None,
    ) -> None:
        super().__init__(penalisation_factor)
        if not hasattr(model, "residual"):
            raise TypeError(
                f"model must offer residual(x, sigma), found {type(model).__name__}; bind a ScoreModel with .on()"
            )
        for name, value in (("sigma", sigma), ("lipschitz", lipschitz)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be a positive finite number, found {value!r}")
        self.model = model
        self.sigma = float(sigma)
        self.lipschitz = float(lipschitz)
        self.set_kappa(kappa)

    def set_kappa(self, kappa: Tensor | None) -> None:
        """Replace the kappa image; None for none."""
        if kappa is not None and not bool((torch.isfinite(kappa) & (kappa >= 0)).all()):
            raise ValueError("kappa must be finite and not negative everywhere")
        self._kappa_squared = None if kappa is None else kappa.detach().square()

    @property
    def strength(self) -> float:
        r""":math:`\beta / (c \sigma)^2`, counts per image unit squared."""
        return self.penalisation_factor / (self.model.intensity_scale * self.sigma) ** 2

    @property
    def settings(self) -> dict[str, Any]:
        own = {"sigma": self.sigma, "lipschitz": self.lipschitz, "intensity_scale": float(self.model.intensity_scale)}
        own["kappa"] = self._kappa_squared is not None
        return {**super().settings, **own, "model": getattr(self.model, "hash", None)}

    @property
    def counter(self) -> Any:
        """The model's network counter, or None."""
        return getattr(self.model, "counter", None)

    def value(self, x: Tensor) -> Tensor:
        r"""Path integral of the gradient from the zero image, so that :math:`\beta R(0) = 0`."""
        return self.path_integral(torch.zeros_like(x), x)

    def gradient(self, x: Tensor) -> Tensor:
        if self.penalisation_factor == 0:
            return torch.zeros_like(x)
        return self._weighted(self.strength * self.model.residual(x, self.sigma))

    def curvature(self, x: Tensor) -> Tensor:
        r""":math:`\beta\, l\, \kappa^2 / (c \sigma)^2` with ``l`` the Lipschitz bound."""
        return self._weighted(torch.full_like(x, self.strength * self.lipschitz))

    def hessian_times(self, x: Tensor, v: Tensor) -> Tensor:
        r"""Central difference of gradients along ``v``, step :math:`10^{-2} c \sigma` in root mean square."""
        rms = v.square().mean((-3, -2, -1), keepdim=True).sqrt()
        if self.penalisation_factor == 0 or not bool((rms > 0).any()):
            return torch.zeros_like(x)
        step = 1e-2 * self.model.intensity_scale * self.sigma / rms.clamp_min(torch.finfo(v.dtype).tiny)
        pair = self.gradient(torch.stack([x + step * v, x - step * v]))
        return torch.where(rms > 0, (pair[0] - pair[1]) / (2 * step), torch.zeros_like(x))

    def path_integral(self, start: Tensor, end: Tensor) -> Tensor:
        """Integral of the gradient along the straight line between two images, float64, one number per image."""
        nodes, weights = np.polynomial.legendre.leggauss(PATH_POINTS)
        change = end - start
        points = torch.stack([start + (1 + float(node)) / 2 * change for node in nodes])
        slopes = (self.gradient(points).double() * change.double()).sum((-3, -2, -1))
        return torch.tensordot(slopes.new_tensor(weights / 2), slopes, dims=1)

    def loop_discrepancy(self, x: Tensor, y: Tensor) -> float:
        r"""Circulation around the triangle 0, x, y relative to its longest side: 0 for a conservative denoiser.

        .. math:: \left| \int_{0x} + \int_{xy} - \int_{0y} \right| / \max(|\int_{0x}|, |\int_{xy}|, |\int_{0y}|)
        """
        sides = [self.value(x), self.path_integral(x, y), self.value(y)]
        largest = max(float(side.abs().max()) for side in sides)
        return float((sides[0] + sides[1] - sides[2]).abs().max()) / largest if largest else 0.0

    def estimate_lipschitz(self, x: Tensor, num_iterations: int = 10, seed: int = 0) -> float:
        """Largest eigenvalue of ``I - dD/du`` at an image by power iteration (two network calls each).

        Give ``max(1, 1.1 * result)`` as ``lipschitz`` if the majoriser has to be safe for a trained network.
        """
        plain = ScorePenalty(self.model, self.sigma, 1.0)
        generator = torch.Generator(device="cpu").manual_seed(seed)
        v = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        eigenvalue = 0.0
        for _ in range(num_iterations):
            v = v / v.norm()
            image = plain.hessian_times(x, v) / plain.strength
            eigenvalue = float((image * v).sum())
            if not float(image.norm()):
                return 0.0
            v = image
        return eigenvalue

    def _weighted(self, image: Tensor) -> Tensor:
        return image if self._kappa_squared is None else image * self._kappa_squared.to(image)
