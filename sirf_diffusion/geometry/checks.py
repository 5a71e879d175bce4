"""Checks of what users give: one wording for every setting that is out of range."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def check_finite(x: Tensor, what: str) -> None:
    """Raise ``ValueError`` naming ``what`` if ``x`` holds NaN or infinity."""
    if not bool(torch.isfinite(x).all()):
        number = int((~torch.isfinite(x)).sum())
        raise ValueError(f"{what} holds {number} values that are NaN or infinite (of {x.numel()})")


def check_count(name: str, value: int, minimum: int = 1) -> int:
    """An integer setting of at least ``minimum``."""
    if isinstance(value, bool) or int(value) != value or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, found {value!r}")
    return int(value)


def check_real(
    name: str, value: float, minimum: float = 0.0, maximum: float = math.inf, open_below: bool = False
) -> float:
    """A finite real setting in ``[minimum, maximum]``, or in ``(minimum, maximum]`` with ``open_below``."""
    number = float(value)
    below = number <= minimum if open_below else number < minimum
    if not math.isfinite(number) or below or number > maximum:
        bracket = "(" if open_below else "["
        raise ValueError(f"{name} must be a number in {bracket}{minimum:g}, {maximum:g}], found {value!r}")
    return number
