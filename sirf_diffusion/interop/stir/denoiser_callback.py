"""``Diffusion Denoiser``: a filter that takes the noise out of an image, to be used after a reconstruction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...geometry.images import ImageGeometry
from ...models.denoiser import Denoiser
from . import values
from .views import as_tensor


class DenoiserCallback:
    """A `sirf_diffusion.models.denoiser.Denoiser` that works in place on STIR's image.

    Its noise level and intensity scale are estimated from each image where the block has 0 for them.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> DenoiserCallback:
        """The filter of a block's values."""
        denoiser = Denoiser(
            values.model_of(options),
            options["noise level"] or None,
            num_steps=options["number of steps"],
            planes=options["planes"],
            intensity_scale=options["intensity scale"] or None,
        )
        return cls(denoiser)

    def set_up(self, geometry: ImageGeometry) -> None:
        """Take the grid; the intensity scale may have to wait for an image."""
        self.geometry = geometry
        self.denoiser.model.check_anatomical(geometry)

    def apply(self, x: np.ndarray) -> None:
        """Denoise in place."""
        image = as_tensor(x)
        image.copy_(self.denoiser(image, self.geometry))
