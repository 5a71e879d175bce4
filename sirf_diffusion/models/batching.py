"""How many slices go through a network at once: as many as memory allows."""

from __future__ import annotations

import torch

from .networks import NetworkConfig

CPU_BUDGET_BYTES = 1024 * 1024**2
CUDA_BUDGET_SHARE = 0.5


def largest_batch(config: NetworkConfig | None, height: int, width: int, device: torch.device) -> int:
    """Slices that fit the memory budget, from an estimate of what a slice's activations take; at least 1."""
    budget = float(CPU_BUDGET_BYTES)
    if device.type == "cuda":
        budget = torch.cuda.mem_get_info(device)[0] * CUDA_BUDGET_SHARE
    return max(1, int(budget / (4 * activations(config, height * width))))


def activations(config: NetworkConfig | None, voxels: int) -> float:
    """About how many numbers a slice of this many voxels takes inside a network."""
    if config is None:
        return 256.0 * voxels
    pixels = voxels / config.patch_size**2
    values, attention = 16.0 * pixels * config.channels[0], 0.0
    for level, (channels, has_attention) in enumerate(zip(config.channels, config.attention_levels, strict=True)):
        here = pixels / 4**level
        values += here * channels * (config.num_res_blocks + 2)  # kept for the way up, and one at work
        if has_attention or level == len(config.channels) - 1:
            attention = max(attention, 2 * here * here * channels / config.num_head_channels)
    return values + attention
