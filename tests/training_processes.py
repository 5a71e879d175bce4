"""What the tests of killed and of parallel trainings run in processes of their own."""

import os
from pathlib import Path

import torch

from sirf_diffusion.models.networks import NetworkConfig
from sirf_diffusion.training import Recipe, RunOptions, train

RECIPE = Recipe(
    name="small", crops=(16, 24), batch_size=4, cycles=(40,),
    architecture=NetworkConfig(
        channels=(8, 8), attention_levels=(False, False), num_head_channels=8, patch_size=2, in_channels=2
    ),
    learning_rate=2e-3, warmup_steps=4, precision="float32", validate_every=20,
)  # fmt: skip


def run(data: Path, out: Path) -> None:
    """Train to the end, with many checkpoints to be killed in."""
    torch.set_num_threads(1)
    train(RECIPE, out, data=data, device="cpu", options=RunOptions(checkpoint_every=3))


def run_rank(data: Path, out: Path, rank: int, world: int, port: int) -> None:
    """One of the processes that torchrun would start."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    run(data, out)
