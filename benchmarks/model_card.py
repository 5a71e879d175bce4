"""Figures and numbers of a model card: denoising error against noise level, and unconditional samples.

::

    python benchmarks/model_card.py brain-fdg --work-dir TRAINING_FOLDER

Errors are on the validation subjects of the training folder (``sirf-diffusion train`` simulates them), at noise
levels and slices that the training's own log uses, beside the Gaussian filter of the best width at each level.
Samples start
from pure noise and never see data. Writes ``docs/images/MODEL-denoising.png`` and ``docs/images/MODEL-samples.png``
and prints
the table.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import h5py
import matplotlib.pyplot as plt
import torch

from sirf_diffusion.images import ImageGeometry
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.training.validation import ValidationSet

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SIZE = 128


def errors(model: ScoreModel, work_dir: Path, name: str) -> None:
    """Table and figure of the denoising error."""
    with h5py.File(work_dir / "validation.h5") as file:
        volumes = torch.from_numpy(file["activity"][:]).flatten(0, 1)
    validation = ValidationSet.from_volumes(volumes, model.schedule)
    network, gaussian = validation.network_errors(model.network, model.prediction), validation.gaussian_errors()
    print("| noise level | network | best Gaussian | ratio |\n| --- | --- | --- | --- |")
    for sigma in network:
        print(f"| {sigma:g} | {network[sigma]:.4f} | {gaussian[sigma]:.4f} | {network[sigma] / gaussian[sigma]:.2f} |")
    figure, axes = plt.subplots(figsize=(5.5, 4), layout="constrained")
    axes.loglog(list(gaussian), list(gaussian.values()), "o--", color="0.5", label="best Gaussian filter")
    axes.loglog(list(network), list(network.values()), "o-", label=name)
    axes.set_xlabel("noise level sigma (mean activity = 1)")
    axes.set_ylabel("root mean squared error")
    axes.legend()
    axes.grid(alpha=0.3, which="both")
    figure.savefig(IMAGES / f"{name}-denoising.png", dpi=110)


def samples(model: ScoreModel, name: str, count: int = 8, num_steps: int = 60) -> None:
    """Transverse slices drawn from the prior alone."""
    bound = model.on(ImageGeometry((1, SIZE, SIZE), model.voxel_size), 1.0)
    generator = torch.Generator().manual_seed(0)
    times = [float(t) for t in model.schedule.timesteps(num_steps, model.schedule.t_of_sigma(0.03))]
    u = torch.randn((count, *bound.latent_shape), generator=generator)
    for t, t_next in pairwise(times):
        u0, eps = bound.predict(u, t)
        u = model.schedule.ddim_step(u0, eps, t, t_next, 0.85, torch.randn(u.shape, generator=generator))
    images = bound.predict(u, times[-1])[0].clamp(min=0)
    emitting = [float(image[image > 0.1].mean()) for image in images]
    print("mean activity of the emitting pixels of each sample:", [round(value, 2) for value in emitting])
    figure, axes = plt.subplots(2, count // 2, figsize=(2.2 * count / 2, 4.4), layout="constrained")
    for axis, image in zip(axes.flat, images, strict=True):
        axis.imshow(image[0], cmap="gray_r", vmin=0, vmax=2.2)
        axis.axis("off")
    figure.savefig(IMAGES / f"{name}-samples.png", dpi=90)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="bundled name or file")
    parser.add_argument("--work-dir", type=Path, required=True, help="work folder of the training")
    options = parser.parse_args()
    IMAGES.mkdir(parents=True, exist_ok=True)
    model, name = ScoreModel.load(options.model), Path(options.model).stem
    errors(model, options.work_dir, name)
    samples(model, name)


if __name__ == "__main__":
    main()
