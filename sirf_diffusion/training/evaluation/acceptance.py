"""Whether a model is good: denoising error, samples, brightness and calibration, on subjects that it never saw."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...files.atomic import save_figure
from ...geometry.images import voxels_agree
from ...models.generation import generate
from ...models.score_model import ScoreModel
from ..data.volume_file import VolumeFile
from ..recipes import Recipe
from .validation import Denoiser, ValidationSet, network_denoiser, validation_set

logger = logging.getLogger(__name__)

#: Factors by which images are made brighter or darker.
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)
#: Noise levels, relative to the image's own brightness, at which that is looked at.
SCALE_SIGMAS = (0.1, 0.4, 1.6)
#: Mean activity of the emitting pixels that samples should have, and how far from it they may be.
SAMPLE_MEAN, SAMPLE_TOLERANCE = 1.0, 0.3
_EMITTING = 0.1
#: Unconditional samples, and steps of each.
NUM_SAMPLES, NUM_STEPS = 8, 60
#: Side of the cubes that a network of volumes is evaluated on, if its file does not tell that of its training.
_CUBE = 48


@dataclass(frozen=True)
class Check:
    """One question to a model: what was found, and whether it is as it should be."""

    name: str
    passed: bool
    found: str


@dataclass
class Evaluation:
    """All numbers of an evaluation, and the samples that some are of.

    Attributes
    ----------
    curves
        By noise level: root mean squared errors of ``network``, ``gaussian`` (the best filter), ``non_local_means`` and
        ``unconditional`` (a conditional model without the anatomical image), and ``balance`` and ``predicted`` of
        `calibration`.
    scales
        ``[noise level][scale]``: error for brighter and darker images, divided by the scale.
    """

    model: str
    about: dict[str, Any]
    data: str
    split: str
    num_slices: int
    curves: dict[str, dict[float, float]]
    scales: dict[float, dict[float, float]]
    sample_means: list[float]
    samples: Tensor = field(repr=False)

    def checks(self) -> list[Check]:
        """What a model must pass."""
        errors, balance = self.curves["network"], self.curves["balance"]
        ratios = {s: errors[s] / self.curves["gaussian"][s] for s in errors}
        worst, lowest = max(ratios, key=lambda s: ratios[s]), min(errors)
        falling = all(errors[a] < errors[b] for a, b in pairwise(sorted(errors)))
        mean = sum(self.sample_means) / max(len(self.sample_means), 1)
        return [
            Check(
                "denoises better than the best Gaussian filter at every noise level", ratios[worst] < 1,
                f"error {ratios[worst]:.2f} times the filter's at most (noise level {worst:g})",
            ),
            Check(
                "error falls to zero with the noise level", falling and errors[lowest] < lowest,
                f"{errors[lowest]:.4f} at {lowest:g}",
            ),
            Check(
                f"unconditional samples have a mean activity of {SAMPLE_MEAN:g} +/- {SAMPLE_TOLERANCE:g}",
                abs(mean - SAMPLE_MEAN) <= SAMPLE_TOLERANCE, f"{mean:.2f} on average",
            ),
            Check(
                "takes away as much noise as there is (within 10 %)", all(0.9 <= b <= 1.1 for b in balance.values()),
                f"{min(balance.values()):.2f} to {max(balance.values()):.2f}",
            ),
        ]  # fmt: skip

    def summary(self) -> list[str]:
        """The checks as lines of text."""
        return [f"{'passed' if c.passed else 'FAILED'}: {c.name}: {c.found}" for c in self.checks()]


def evaluate(
    model: str | os.PathLike[str], data: str | os.PathLike[str], *, split: str | None = None, size: int | None = None,
    device: str = "auto",
) -> Evaluation:  # fmt: skip
    """Evaluate a model, given by name or file, on volumes of a data file.

    Parameters
    ----------
    data
        HDF5 file of ``sirf-diffusion data``; a conditional model is given its anatomical images.
    split
        Which volumes; default the first of test, validation, train that the file has.
    size
        Side of the unconditional samples in pixels; default 128, or that of the training's cubes for a network of
        volumes (on which it is then evaluated, too).

    Raises
    ------
    ValueError
        If the model or the file cannot be used, their voxel sizes differ, or the file has no such volumes.
    """
    loaded = ScoreModel.load(model, device)
    recipe, found = _recipe(loaded), VolumeFile(data).voxel_size
    if not voxels_agree(found, loaded.voxel_size):
        raise ValueError(
            f"{data} has voxels of {found} mm and {model} is for {loaded.voxel_size} mm (z, y, x): build the file with "
            "the model's --voxel-size"
        )
    splits = (split,) if split else ("test", "validation", "train")
    sets = ((chosen, validation_set(data, recipe, chosen)) for chosen in splits)
    chosen, slices = next((one for one in sets if one[1] is not None), ("", None))
    if slices is None:
        raise ValueError(f"{data} has no volumes in {' or '.join(splits)}: see sirf-diffusion data show {data}")
    if chosen == "train":
        logger.warning("%s has neither test nor validation volumes: the model is evaluated on training volumes", data)
    denoise = network_denoiser(loaded.network, loaded.schedule, loaded.prediction, loaded.time_input)
    sigmas = slices.sigmas
    blind: dict[float, float] = {}
    if loaded.in_channels == 2:
        blind = {s: slices.error(lambda u, s_, p, a: denoise(u, s_, p, torch.zeros_like(a)), s) for s in sigmas}
    ratios = {sigma: calibration(slices, denoise, sigma) for sigma in sigmas}
    samples = unconditional_samples(
        loaded, NUM_SAMPLES, size or (128 if loaded.spatial_dims == 2 else max(recipe.crops)), NUM_STEPS
    )
    return Evaluation(
        model=os.fspath(model),
        about={"sha256": loaded.hash, "architecture": recipe.architecture.to_dict(),
               "schedule": loaded.schedule.to_config(), "prediction": loaded.prediction,
               "voxel_size_mm": list(loaded.voxel_size),
               "parameters": sum(p.numel() for p in loaded.network.parameters()), **loaded.metadata},
        data=os.path.basename(data),
        split=chosen,
        num_slices=len(slices.slices),
        curves={
            "network": {s: slices.error(denoise, s) for s in sigmas},
            "gaussian": slices.gaussian_errors(),
            "non_local_means": slices.non_local_means_errors(),
            "unconditional": blind,
            "balance": {s: ratio[0] for s, ratio in ratios.items()},
            "predicted": {s: ratio[1] for s, ratio in ratios.items()},
        },
        scales=scale_errors(slices, denoise),
        sample_means=[mean_activity(image) for image in samples],
        samples=samples,
    )  # fmt: skip


def mean_activity(images: Tensor) -> float:
    """Of the pixels that emit, network units: about 1 in training."""
    emitting = images[images > _EMITTING]
    return float(emitting.mean()) if len(emitting) else 0.0


def scale_errors(slices: ValidationSet, denoise: Denoiser) -> dict[float, dict[float, float]]:
    """Error of ``D(a (u + sigma z); a sigma) / a``, by ``sigma`` and scale ``a``.

    A denoiser that is equivariant has the same error for all scales; networks learn that from changed intensities, and
    only as far as those went.
    """
    low, high = (slices.schedule.sigma(float(t)) for t in (slices.schedule.t_min, slices.schedule.t_max))
    found = {
        sigma: {a: slices.error(denoise, a * sigma, a) / a for a in SCALES if low <= a * sigma <= high}
        for sigma in SCALE_SIGMAS
    }
    return {sigma: levels for sigma, levels in found.items() if levels}


@torch.inference_mode()
def calibration(slices: ValidationSet, denoise: Denoiser, sigma: float) -> tuple[float, float]:
    r"""Whether the denoiser is a posterior mean, as far as its own output can tell.

    With ``w = u + sigma z`` and ``D = E[u | w]`` the error is orthogonal to every function of ``w``. Two ratios follow
    that are 1 for a perfect model, the means being over slices and pixels:

    * noise balance ``(E|w - D|^2 + E|D - u|^2) / sigma^2``;
    * predicted over actual error ``(sigma^2 E[div D] / E|D - u|^2)^(1/2)`` with ``div D`` the mean diagonal of the
      Jacobian (Tweedie's second formula), by a random difference quotient. Below 1: the model is more certain than it
      should be.
    """
    removed = error = divergence = count = 0.0
    step = 1e-2 * sigma
    for clean, noise, anatomy, plane in slices.groups(sigma):
        noisy = clean + sigma * noise
        denoised = denoise(noisy, sigma, plane, anatomy)
        signs = torch.randn(clean.shape, generator=torch.Generator().manual_seed(plane)).sign()
        moved = denoise(noisy + step * signs, sigma, plane, anatomy)
        removed += float((noisy - denoised).double().square().sum())
        error += float((denoised - clean).double().square().sum())
        divergence += float((signs * (moved - denoised)).double().sum()) / step
        count += clean.numel()
    balance = (removed + error) / (count * sigma * sigma)
    return balance, math.sqrt(max(sigma * sigma * divergence, 0.0) / error) if error else math.inf


def unconditional_samples(model: ScoreModel, count: int, size: int, num_steps: int = 60) -> Tensor:
    """Transverse slices ``[count, size, size]`` drawn from the prior alone, in network units, see `generate`.

    Of a network of volumes, the middle slices of cubes.
    """
    shape = (size if model.spatial_dims == 3 else 1, size, size)
    return generate(model, count, shape, "ddim", num_steps, eta=0.85)[:, shape[0] // 2]


def save_sheet(images: Tensor, path: Path) -> None:
    """Contact sheet of slices ``[n, h, w]`` as a picture; 0 is white, 2.2 times the mean activity black."""
    from matplotlib.figure import Figure

    columns, rows = 4, -(-len(images) // 4)
    figure = Figure(figsize=(2.2 * columns, 2.2 * rows), layout="constrained")
    for k, image in enumerate(images):
        axis = figure.add_subplot(rows, columns, k + 1)
        axis.imshow(image.numpy(), cmap="gray_r", vmin=0, vmax=2.2)
        axis.axis("off")
    save_figure(path, figure, 90)


def _recipe(model: ScoreModel) -> Recipe:
    """As much of a recipe as reading volumes needs."""
    if model.architecture is None:
        raise ValueError("the model does not tell its network: only models from files can be evaluated")
    planes = (0, 1, 2) if model.architecture.num_class_embeds in (0, 3) else (0,)
    crops = model.metadata["training"].get("recipe", {}).get("crops", [])
    known = isinstance(crops, (list, tuple)) and crops and all(isinstance(crop, int) for crop in crops)
    side = max((max(crops) if known else _CUBE) // model.multiple, 2) * model.multiple
    return Recipe(
        "evaluation", architecture=model.architecture, schedule=model.schedule, prediction=model.prediction,
        time_input=model.time_input, planes=planes, crops=(side,),
    )  # fmt: skip
