"""Log-likelihoods as differentiable PyTorch functions, whatever engine computes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .objective import Objective


def log_likelihood(objective: Objective, x: Tensor, subset: int | None = None) -> Tensor:
    r"""``L(x)`` of any objective, differentiable once with respect to ``x``.

    .. math:: L(x) = \sum_i y_i \log q_i - q_i, \qquad \partial L / \partial x = A^T (y / q - 1)

    Parameters
    ----------
    objective
        An :class:`~sirf_diffusion.engines.objective.Objective`; ``as_objective`` makes one of SIRF's, STIR's and the
        embedded engine's objective functions.
    x
        Images ``[..., z, y, x]``, any number of leading dimensions, any dtype and device; gradients come back in kind.
    subset
        Of this subset alone, not multiplied by their number.

    Returns
    -------
    Tensor
        ``float64``, one number per image (leading shape of ``x``), on the device of ``x``.

    Examples
    --------
    >>> x = objective.uniform_image().requires_grad_()         # doctest: +SKIP
    >>> (-log_likelihood(objective, x) + penalty(x)).backward()  # doctest: +SKIP
    """
    return _LogLikelihood.apply(x, objective, subset)


class _LogLikelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, objective: Objective, subset: int | None) -> Tensor:
        # A copy: the evaluation is taken up again in the backward pass, when the caller may have moved on in place.
        images = x.detach().reshape(-1, *x.shape[-3:]).clone()
        ctx.evaluation, ctx.shape, ctx.kind = objective.at(images, subset), x.shape, (x.dtype, x.device)
        return ctx.evaluation.value.to(x.device).reshape(x.shape[:-3])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (dtype, device), weights = ctx.kind, upstream.reshape(-1)
        active = weights != 0
        gradient = torch.zeros(len(weights), *ctx.shape[-3:], dtype=dtype, device=device)
        if bool(active.any()):
            part = ctx.evaluation.gradient(active).to(device, torch.float64)
            gradient[active] = (weights[active, None, None, None] * part).to(dtype)
        return gradient.reshape(ctx.shape), None, None
