"""``Diffusion Denoiser``: a filter that takes the noise out of an image, to be used after a reconstruction."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...geometry.images import ImageGeometry
from ...models import ScoreModel
from ...models.denoiser import Denoiser
from . import values
from .views import as_tensor


class DenoiserCallback:
    """A `sirf_diffusion.models.denoiser.Denoiser` that works in place on STIR's image.

    Parameters
    ----------
    model
        Score model, not bound to a grid; a conditional one with its anatomical image (`ScoreModel.guided_by`).
    noise_level
        Noise relative to the mean activity; 0 estimates it with the model itself, see
        `sirf_diffusion.models.denoiser.estimate_noise_level`.
    num_steps
        Network evaluations: 1 for the mean of the clean images that may lie behind the noisy one, more for a
        deterministic chain.
    planes
        ``"auto"``, ``"transverse"`` or ``"three"``.
    intensity_scale
        Image units per network unit; 0 to estimate it from each image.
    """

    def __init__(
        self,
        model: ScoreModel,
        noise_level: float = 0.0,
        *,
        num_steps: int = 1,
        planes: str = "auto",
        intensity_scale: float = 0.0,
    ) -> None:
        self.planes = planes
        self.denoiser = Denoiser(
            model, noise_level or None, num_steps=num_steps, intensity_scale=intensity_scale or None
        )

    @classmethod
    def from_text(cls, options: Mapping[str, str]) -> DenoiserCallback:
        """The filter of a block's keys."""
        return cls(
            values.guided(ScoreModel.load(options["model filename"], device=options["device"]), options),
            values.real("noise level", options["noise level"]),
            num_steps=values.count("number of steps", options["number of steps"], minimum=1),
            planes=options["planes"],
            intensity_scale=values.real("intensity scale", options["intensity scale"]),
        )

    def set_up(self, geometry: ImageGeometry) -> None:
        """Take the grid; the intensity scale may have to wait for an image."""
        self.geometry = geometry
        self.denoiser.planes = values.planes(self.planes)
        self.denoiser.model.check_anatomical(geometry)

    def apply(self, x: np.ndarray) -> None:
        """Denoise in place."""
        image = as_tensor(x)
        image.copy_(self.denoiser(image, self.geometry))
