"""Training data: simulated subjects in an HDF5 file that can be continued, and random slices drawn from it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..geometry.images import ImageGeometry
from ..models.intensity import intensity_scale
from ..simulation import simulate_activity, simulate_anatomy
from .data.augmentation import Augmentation

logger = logging.getLogger(__name__)

SHAPE = (112, 128, 112)
VOXEL_SIZE = 2.0
#: Version of the simulator's output: a file made by another version is refused.
SIMULATION_VERSION = 1


def simulate_subject(seed: int, contrasts: int) -> NDArray[np.float16]:
    """Activity of one subject, ``[contrasts, z, y, x]``, each volume divided by its intensity scale."""
    torch.set_num_threads(1)
    anatomy = simulate_anatomy(seed, SHAPE, VOXEL_SIZE)
    geometry = ImageGeometry(SHAPE, (VOXEL_SIZE,) * 3)
    volumes = []
    for draw in range(contrasts):
        activity = simulate_activity(anatomy, draw)
        volumes.append(activity / intensity_scale(torch.from_numpy(activity), geometry))
    return np.stack(volumes).astype(np.float16)


def build_dataset(path: Path, subjects: Iterable[int], contrasts: int, workers: int | None = None) -> None:
    """Simulate the subjects that the file lacks; a killed build continues where it stopped.

    Parameters
    ----------
    path
        HDF5 file with the dataset ``activity`` ``[subject, contrast, z, y, x]`` (float16, intensity scale 1).
    subjects
        Seeds of the subjects.
    contrasts
        Activity distributions per subject.
    workers
        Processes, default one per processor.

    Raises
    ------
    ValueError
        If the file exists and holds other subjects, or was made by another version of the simulator.
    """
    import h5py
    from tqdm import tqdm

    subjects = list(subjects)
    with h5py.File(path, "a") as file:
        if "activity" not in file:
            file.attrs["simulation_version"] = SIMULATION_VERSION
            file.create_dataset("subjects", data=np.asarray(subjects))
            file.create_dataset("done", data=np.zeros(len(subjects), bool))
            shape = (len(subjects), contrasts, *SHAPE)
            file.create_dataset("activity", shape, np.float16, chunks=(1, 1, *SHAPE))
        same = file["subjects"][:].tolist() == subjects and file["activity"].shape[1] == contrasts
        if not same or file.attrs.get("simulation_version") != SIMULATION_VERSION:
            raise ValueError(
                f"{path} holds other training data than the recipe asks for: remove it or choose another folder"
            )
        missing = [i for i, done in enumerate(file["done"][:]) if not done]
        if not missing:
            return
        logger.info("simulating %d subjects into %s", len(missing), path)
        with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
            results = pool.map(simulate_subject, [subjects[i] for i in missing], [contrasts] * len(missing))
            for index, volumes in tqdm(zip(missing, results, strict=True), "subjects", len(missing)):
                file["activity"][index] = volumes
                file["done"][index] = True
                file.flush()


class SliceSampler:
    """Random slices of random orientation with random crop, flip, rotation, scaling and contrast.

    A batch is a pure function of the seed and the step, so that training resumes exactly.

    Parameters
    ----------
    volumes
        ``[volume, z, y, x]`` float16, intensity scale 1.
    crops
        Square crop sizes in pixels; each batch has one of them.
    seed
        Seed of all random choices.
    """

    def __init__(self, volumes: Tensor, crops: tuple[int, ...], seed: int) -> None:
        self.volumes = volumes
        self.crops = crops
        self.seed = seed
        self.augmentation = Augmentation(axial_flip=0.25)

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """Slices ``[size, 1, crop, crop]`` and their orientations ``[size]`` (0 transverse, 1 coronal, 2 sagittal)."""
        rng = np.random.default_rng([22, self.seed, step])
        crop = int(self.crops[rng.integers(len(self.crops))])
        planes = rng.integers(0, 3, size)
        images = torch.stack([self._slice(rng, int(plane), crop) for plane in planes])
        return images[:, None], torch.from_numpy(planes)

    def _slice(self, rng: np.random.Generator, plane: int, crop: int) -> Tensor:
        volume = self.volumes[int(rng.integers(len(self.volumes)))]
        for _ in range(8):
            # mostly air is of little use: look again a few times, then take what comes
            index = int(rng.integers(volume.shape[plane]))
            image = volume.select(plane, index).float()
            if float((image > 0.1).float().mean()) > 0.1:
                break
        return self.augmentation.slices(rng, image[None], plane, crop, everywhere=False)[0]
