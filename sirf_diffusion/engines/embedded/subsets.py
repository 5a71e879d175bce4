"""Ordered subsets of views, as STIR forms them from the symmetries of its ray tracing projector."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...geometry.checks import check_count
from ...geometry.images import ImageGeometry
from ...geometry.projdata import ProjDataGeometry

_logger = logging.getLogger(__name__)


def basic_views(geometry: ImageGeometry, projdata: ProjDataGeometry, most_related: int = 4) -> list[int]:
    """For each view the one whose weights STIR uses for it.

    Views are related by mirroring the image in x and y, and by exchanging x and y where its pixels are square: in
    fours where there is a multiple of 4 views, else in pairs where their number is even. No views are related where
    view 0 is not at angle 0 (a view offset, mashed views), or the image is shifted in plane. ``most_related`` is 4, or
    fewer if symmetries are switched off: 2 (no exchange of x and y) or 1 (none).
    """
    num_views, (_, dy, dx) = projdata.num_views, geometry.voxel_size
    if abs(float(projdata.view_angles()[0])) > 1e-4 or max(abs(v) for v in geometry.origin[1:]) > 0.01:
        most_related = 1
    half, views = num_views // 2, range(num_views)
    if most_related == 4 and num_views % 4 == 0 and abs(dy - dx) <= 2e-3:
        return [min(v % half, half - v % half) for v in views]
    if most_related > 1 and num_views % 2 == 0:
        return [min(v, num_views - v) for v in views]
    return list(views)


def divide_views(basic: Sequence[int], num_subsets: int, equal: bool = False) -> list[tuple[int, ...]]:
    """Views of each subset, ascending: subset ``s`` has the views whose basic view is ``s`` modulo ``num_subsets``.

    As in STIR the subsets of an objective function may differ in size, which is logged: each has its own sensitivity,
    but methods that take one for the whole (times ``num_subsets``) converge badly. STIR's OSMAPOSL refuses them. Raises
    ValueError if a subset would have no views, or with ``equal`` if they differ in size.
    """
    subsets: list[tuple[int, ...]] = _divided(basic, num_subsets) if num_subsets >= 1 else [()]
    sizes = [len(views) for views in subsets]
    if len(set(sizes)) == 1 and sizes[0] > 0:
        return subsets
    good = equal_divisions(basic)
    if min(sizes) == 0 or equal:
        raise ValueError(
            f"num_subsets is {num_subsets}, which does not divide the {len(basic)} views, in {len(set(basic))} groups "
            f"of related views, evenly: from {min(sizes)} to {max(sizes)} views in a subset; try one of {good}"
        )
    _logger.warning(
        "%d subsets of %d views have from %d to %d views; those of %s subsets are equal",
        num_subsets, len(basic), min(sizes), max(sizes), ", ".join(map(str, good)),
    )  # fmt: skip
    return subsets


def equal_divisions(basic: Sequence[int]) -> list[int]:
    """Numbers of subsets that give all of them as many views."""
    return [n for n in range(1, len(basic) + 1) if len(set(np.bincount(np.remainder(basic, n), minlength=n))) == 1]


def largest_num_subsets(basic: Sequence[int], wanted: int) -> int:
    """The largest number of equal subsets up to ``wanted``.

    Examples
    --------
    >>> largest_num_subsets(range(126), 10)
    9
    """
    wanted = check_count("num_subsets", wanted)
    return max(n for n in equal_divisions(basic) if n <= wanted)


def select_views(term: Tensor, views: Sequence[int] | None) -> Tensor:
    """Part ``[..., sinograms, views, tangential]`` of projection data; all for ``None``."""
    return term if views is None else term[..., as_slice(tuple(views)), :]


def as_slice(numbers: tuple[int, ...]) -> slice | Tensor:
    """Evenly spaced positions as a slice, which copies faster."""
    step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    if step > 0 and numbers == tuple(range(numbers[0], numbers[-1] + 1, step)):
        return slice(numbers[0], numbers[-1] + 1, step)
    return torch.tensor(numbers)


def _divided(basic: Sequence[int], num_subsets: int) -> list[tuple[int, ...]]:
    return [tuple(v for v, b in enumerate(basic) if b % num_subsets == s) for s in range(num_subsets)]
