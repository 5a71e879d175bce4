"""Checks of what users give: one wording for every number that is out of range."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

#: Largest count: a number far beyond all use is a slip, and would be found out by the memory it takes.
LARGEST_COUNT = 10**6
LARGEST_SEED = 2**63 - 1


def check_tensor(x: Any, what: str) -> None:
    """Raise ``TypeError`` for an image that is no tensor of real numbers."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{what} must be a PyTorch tensor (torch.as_tensor makes one), found {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{what} must hold real numbers (.float() makes them), found {x.dtype}")


def check_finite(x: Tensor, what: str, advice: str = "") -> None:
    """Raise ``ValueError`` naming ``what``, with the ``advice``, if ``x`` holds NaN or infinity."""
    if not isinstance(x, Tensor):
        check_tensor(x, what)
    if number := int((~torch.isfinite(x)).sum()):
        end = f": {advice}" if advice else ""
        raise ValueError(f"{what} has {number} values that are not finite (NaN or infinite), of {x.numel()}{end}")


def check_image(x: Tensor, what: str, shape: tuple[int, ...], batch: bool = False) -> None:
    """Raise ``ValueError`` for an image, or a ``batch`` of them, of another shape than its grid, or not finite."""
    check_tensor(x, what)
    found = tuple(x.shape[-3:] if batch else x.shape)
    if found != shape:
        raise ValueError(
            f"{what} has shape {found}, expected {shape} (z, y, x): resample it to the grid of the reconstruction"
        )
    check_finite(x, what)


def check_count(name: str, value: Any, minimum: int = 1, maximum: int = LARGEST_COUNT) -> int:
    """An integer in ``[minimum, maximum]``."""
    number = _number(value)
    if number is None or not minimum <= number <= maximum or int(number) != number:
        span = f"of at least {minimum}" if number is None or number < maximum else f"of at most {maximum}"
        raise ValueError(f"{name} must be an integer {span}, found {value!r}")
    return int(number)


def check_seed(name: str, value: Any) -> int:
    """A seed: an integer from 0 to ``2**63 - 1``."""
    return check_count(name, value, 0, LARGEST_SEED)


def check_real(
    name: str,
    value: Any,
    minimum: float = 0.0,
    maximum: float = math.inf,
    open_below: bool = False,
    open_above: bool = False,
) -> float:
    """A finite number from ``minimum`` to ``maximum``, without the ends that are open."""
    number = _number(value)
    if (
        number is None
        or not math.isfinite(number)
        or not minimum <= number <= maximum
        or (open_below and number == minimum)
        or (open_above and number == maximum)
    ):
        span = interval(minimum, maximum, open_below, open_above)
        raise ValueError(f"{name} must be a number in {span}, found {value!r}")
    return float(number)


def interval(minimum: float, maximum: float, open_below: bool, open_above: bool) -> str:
    """The range in words of mathematics, such as ``(0, 1]``."""
    left, right = open_below or minimum == -math.inf, open_above or maximum == math.inf
    return f"{'(' if left else '['}{minimum:g}, {maximum:g}{')' if right else ']'}"


def check_choice(name: str, value: Any, options: tuple[str, ...]) -> str:
    """One of the options."""
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(options)}, found {value!r}")
    return str(value)


def check_flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, found {value!r}")
    return value


def check_keys(what: str, found: Any, known: Collection[str], all_needed: bool = True) -> None:
    """A dictionary that has the known keys, or some of them, and no others."""
    if not isinstance(found, dict):
        raise ValueError(f"{what} must be a dictionary, found {found!r:.40}")
    if unknown := sorted(str(key) for key in set(found) - set(known)):
        raise ValueError(f"{what} has unknown keys {unknown}; known are {sorted(known)}")
    if all_needed and (missing := sorted(set(known) - set(found))):
        raise ValueError(f"{what} misses the keys {missing}")


def _number(value: Any) -> float | int | None:
    """The value if it is a number, or a tensor or array of one; None for everything else."""
    if isinstance(value, (bool, str, bytes)) or value is None:
        return None
    try:
        number = value if isinstance(value, int) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number
