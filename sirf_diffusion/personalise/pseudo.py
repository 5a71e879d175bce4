"""Pseudo-PETs: what this patient's PET might look like, as mixtures of other subjects' PETs on this anatomy."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..simulation.lesions import soft_ellipsoid
from ..study.execution import Execution
from ..training.data.volume_parts import PartStore
from ..training.data.volumes import Volume
from .members import warped_images

#: Members of a mixture, at most.
MOST_MIXED = 8
#: One in so many pseudo-PETs is kept for validation.
VALIDATION = 9
#: Lesions of a pseudo-PET at most, radii in mm, and factors on the uptake of hot and of cold ones.
_LESIONS, _RADII, _HOT, _COLD = 4, (3.0, 12.0), (1.3, 3.0), (0.1, 0.7)


def mix(images: Sequence[Tensor], voxel_size: Sequence[float], rng: np.random.Generator) -> NDArray[np.float32]:
    """One pseudo-PET ``[z, y, x]`` of images that are divided by their scales.

    A random subset of 2 to 8, with weights of a flat Dirichlet distribution (Webber et al. 2025, TRPMS), times lesions:
    the patient's own must not be unknown to the prior.
    """
    number = int(rng.integers(2, min(MOST_MIXED, len(images)) + 1))
    chosen = rng.choice(len(images), number, replace=False)
    weights = rng.dirichlet(np.ones(number))
    image = sum(np.float32(w) * images[k].float().numpy() for k, w in zip(chosen, weights, strict=True))
    emitting = np.flatnonzero(image > 0.3)
    change = np.ones_like(image)
    for _ in range(int(rng.integers(0, _LESIONS + 1))):
        centre = np.unravel_index(emitting[rng.integers(emitting.size)], image.shape)
        radii = rng.uniform(*_RADII) * rng.uniform(0.7, 1.3, 3) / np.asarray(voxel_size)
        factor = rng.uniform(*(_HOT if rng.random() < 0.6 else _COLD))
        lesion = soft_ellipsoid(image.shape, centre, radii, factor, softness=0.25)
        lesion.multiply(change, factor)
    return image * change


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
        image = mix(images, voxel_size, np.random.default_rng([61, seed, n]))
        split = "validation" if n % VALIDATION == VALIDATION - 1 else "train"
        volume = Volume.from_image(
            image, voxel_size, subject=f"pseudo {n}", source=f"pseudo {n}", tracer=tracer, split=split
        )
        store.write(f"{n:05d}", volume)
    return len(numbers)
