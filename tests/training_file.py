"""A small HDF5 file of training volumes, in the layout that ``sirf-diffusion data`` writes."""

from pathlib import Path

import h5py
import numpy as np

from sirf_diffusion.training.data.volumes import Volume, root_attributes, write_group


def ball(seed: int, side: int = 32) -> np.ndarray:
    """A blob that is different along each axis."""
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, side)] * 3, indexing="ij")
    shape = np.exp(-3 * (z**2 + (y - 0.1 * seed) ** 2 + 2 * (x - 0.2) ** 2))
    return (1 + seed) * shape.astype(np.float32)


def write_training_file(path: Path, splits: tuple[str, ...] = ("train", "train", "validation"), anatomy=True) -> Path:
    """One subject for each entry of ``splits``; the anatomical image is the square of the emission image."""
    with h5py.File(path, "w") as file:
        file.attrs.update(root_attributes("phantoms", (4.0, 4.0, 4.0)) | {"settings": "{}"})
        group = file.create_group("volumes")
        for k, split in enumerate(splits):
            volume = Volume.from_image(
                ball(k), (4.0, 4.0, 4.0), subject=f"s{k}", source=f"s{k}", split=split, tracer="[18F]test"
            )
            if anatomy:
                volume.add_anatomy(ball(k) ** 2, "MR")
            write_group(group.create_group(f"{k:05d}"), volume)
    return path
