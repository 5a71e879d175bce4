"""Networks around which their authors put fixed factors, as denoisers.

With ``w = u0 + sigma z``, the denoised image is ``D(w, sigma) = c_skip w + c_out F(c_in w, told)``. With the standard
deviation ``s`` of clean images, ``q^2 = sigma^2 + s^2`` and ``n`` training steps:

===== =============== =============== =================== =====================
kind  c_skip          c_in            c_out               told
===== =============== =============== =================== =====================
edm   s^2 / q^2       1 / q           sigma s / q         ln(sigma) / 4
angle s^2 / q^2       1 / q           sigma s / q         2 arctan(sigma) / pi
flow  1 / (1 + sigma) 1 / (1 + sigma) sigma / (1 + sigma) n sigma / (1 + sigma)
score 1               1               sigma^2             sigma
===== =============== =============== =================== =====================

``edm``: Karras et al. 2022, arXiv:2206.00364, table 1. ``angle``: v-prediction (Salimans and Ho 2022, arXiv:2202.00512)
with the time as an angle. ``flow``: rectified flow (Liu et al. 2022, arXiv:2209.03003), a network of
``(1 - r) u0 + r z`` that predicts ``u0 - z``, with ``r = sigma / (1 + sigma)``. ``score``: the gradient of
``log p_sigma`` (Song et al. 2021, arXiv:2011.13456).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

PRECONDITIONINGS = ("none", "edm", "angle", "flow", "score")


class PreconditionedNetwork(nn.Module):
    """A network ``F`` as a denoiser that is called as all here are: ``w / sqrt(1 + sigma^2)``, told ``250 ln sigma``.

    ``kind`` is one of `PRECONDITIONINGS` but the first, ``data_sd`` is ``s`` and ``num_train_steps`` ``n``.
    """

    def __init__(self, network: nn.Module, kind: str, data_sd: float, num_train_steps: int) -> None:
        super().__init__()
        self.network, self.kind, self.data_sd, self.num_train_steps = network, kind, data_sd, num_train_steps

    def forward(self, images: Tensor, time: Tensor, class_labels: Tensor | None = None) -> Tensor:
        sigma = torch.exp(time.double() / 250)
        skip, scale, out, told = self._factors(sigma)
        skip, given, out = (
            factor.to(images.dtype).reshape(-1, *[1] * (images.ndim - 1))
            for factor in (skip * torch.sqrt(1 + sigma * sigma), scale * torch.sqrt(1 + sigma * sigma), out)
        )
        # The second image of a conditional network, the anatomy, is given as it is.
        shown = torch.cat((images[:, :1] * given, images[:, 1:]), 1)
        return skip * images[:, :1] + out * self.network(shown, told.to(time.dtype), class_labels=class_labels)

    def _factors(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``c_skip, c_in, c_out, c_noise``."""
        if self.kind == "score":
            return torch.ones_like(sigma), torch.ones_like(sigma), sigma * sigma, sigma
        if self.kind == "flow":
            tau = sigma / (1 + sigma)
            return 1 - tau, 1 - tau, tau, self.num_train_steps * tau
        s = self.data_sd
        total = torch.sqrt(sigma * sigma + s * s)
        told = torch.log(sigma) / 4 if self.kind == "edm" else torch.atan(sigma) * (2 / math.pi)
        return (s / total) ** 2, 1 / total, sigma * s / total, told
