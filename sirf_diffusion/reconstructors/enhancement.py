"""Post-reconstruction enhancement: from an image of a low dose to an estimate of the standard dose."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..geometry.checks import check_count, check_finite, check_real
from ..geometry.gaussian import gaussian_smooth
from ..geometry.images import ImageGeometry
from ..models import ScoreModel
from ..models.denoiser import Denoiser
from ..models.doses import with_more_dose
from ..models.enhancement import EnhancementModel
from ..models.grid import neighbouring
from ..models.intensity import intensity_scale
from .low_dose import LowDose

logger = logging.getLogger(__name__)

#: Share of a patch that overlaps the next one, and voxels of the patches that the network sees at once.
OVERLAP, _VOXELS_AT_ONCE = 0.25, 2**19
#: Steps of a chain that draws samples, unless it is told.
SAMPLE_STEPS = 8
#: Of the smoothing along the axis before a network of slices, mm: about the scanner's own blur.
AXIAL_FWHM = 6.0


@dataclass(frozen=True)
class Enhanced:
    """Images ``[z, y, x]`` in image units; ``samples`` ``[S, z, y, x]`` and ``sd`` where several were drawn.

    ``dose`` is that of the image, as given or estimated; ``start_step`` is that of what the network sees, which has
    more counts where planes are averaged.
    """

    image: Tensor
    dose: float
    start_step: int
    intensity_scale: float
    samples: Tensor | None = None
    sd: Tensor | None = None


class Enhancer:
    r"""A chain from the step whose dose is the image's own up to the standard dose (Jiang et al. 2023, MICCAI).

    At each step the network estimates the standard-dose image, :math:`\hat x = E[x_0 | x_t, d_t, CT]`, and the counts
    that are missing up to the next dose are added to the image: :math:`x \leftarrow (d_t x_t + (d_{t-1} - d_t) x') /
    d_{t-1}`, with :math:`x' = \hat x`, or in a chain that samples, with an image of Poisson counts of it. For the noise
    ``binomial`` that is the thinning backwards, exactly but for the reconstruction. The result is the last estimate.
    With one step it is the mean of all standard-dose images that may lie behind the image.

    Parameters
    ----------
    model
        Enhancement model, with its CT image (`EnhancementModel.guided_by`).
    dose_ratio
        Dose of the image, as a share of the model's standard dose, in (0, 1]; None estimates it from the noise.
    num_steps
        Network evaluations of each voxel (1 or more); None for 1, or 8 for each sample.
    num_samples
        0: one image, without noise in the chain. Else the image is the mean of so many samples.
    scale
        Image units per network unit; None estimates it.
    axial_fwhm
        Of a Gaussian along the axis, in mm, before a network of slices: neighbours lend each its counts. None for 6, or
        0 for a network that is shown the neighbours itself. Of a network of volumes, without effect.
    """

    def __init__(
        self, model: EnhancementModel, dose_ratio: float | None = None, *, num_steps: int | None = None,
        num_samples: int = 0, seed: int = 0, scale: float | None = None, without_ct: bool = False,
        axial_fwhm: float | None = None, progress: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        if dose_ratio is not None:
            check_real("the dose ratio", dose_ratio, 0, 1, open_below=True)
        if scale is not None:
            check_real("intensity_scale", scale, open_below=True)
        if num_steps is not None:
            check_count("num_steps", num_steps, 1, model.config.schedule.num_steps)
        self.model, self.dose_ratio, self.scale, self.seed = model, dose_ratio, scale, seed
        self.num_samples = check_count("num_samples", num_samples, 0, 1000)
        self.num_steps = num_steps or (SAMPLE_STEPS if num_samples else 1)
        if num_samples and self.num_steps == 1:
            raise ValueError("samples take noise between steps: with num_steps = 1 they would be alike; give 2 or more")
        self.without_ct, self.progress = without_ct, progress
        if axial_fwhm is None:
            axial_fwhm = 0.0 if model.config.architecture.neighbours else AXIAL_FWHM
        self.axial_fwhm = check_real("axial_fwhm", axial_fwhm, 0, 50)
        self.used_dose: float | None = None

    def __call__(self, x: Tensor, geometry: ImageGeometry) -> Tensor:
        """The enhanced image ``[z, y, x]``, new, image units; ``used_dose`` is what was taken for its dose."""
        return self.enhance(x, geometry).image

    def set_anatomical(self, anatomical: Any, guidance: float = 0.0) -> None:
        """CT image, see `EnhancementModel.guided_by`."""
        self.model = self.model.guided_by(anatomical, guidance)

    @property
    def noise_level(self) -> None:
        """There is none: noise is told as a dose."""
        return

    @noise_level.setter
    def noise_level(self, value: float | None) -> None:
        if value is not None:
            raise ValueError("an enhancement model is told a dose ratio, not a noise level")

    used_noise_level = None

    @torch.no_grad()
    def enhance(
        self, x: Tensor, geometry: ImageGeometry, done: Tensor | None = None,
        keep: Callable[[Tensor], None] | None = None,
    ) -> Enhanced:  # fmt: skip
        """Image, samples and what was found out of an image ``[z, y, x]``; negative values count as 0.

        ``done`` are the first samples, of an earlier run; ``keep`` is given all samples so far after each one. Raises
        ValueError if the image is not finite or has no activity, or a CT image is missing.
        """
        check_finite(x, "the image")
        model = self.model
        if model.sees_ct and model._anatomical is None:
            if not (self.without_ct or model.without_ct):
                raise ValueError(
                    "the model was trained with CT images: give one (--ct), or say that it may do without one "
                    "(--without-ct, guidance -1)"
                )
            logger.warning("enhanced without the CT image that the model was trained with")
        x = x.detach().to("cpu", torch.float32).clamp(min=0)
        scale = self.scale or intensity_scale(x, geometry)
        grid = model.grid(geometry)
        grid.log()
        seen = grid.latent_geometry
        u = grid.to_latent(x / scale)
        ct = model.ct_on(geometry)
        ct = None if ct is None else grid.to_latent(ct)
        u, gain = self._with_neighbours(u, seen)
        dose = self.dose_ratio if self.dose_ratio is not None else min(model.estimated_dose(u, seen) / gain, 1.0)
        start = model.config.schedule.step_of(min(dose * gain, 1.0))
        self.used_dose = dose
        if self.num_samples and start == 0:
            logger.warning("the image has the standard dose already: its samples are all alike")
        told = "" if self.dose_ratio is not None else " (estimated)"
        logger.info("dose ratio %.3g%s: from step %d of %d", dose, told, start, model.config.schedule.num_steps)
        chains = [] if done is None else list(done)
        while len(chains) < max(self.num_samples, 1):
            chains.append(grid.to_image(self._chain(u, ct, start, seen, len(chains))).clamp_(min=0) * scale)
            if keep is not None:
                keep(torch.stack(chains))
        samples = torch.stack(chains) if self.num_samples else None
        image = chains[0] if samples is None else samples.mean(0)
        sd = None if samples is None or len(samples) < 2 else samples.std(0)
        return Enhanced(image, dose, start, scale, samples, sd)

    def _with_neighbours(self, u: Tensor, grid: ImageGeometry) -> tuple[Tensor, float]:
        """Planes averaged along the axis for a network of slices, and by how much their doses grow.

        The noise of neighbouring planes is taken for independent, and counts of a plane for proportional to its width.
        """
        config = self.model.config
        if config.architecture.spatial_dims == 3:
            return u, 1.0
        gain = grid.voxel_size[0] / config.voxel_size[0]
        if config.architecture.neighbours and len(u) == 1:
            logger.warning("the network was trained with neighbouring slices; the image has one, and is left noisier")
        if self.axial_fwhm == 0 or len(u) == 1:
            return u, gain
        line = ImageGeometry((2 * len(u) - 1, 1, 1), (grid.voxel_size[0], 1.0, 1.0))
        middle = torch.zeros(line.shape)
        middle[len(u) - 1] = 1
        weights = gaussian_smooth(middle, line, self.axial_fwhm)
        flat = ImageGeometry(grid.shape, (grid.voxel_size[0], 1e5, 1e5))  # pixels too large to be smoothed
        return gaussian_smooth(u, flat, self.axial_fwhm), gain / float(weights.square().sum())

    def _chain(self, u: Tensor, ct: Tensor | None, start: int, grid: ImageGeometry, number: int) -> Tensor:
        """Standard-dose estimate ``[z, y, x]``, network units; number of the sample."""
        schedule, config = self.model.config.schedule, self.model.config
        doses = [schedule.dose(round(start * (1 - k / self.num_steps))) for k in range(self.num_steps)]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        low_dose = LowDose(config.scan, config.architecture.noise, grid.voxel_size)
        batch = self._batch(u)
        for dose, following in zip(doses, [*doses[1:], None], strict=True):
            clean = self.estimate(batch, dose, None if ct is None else self._batch(ct))
            self.progress()
            if following is not None and following > dose:
                missing = torch.full((len(clean),), following - dose)
                more = low_dose(clean, missing, generator) if self.num_samples else clean
                batch = with_more_dose(batch, dose, more, following)
        return clean.reshape(u.shape)

    def estimate(self, batch: Tensor, dose: float, ct: Tensor | None, at_once: int | None = None) -> Tensor:
        """The network's estimate of images ``[n, 1, (z,) y, x]`` of any size, in overlapping patches that are blended.

        For a network that is shown neighbouring slices, the images are the slices of one volume, in order.
        ``at_once`` is the number of patches that the network is given together.
        """
        from monai.inferers.utils import sliding_window_inference

        model, architecture = self.model, self.model.config.architecture
        side, dims = architecture.patch, architecture.spatial_dims
        if architecture.neighbours:
            batch = batch[neighbouring(torch.arange(len(batch)), len(batch), architecture.neighbours), 0]
        images = batch.shape[1]

        def clean(patches: Tensor) -> Tensor:
            seen = patches[:, images:] if ct is not None else None
            return model.to_image(model.clean(model.to_latent(patches[:, :images]), dose, seen))

        return sliding_window_inference(
            batch if ct is None else torch.cat((batch, ct), 1), (side,) * dims,
            at_once or max(1, _VOXELS_AT_ONCE // side**dims), clean, OVERLAP, "gaussian",
            sw_device=model.device, device="cpu",
        )  # fmt: skip

    def _batch(self, u: Tensor) -> Tensor:
        """A volume is one image of a network of volumes, and a batch of slices of one of slices."""
        return u[None, None] if self.model.config.architecture.spatial_dims == 3 else u[:, None]


def image_filter(
    name: str | os.PathLike[str], device: str, precision: str = "auto", *, noise_level: float | None = None,
    num_steps: int | None = None, planes: str | None = None, intensity_scale: float | None = None,
    dose_ratio: float | None = None,
) -> Denoiser | Enhancer:  # fmt: skip
    """What a model file filters images with: a score model by `Denoiser`, an enhancement model by `Enhancer`.

    Raises ValueError for a setting that means nothing to that kind of model.
    """
    if not EnhancementModel.is_one(name):
        if dose_ratio is not None:
            raise ValueError(f"{name} is a score model: it is told a noise level, not a dose ratio")
        model = ScoreModel.load(name, device, precision)
        return Denoiser(model, noise_level, num_steps=num_steps or 1, planes=planes, intensity_scale=intensity_scale)
    given = {"noise level": noise_level, "planes": planes, "precision": None if precision == "auto" else precision}
    for setting, value in given.items():
        if value is not None:
            raise ValueError(f"{name} is an enhancement model, which has no {setting} (found {value}): leave it out")
    model = EnhancementModel.load(name, device)
    return Enhancer(model, dose_ratio, num_steps=num_steps, scale=intensity_scale)
