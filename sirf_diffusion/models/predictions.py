"""What networks predict, and the clean image and noise that follow from it."""

from __future__ import annotations

import torch
from torch import Tensor

PREDICTIONS = ("eps", "x0", "v", "score")


def denoised_and_noise(prediction: str, output: Tensor, u: Tensor, gamma: float, nu: float) -> tuple[Tensor, Tensor]:
    """Clean image and noise ``(u0, eps)``, with ``u = gamma u0 + nu eps``, from what a network predicts.

    ``eps``: the noise. ``x0``: the clean image. ``v = gamma eps - nu u0`` (Salimans and Ho 2022, arXiv:2202.00512;
    variance-preserving schedules only). ``score = -eps / nu``.
    """
    if prediction == "eps":
        return (u - nu * output) / gamma, output
    if prediction == "x0":
        return output, (u - gamma * output) / nu
    if prediction == "v":
        _check_v(gamma, nu)
        return gamma * u - nu * output, nu * u + gamma * output
    if prediction == "score":
        return (u + nu * nu * output) / gamma, -nu * output
    raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, found {prediction!r}")


def prediction_target(prediction: str, u0: Tensor, eps: Tensor, gamma: Tensor | float, nu: Tensor | float) -> Tensor:
    """What a network with this kind of prediction should output for ``gamma u0 + nu eps``: the training target."""
    if prediction == "eps":
        return eps
    if prediction == "x0":
        return u0
    if prediction == "v":
        _check_v(gamma, nu)
        return gamma * eps - nu * u0
    if prediction == "score":
        return -eps / nu
    raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, found {prediction!r}")


def _check_v(gamma: Tensor | float, nu: Tensor | float) -> None:
    deviation = torch.as_tensor(gamma * gamma + nu * nu - 1.0).abs().max()
    if float(deviation) > 1e-4:
        raise ValueError(f"v-prediction needs gamma^2 + nu^2 = 1 (a VP schedule), found a deviation of {deviation:.3g}")
