"""How a network covers a volume: slices of one orientation or of three, or blocks, in batches that fit memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from .networks import NetworkConfig

Network = Callable[..., Tensor]

CPU_BUDGET_BYTES = 1024 * 1024**2
# On a CPU a larger batch is slower: what goes from layer to layer falls out of the cache, and its tensors are so large
# that the C library asks the system for their memory every time.
CPU_BATCH_BYTES = 112 * 1024**2
CUDA_BUDGET_SHARE = 0.5
#: The least overlap of neighbouring blocks, as a share of their side.
OVERLAP = 0.25

# Slices of each orientation lie in two axes of [..., z, y, x]; rows before columns. The label is the position here.
_STACKING_AXES = (-3, -2, -1)
# What the backward pass keeps of a slice, in units of what the forward pass alone needs of it at a time.
_GRADIENT_MEMORY = 12


@dataclass(frozen=True)
class Coverage:
    """A network of slices or of blocks as a function of whole volumes.

    Parameters
    ----------
    network, precision, planes, max_batch, block
        As for `ScoreModel`, `ScoreModel.load` and `ScoreModel.on`.
    multiple
        Sizes of slices or volumes must be multiples of this.
    architecture
        The network's configuration, from which memory is estimated, if there is one.
    gradient_batch
        Most slices, or volumes, in one network call with gradients; None to fit memory.
    """

    network: Network
    planes: str
    multiple: int = 1
    architecture: NetworkConfig | None = None
    max_batch: int | None = None
    block: int | None = None
    gradient_batch: int | None = None
    precision: str = "float32"

    def __call__(self, inputs: Tensor, time: float, turn: int | None = None) -> Tensor:
        """Network output ``[..., Z, Y, X]`` for input images ``[..., in, Z, Y, X]`` at one time, see `network_time`.

        Alternating orientations take turns, by the number ``turn``; without one it is the mean over all three.
        """
        if self.planes == "volume":
            return self._volumes(inputs, time)
        if self.planes == "transverse":
            return self._slices(inputs, time, 0)
        orientations = list(enumerate(_STACKING_AXES))
        if self.planes == "alternating" and turn is not None:
            orientations = [orientations[turn % len(orientations)]]
        total = torch.zeros_like(inputs[..., 0, :, :, :])
        for plane, axis in orientations:
            total += self._slices(inputs.movedim(axis, -3), time, plane).movedim(-3, axis)
        return total.div_(len(orientations))

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        weight = self._weight()
        return torch.device("cpu") if weight is None else weight.device

    def largest_with_gradients(self, shape: tuple[int, int, int]) -> tuple[tuple[int, ...], float]:
        """Shape of the largest slice or block that gradients are taken of at once, and how many of it a volume is."""
        z, y, x = shape
        if self.planes == "volume":
            side = self._side(shape, with_gradients=True)
            block = tuple(min(side, size) for size in shape)
            return block, z * y * x / math.prod(block)
        if self.planes == "transverse":
            return (y, x), float(z)
        height, width = max(((y, x), (z, x), (z, y)), key=lambda sides: sides[0] * sides[1])
        return (height, width), 3.0 * z * y * x / (height * width)

    def _slices(self, stacks: Tensor, time: float, plane: int) -> Tensor:
        """Network output for every slice of ``[..., in, slice, H, W]`` of one orientation."""
        height, width = stacks.shape[-2:]
        if height % self.multiple or width % self.multiple:
            raise ValueError(f"slices must be multiples of {self.multiple}, found {height} x {width}; see to_latent")
        slices = stacks.movedim(-4, -3).flatten(0, -4)
        return self._batches(slices, time, plane).reshape(*stacks.shape[:-4], *stacks.shape[-3:])

    def _volumes(self, inputs: Tensor, time: float) -> Tensor:
        """Network output for ``[..., in, Z, Y, X]``: whole, or in blocks."""
        shape = inputs.shape[-3:]
        if any(size % self.multiple for size in shape):
            raise ValueError(f"volumes must be multiples of {self.multiple}, found {tuple(shape)}; see to_latent")
        volumes = inputs.reshape(-1, *inputs.shape[-4:])
        side = self._side(tuple(shape), with_gradients=torch.is_grad_enabled())
        if side >= max(shape):
            result = self._batches(volumes, time, 0)
        else:
            result = in_blocks(lambda block: self._batches(block, time, 0), volumes, side, self.multiple)
        return result.reshape(*inputs.shape[:-4], *shape)

    def _side(self, shape: tuple[int, ...], *, with_gradients: bool) -> int:
        """Side of the blocks that a volume of this shape is seen in."""
        share = 1 / _GRADIENT_MEMORY if with_gradients else 1.0
        return self.block or largest_block(self.architecture, shape, self.multiple, self.device, share)

    def _batches(self, images: Tensor, time: float, plane: int) -> Tensor:
        """Network output ``[n, 1, ...]`` for slices or volumes ``[n, in, ...]``, in batches."""
        weight = self._weight()
        dtype = images.dtype if weight is None else weight.dtype
        limit, share = self.max_batch, 1.0
        if torch.is_grad_enabled():
            share = 1 / _GRADIENT_MEMORY
            limit = self.gradient_batch or (limit and max(1, limit // _GRADIENT_MEMORY))
        batch = limit or largest_batch(self.architecture, math.prod(images.shape[2:]), self.device, share)
        results = []
        for first in range(0, len(images), batch):
            part = images[first : first + batch].to(dtype)
            times = torch.full((len(part),), time, dtype=dtype, device=part.device)
            labels = torch.full((len(part),), plane, dtype=torch.long, device=part.device)
            with torch.autocast(part.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                output = self._call_network(part, times, labels, keep=len(part) == len(images))
            results.append(output.to(images.dtype))
        return torch.cat(results)

    def _call_network(self, images: Tensor, times: Tensor, labels: Tensor, *, keep: bool) -> Tensor:
        """Network output for a batch; with gradients, ``keep`` keeps activations for the backward pass."""
        if not torch.is_grad_enabled():
            with torch.inference_mode():
                return self.network(images, times, class_labels=labels)
        if keep and self.planes == "transverse":
            return self.network(images, times, class_labels=labels)
        from torch.utils.checkpoint import checkpoint

        return checkpoint(
            self.network, images, times, class_labels=labels, use_reentrant=False, preserve_rng_state=False
        )

    def _weight(self) -> Tensor | None:
        return next(self.network.parameters(), None) if isinstance(self.network, nn.Module) else None


def largest_batch(config: NetworkConfig | None, voxels: int, device: torch.device, share: float = 1.0) -> int:
    """Slices or volumes that fit a share of the memory budget, from an estimate of their activations; at least 1.

    No more than a CPU's cache serves well.
    """
    budget = share * budget_bytes(device)
    if device.type == "cpu":
        budget = min(budget, CPU_BATCH_BYTES)
    return max(1, int(budget / (4 * activations(config, voxels))))


def largest_block(
    config: NetworkConfig | None, shape: tuple[int, ...], multiple: int, device: torch.device, share: float = 1.0
) -> int:
    """Side of the largest cube that fits a share of the memory budget, at most the longest axis.

    At least twice ``multiple``.
    """
    budget, side = share * budget_bytes(device), -(-max(shape) // multiple) * multiple
    while side > 2 * multiple and 4 * activations(config, math.prod(min(side, size) for size in shape)) > budget:
        side -= multiple
    return max(side, 2 * multiple)


def budget_bytes(device: torch.device) -> float:
    """Memory that the activations of one network call may take."""
    if device.type == "cuda":
        # What PyTorch keeps for itself and does not use is free, too: or batches would shrink from call to call.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + kept) * CUDA_BUDGET_SHARE
    return float(CPU_BUDGET_BYTES)


def clock(device: torch.device) -> float:
    """Seconds, when all that the device has been given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def activations(config: NetworkConfig | None, voxels: int) -> float:
    """About how many numbers a slice, or a volume, of this many voxels takes inside a network."""
    if config is None:
        return 256.0 * voxels
    pixels = voxels / config.patch_size**config.spatial_dims
    values, attention = 16.0 * pixels * config.channels[0], 0.0
    for level, (channels, has_attention) in enumerate(zip(config.channels, config.attention_levels, strict=True)):
        here = pixels / 2 ** (config.spatial_dims * level)
        values += here * channels * (config.num_res_blocks + 2)  # kept for the way up, and one at work
        if has_attention or (level == len(config.channels) - 1 and config.kind == "unet"):
            attention = max(attention, 2 * here * here * channels / config.num_head_channels)
    return values + attention


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
        ``[n, in, D, H, W]``, sizes multiples of ``multiple``; the result is ``[n, 1, D, H, W]``.
    side
        Size of the blocks in voxels, of all axes or each, at least twice ``multiple``; rounded down to a multiple of
        ``multiple``. Axes that are not longer are not divided.
    multiple
        Blocks start at multiples of this: networks with strides see the same grid as in the whole volume.
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
