"""Pseudo-PETs: what this patient's PET might look like, as mixtures of other subjects' PETs on this anatomy."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..geometry.gaussian import gaussian_smooth
from ..geometry.images import ImageGeometry
from ..simulation.uptake import varied
from ..study.execution import Execution
from ..training.data.volume_parts import PartStore
from ..training.data.volumes import Volume
from .members import warped_images

#: Members of a mixture, at most.
MOST_MIXED = 4
#: One in so many pseudo-PETs is kept for validation.
VALIDATION = 9
#: Lesions of a pseudo-PET at most; powers of the tissues' contrast.
_LESIONS, _POWERS = 20, (-0.1, 1.4)


def mix(
    images: Sequence[Tensor], voxel_size: tuple[float, float, float], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One pseudo-PET ``[z, y, x]`` of images that are divided by their scales, and the mean of those it has nothing of.

    A random subset of up to 4, with weights of a flat Dirichlet distribution (Webber et al. 2025, TRPMS). The mean of
    the others differs from it as the mean of all members does from the patient's PET. Of half of them the tissues
    differ more or less than in the members, uptake varies from place to place, and there are lesions: the anatomy is to
    be learnt, and not the uptake.
    """
    number = int(rng.integers(1, min(MOST_MIXED, len(images) // 2) + 1))
    order = rng.permutation(len(images))
    weights = rng.dirichlet(np.ones(number))
    image = sum(np.float32(w) * images[k].float().numpy() for k, w in zip(order[:number], weights, strict=True))
    others = torch.stack([images[k].float() for k in order[number:]]).mean(0).numpy()
    if rng.random() < 0.5:
        image = recontrasted(image, voxel_size, rng.uniform(*_POWERS))
    return varied(image, voxel_size, rng, _LESIONS), others


def recontrasted(
    image: NDArray[np.float32], voxel_size: tuple[float, float, float], power: float
) -> NDArray[np.float32]:
    """The contrast of tissues that emit with what is around them, raised to a power; at 0 there is none."""
    x, geometry = torch.from_numpy(image), ImageGeometry(image.shape, voxel_size)
    tissue = (x > 0.35).float()
    local = gaussian_smooth(x * tissue, geometry, 30.0) / gaussian_smooth(tissue, geometry, 30.0).clamp(min=1e-3)
    local = local.clamp(min=1e-3)
    changed = local * (x / local).clamp(0.05, 20.0) ** power
    weight = gaussian_smooth(tissue, geometry, 4.0) * tissue
    return (weight * changed + (1 - weight) * x).numpy()


def build_pseudo_pets(
    members: Path,
    out: Path,
    voxel_size: tuple[float, float, float],
    number: int,
    *,
    seed: int = 0,
    tracer: str = "",
    execution: Execution | None = None,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Write so many pseudo-PETs as a file of training volumes; one that was stopped goes on.

    ``members`` is a file of `~sirf_diffusion.personalise.members.carry_over`. The n-th is a function of ``seed`` and n.
    """
    parts = out.with_name(out.name + ".parts")
    if out.exists():
        shutil.rmtree(parts, ignore_errors=True)
        return
    store = PartStore(out, "pseudo-PET", {"seed": seed, "number": number}, voxel_size, key=bytes(32))
    with store.held():
        keys = [f"{k:05d}" for k in range(number)]
        missing = [k for k, key in enumerate(keys) if not store.done(key)]
        for _ in range(number - len(missing)):
            progress()
        work = partial(_mix_one, store, members, voxel_size, seed, tracer)
        batches = [missing[k::16] for k in range(16) if missing[k::16]]
        for done in (execution or Execution()).results(work, batches):
            for _ in range(done):
                progress()
        store.assemble([(key, key) for key in keys], (1.0, 0.0, 0.0), 0)


def _mix_one(
    store: PartStore, members: Path, voxel_size: tuple[float, float, float], seed: int, tracer: str, numbers: list[int]
) -> int:
    images = warped_images(members)
    for n in numbers:
        image, others = mix(images, voxel_size, np.random.default_rng([61, seed, n]))
        split = "validation" if n % VALIDATION == VALIDATION - 1 else "train"
        volume = Volume.from_image(
            image, voxel_size, subject=f"pseudo {n}", source=f"pseudo {n}", tracer=tracer, split=split
        )
        volume.add_anatomy(others, "PET")
        store.write(f"{n:05d}", volume)
    return len(numbers)
