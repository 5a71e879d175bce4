"""How much goes through a network at once: as many slices, or as large a block of a volume, as memory allows."""

from __future__ import annotations

import math

import torch

from .networks import NetworkConfig

CPU_BUDGET_BYTES = 1024 * 1024**2
# On a CPU a larger batch is slower: what goes from layer to layer falls out of the cache, and its tensors are so large
# that the C library asks the system for their memory every time.
CPU_BATCH_BYTES = 112 * 1024**2
CUDA_BUDGET_SHARE = 0.5


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
        return torch.cuda.mem_get_info(device)[0] * CUDA_BUDGET_SHARE
    return float(CPU_BUDGET_BYTES)


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
