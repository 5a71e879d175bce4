"""Training in several processes, started by ``torchrun``: one per GPU, on one machine or many.

Every process computes its share of each step's batch; PyTorch's ``DistributedDataParallel`` averages the gradients, so
that all keep the same weights. Without ``torchrun`` there is one process and nothing to do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, nn

#: Rank 0 may validate and draw samples while the others wait.
TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class Processes:
    """A process among its peers: ``rank`` 0 writes all files."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """The GPU of this process, if GPUs are used."""
        if device.type != "cuda" or self.world == 1:
            return device
        if self.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"process {self.local_rank} of this machine has no GPU of its own, found {torch.cuda.device_count()} "
                "GPUs: start as many processes per machine as it has GPUs (torchrun --nproc-per-node)"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def wrap(self, network: nn.Module, device: torch.device, *, partial: bool = False) -> nn.Module:
        """The network whose backward pass averages gradients over processes; ``partial``: not all weights have some."""
        if self.world == 1:
            return network
        from torch.nn.parallel import DistributedDataParallel

        devices = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=devices, find_unused_parameters=partial)

    def mean(self, value: Tensor) -> Tensor:
        """Mean over processes."""
        if self.world > 1:
            torch.distributed.all_reduce(value)
            value = value / self.world
        return value

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process; all must ask."""
        return float(self.mean(torch.tensor(float(flag), device=device))) > 0

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.world > 1:
            torch.distributed.barrier()


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Join the other processes that ``torchrun`` started, if it did."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes()
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(f"WORLD_SIZE is {world}, but {', '.join(missing)} are not set: start with torchrun")
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield Processes(int(os.environ["RANK"]), world, int(os.environ["LOCAL_RANK"]))
    finally:
        torch.distributed.destroy_process_group()
