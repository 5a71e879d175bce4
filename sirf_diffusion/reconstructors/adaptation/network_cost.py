"""What a fine-tuning update of a network costs, measured on one slice before a run starts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...models.batching import budget_bytes

if TYPE_CHECKING:
    from ...models.score_model import ScoreModel

# Slices whose activations are not kept are computed twice: forward, and forward and backward again.
_RECOMPUTED = 4 / 3


@dataclass(frozen=True)
class NetworkCost:
    """Slices per call, memory of the activations of one such call, and seconds of an update for one image or volume."""

    batch: int
    bytes_of_batch: float
    seconds_of_update: float
    device: str


def probe(model: ScoreModel, parameters: Sequence[nn.Parameter]) -> NetworkCost:
    """Run the network forward and backward on one empty slice; weights, gradients and counters stay as they are.

    ``parameters`` are those that gradients are taken for.
    """
    shape, number = model.network_input
    weight = parameters[0]
    images = torch.zeros(1, *shape, dtype=weight.dtype, device=weight.device)
    times, labels = images.new_zeros(1), torch.zeros(1, dtype=torch.long, device=weight.device)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    for _ in range(2):  # the first call warms up
        began = _clock(weight.device)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            total = model.network(images, times, class_labels=labels).sum()
        torch.autograd.grad(total, parameters, allow_unused=True)
        seconds = _clock(weight.device) - began
        of_weights = {p.untyped_storage().data_ptr() for p in model.network.parameters()}
        needed = max(sum(size for where, size in kept.items() if where not in of_weights), 1)
        kept.clear()
    batch = max(1, min(int(budget_bytes(weight.device) / needed), round(number)))
    recomputed = _RECOMPUTED if number > batch or model.planes != "transverse" else 1.0
    return NetworkCost(batch, float(batch * needed), seconds * number * recomputed, str(weight.device))


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
