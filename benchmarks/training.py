"""Throughput of a training against a bare loop, and how long it waits for data.

::

    python -m benchmarks.training --data train.h5 [--config C.toml] [--steps 60] [--device cuda]

In one run, in alternating blocks so that a busy machine hits both alike: steps of the trainer (batches read from the
file, augmented and corrupted by the thread that prepares them) and steps of a bare loop (the same network, loss and
optimiser on one batch that lies in memory). Prints both rates, their ratio (aim: at least 0.95) and the share of time
in which the trainer waited for a batch (aim: at most 5 %); on a GPU also bfloat16 against float32 and the GPU's
utilisation.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch

from benchmarks.bench.timing import wait
from sirf_diffusion.environment import select_device
from sirf_diffusion.models.networks import build_network
from sirf_diffusion.training import Recipe
from sirf_diffusion.training.configuration import DEFAULT, read_configuration
from sirf_diffusion.training.corruption import corrupted
from sirf_diffusion.training.data.slice_stream import prefetched
from sirf_diffusion.training.distributed import Processes
from sirf_diffusion.training.state import TrainingState
from sirf_diffusion.training.trainer import training_stream

BLOCKS = 6


class Trainer:
    """The trainer's steps: what `train` does between validations."""

    def __init__(self, recipe: Recipe, data: Path, device: torch.device) -> None:
        source, size = training_stream(data, recipe), recipe.batch_size
        self.state = TrainingState(recipe, {}, device, Processes())
        self._batches = prefetched(lambda step: corrupted(recipe, *source.batch(step, size), step, device), count())
        self.waited = 0.0

    def step(self) -> None:
        before = time.perf_counter()
        example = next(self._batches)
        self.waited += time.perf_counter() - before
        self._loss = self.state.advance(example)
        if self.state.step % 10 == 0:
            self._loss.item()

    def close(self) -> None:
        self._batches.close()


class BareLoop:
    """The plainest loop there is: forward, mean squared error, backward, clip, Adam, running average."""

    def __init__(self, recipe: Recipe, device: torch.device, precision: str) -> None:
        self.network = build_network(recipe.architecture, device=device).to(memory_format=torch.channels_last)
        self.average = [p.detach().clone() for p in self.network.parameters()]
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=1e-4, foreach=True)
        shape = (recipe.batch_size, recipe.architecture.in_channels, recipe.crops[0], recipe.crops[0])
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(shape, generator=generator).to(device, memory_format=torch.channels_last)
        self.target = torch.randn((shape[0], 1, *shape[2:]), generator=generator).to(device)
        self.time = torch.zeros(shape[0], device=device)
        self.planes = torch.zeros(shape[0], dtype=torch.long, device=device)
        self.device, self.half = device, precision == "bfloat16"

    def step(self) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            predicted = self.network(self.images, self.time, class_labels=self.planes)
        loss = (predicted.float() - self.target).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [p.detach() for p in self.network.parameters()], 1e-3)


def seconds(step, number: int, device: torch.device) -> float:
    """Time of so many steps."""
    wait(device)
    before = time.perf_counter()
    for _ in range(number):
        step()
    wait(device)
    return time.perf_counter() - before


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="HDF5 file of sirf-diffusion data")
    parser.add_argument("--config", type=Path, help="TOML configuration; crops must be of one size")
    parser.add_argument("--steps", type=int, default=60, help="steps of each kind; default: 60")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    recipe = read_configuration(options.config).recipe if options.config else DEFAULT
    recipe, device = replace(recipe, crops=recipe.crops[:1]), select_device(options.device)
    trainer = Trainer(recipe, options.data, device)
    bare = BareLoop(recipe, device, trainer.state.precision)
    each = max(options.steps // BLOCKS, 1)
    for step in (trainer.step, bare.step):
        seconds(step, 3, device)
    trainer.waited, ours, theirs = 0.0, [], []
    for _ in range(BLOCKS):
        ours.append(seconds(trainer.step, each, device))
        theirs.append(seconds(bare.step, each, device))
    trainer.close()
    result = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU",
        "threads": torch.get_num_threads(),
        "batch": [recipe.batch_size, recipe.crops[0]],
        "precision": trainer.state.precision,
        "trainer_steps_per_second": each * BLOCKS / sum(ours),
        "bare_steps_per_second": each * BLOCKS / sum(theirs),
        "ratio": statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
        "waiting_share": trainer.waited / sum(ours),
    }
    if device.type == "cuda":
        full = BareLoop(recipe, device, "float32")
        seconds(full.step, 3, device)
        result["bfloat16_speedup"] = seconds(full.step, each, device) / statistics.median(theirs)
        try:
            result["gpu_utilisation_percent"] = torch.cuda.utilization(device)
        except (ModuleNotFoundError, RuntimeError) as error:
            result["gpu_utilisation_percent"] = f"not known ({error})"
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
