"""Volumes that do not fit through a network at once: overlapping blocks, blended where they overlap."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

#: The least overlap of neighbouring blocks, as a share of their side.
OVERLAP = 0.25


def in_blocks(
    function: Callable[[Tensor], Tensor], volumes: Tensor, side: int | tuple[int, int, int], multiple: int
) -> Tensor:
    """``function`` of volumes, computed block by block.

    Neighbouring blocks overlap by at least a quarter of their side. In an overlap, a block has no say in the quarter
    next to its edge, where the network misses what lies behind it, and its weight rises smoothly from there. So a
    network that looks no further than a sixteenth of the side gives exactly what it gives for the whole volume.

    Parameters
    ----------
    function
        From ``[1, in, D, H, W]`` to ``[1, 1, D, H, W]``, for sizes that are multiples of ``multiple``.
    volumes
        ``[n, in, D, H, W]``, sizes multiples of ``multiple``.
    side
        Size of the blocks in voxels, of all axes or each, at least twice ``multiple``; rounded down to a multiple of
        ``multiple``. Axes that are not longer are not divided.
    multiple
        Blocks start at multiples of this: networks with strides see the same grid as in the whole volume.

    Returns
    -------
    Tensor
        ``[n, 1, D, H, W]``.

    Raises
    ------
    ValueError
        If blocks would be smaller than twice ``multiple``.
    """
    sides = (side,) * 3 if isinstance(side, int) else side
    if min(sides) < 2 * multiple:
        raise ValueError(f"blocks must have sides of at least {2 * multiple} voxels for this network, found {side}")
    axes = [
        _axis(size, wanted // multiple * multiple, multiple)
        for size, wanted in zip(volumes.shape[2:], sides, strict=True)
    ]
    result = volumes.new_zeros((len(volumes), 1, *volumes.shape[2:]))
    total = volumes.new_zeros(volumes.shape[2:])
    for block in product(*axes):
        places = tuple(place for place, _ in block)
        z, y, x = (weights.to(total) for _, weights in block)
        weights = z[:, None, None] * y[:, None] * x
        total[places] += weights
        for k in range(len(volumes)):
            result[(k, slice(None), *places)] += weights * function(volumes[(slice(k, k + 1), slice(None), *places)])[0]
    return result / total


def _axis(size: int, side: int, multiple: int) -> list[tuple[slice, Tensor]]:
    """Places of the blocks along an axis, and their weights."""
    if side >= size:
        return [(slice(0, size), torch.ones(size))]
    overlap = max(round(OVERLAP * side), 2)
    steps = max(1, (side - overlap) // multiple)
    count = -(-(size - side) // (steps * multiple)) + 1
    # Equally far from each other, as far as multiples allow.
    last = (size - side) // multiple
    starts = [last * k // (count - 1) * multiple for k in range(count)]
    from_edge = torch.arange(side) + 0.5
    blocks = []
    for k, start in enumerate(starts):
        weights = torch.ones(side)
        if k:
            weights = weights * _rise(from_edge, overlap)
        if k < count - 1:
            weights = weights * _rise(from_edge.flip(0), overlap)
        blocks.append((slice(start, start + side), weights))
    return blocks


def _rise(distance: Tensor, overlap: int) -> Tensor:
    """0 in the outer quarter of the overlap, 1 behind three quarters of it, a cosine between."""
    share = ((distance / overlap - 0.25) / 0.5).clamp(0, 1)
    return 0.5 - 0.5 * torch.cos(torch.pi * share)
