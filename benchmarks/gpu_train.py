"""Training a wider `brain` on a GPU in a few minutes, from a file small enough to be sent to it.

::

    python -m benchmarks.gpu_train sample phantoms.h5 small.h5        # at most 45 MiB of its volumes
    benchmarks/gpu_train.sh small.h5 results/wide                     # 8 minutes

The first seconds measure the rate, which decides the number of steps: the learning rate has fallen when the time is
over. Checkpoints and validation are written as it goes; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import replace
from pathlib import Path

import h5py
import torch

from benchmarks.training import BareLoop, seconds
from sirf_diffusion.environment import select_device
from sirf_diffusion.files.atomic import atomic_path
from sirf_diffusion.files.documents import parse_json, read_text
from sirf_diffusion.files.outputs import write_json
from sirf_diffusion.training import RECIPES, Recipe, RunOptions, train
from sirf_diffusion.training.data.volume_file import VolumeFile

logger = logging.getLogger(__name__)

#: 15.6 MB in float16, where `brain` has 13.4.
CHANNELS = (48, 96, 128, 128)
BATCH = 64
#: Of the time: the rest is for validation, checkpoints and what the measured rate leaves out.
SHARE = 0.8


def recipe_of(steps: int, batch: int) -> Recipe:
    """That of `brain`, but wider, from random weights, in one cycle."""
    brain = RECIPES["brain"]
    return replace(
        brain,
        name="brain-wide",
        architecture=replace(brain.architecture, channels=CHANNELS),
        phantoms=None, init="", grow=False,
        batch_size=batch,
        cycles=(steps,),
        warmup_steps=min(300, steps // 10),
        validate_every=max(1, steps // 12),
    )  # fmt: skip


def steps_in(minutes: float, batch: int, device: torch.device) -> int:
    """How many steps there is time for."""
    loop = BareLoop(recipe_of(100, batch), device, "bfloat16")
    seconds(loop.step, 2, device)
    each = seconds(loop.step, 5, device) / 5
    logger.info("%.3g s for a step of %d slices", each, batch)
    return max(2, int(60 * minutes * SHARE / each))


def trained(data: Path, out: Path, minutes: float, batch: int, device: str, compiled: bool) -> Path:
    """Train, or go on; gives the model file."""
    out.mkdir(parents=True, exist_ok=True)
    plan, began = out / "plan.json", time.perf_counter()
    if not plan.exists():
        write_json(plan, {"steps": steps_in(minutes, batch, select_device(device)), "batch": batch})
    told = parse_json(read_text(plan))
    recipe = recipe_of(told["steps"], told["batch"])
    options = RunOptions(checkpoint_every=max(1, told["steps"] // 12), compiled=compiled)
    model = train(recipe, out / "wide.safetensors", data=data, work_dir=out / "work", device=device, options=options)
    logger.info("%s: %d steps in %.0f s", model, told["steps"], time.perf_counter() - began)
    return model


def sample(source: Path, target: Path, mib: float) -> int:
    """Copy volumes, without what a training does not read, up to a size; gives their number.

    Every k-th volume is taken, with the least k that fits, in each of the splits.
    """
    infos = VolumeFile(source).infos
    kept = ("emission", "mask")
    with h5py.File(source, "r") as file, atomic_path(target) as temporary, h5py.File(temporary, "w") as small:
        groups = file["volumes"]
        size = {i.name: sum(groups[i.name][part].id.get_storage_size() for part in kept) for i in infos}
        # A tenth for what HDF5 needs besides.
        every = next(k for k in range(1, len(infos) + 1) if sum(_chosen(infos, size, k).values()) < 0.9 * mib * 2**20)
        chosen = _chosen(infos, size, every)
        small.attrs.update(file.attrs)
        volumes = small.create_group("volumes")
        for name in chosen:
            group = volumes.create_group(name)
            group.attrs.update(groups[name].attrs)
            for part in kept:
                file.copy(groups[name][part], group)
        if "rejected" in file:
            file.copy("rejected", small)
    logger.info("%s: %d of %d volumes, %.1f MiB", target, len(chosen), len(infos), target.stat().st_size / 2**20)
    return len(chosen)


def _chosen(infos: list, size: dict[str, int], every: int) -> dict[str, int]:
    splits = {info.split for info in infos}
    names = [info.name for split in sorted(splits) for info in [i for i in infos if i.split == split][::every]]
    return {name: size[name] for name in names}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_train", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train the wider network")
    training.add_argument("data", type=Path)
    training.add_argument("--out", type=Path, required=True)
    training.add_argument("--minutes", type=float, default=8.0)
    training.add_argument("--batch", type=int, default=BATCH)
    training.add_argument("--device", default="cuda")
    training.add_argument("--compile", action="store_true")
    sampling = commands.add_parser("sample", help="make a small file of some volumes of a large one")
    sampling.add_argument("source", type=Path)
    sampling.add_argument("target", type=Path)
    sampling.add_argument("--mib", type=float, default=45.0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.command == "sample":
        sample(options.source, options.target, options.mib)
    else:
        given = options.minutes, options.batch, options.device, options.compile
        trained(options.data, options.out, *given)


if __name__ == "__main__":
    main()
