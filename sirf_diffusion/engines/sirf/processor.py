"""Enhancement of SIRF images by a score model, as an image processor of SIRF's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import sirf.STIR as pet

from ...images import ImageGeometry
from ...models.denoiser import Denoiser
from ..prior_settings import GuidedSettings
from .convert import fill, image_geometry, to_tensor
from .handles import processor_handle
from .priors import PythonPrior

if TYPE_CHECKING:
    from ...models import ScoreModel


class ScoreImageProcessor(GuidedSettings, pet.ImageDataProcessor):
    """Enhances an image by denoising it with a score model: ``x -> c D(x / c, sigma)``, negative values set to 0.

    ``apply``, ``process``, ``set_input`` and ``get_output`` need no compiled part. SIRF objects that take an image
    processor, such as ``AcquisitionModel.set_image_data_processor``, do: run ``stir-diffusion build`` once.

    Parameters
    ----------
    model
        A score model, the name of a bundled one, or a file.
    noise_level
        Noise level in network units; estimated for each image if None, see
        `sirf_diffusion.models.noise_level.estimate_noise_level`.
    planes, intensity_scale, device
        As for :class:`~sirf_diffusion.engines.sirf.priors.ScorePrior`; the scale is estimated for each image if None.
    """

    def __init__(
        self,
        model: ScoreModel | str | os.PathLike[str],
        noise_level: float | None = None,
        planes: str | None = None,
        intensity_scale: float | None = None,
        device: str = "auto",
    ) -> None:
        self._handle: Any = None
        super().__init__()
        self.name = type(self).__name__
        if isinstance(model, (str, os.PathLike)):
            from ...models import ScoreModel

            model = ScoreModel.load(model, device=device)
        self.denoiser = Denoiser(model, noise_level, planes=planes, intensity_scale=intensity_scale)

    @property
    def handle(self) -> Any:
        """SIRF's handle of a STIR data processor, made when it is first asked for."""
        if self._handle is None:
            self._handle = processor_handle(_InPlace(self.denoiser))
        return self._handle

    @handle.setter
    def handle(self, value: Any) -> None:
        self._handle = value

    values = staticmethod(PythonPrior.values)
    grid = staticmethod(PythonPrior.grid)
    position = staticmethod(PythonPrior.position)

    def _hand_over(self) -> None:
        self.denoiser.set_anatomical(self._located, self._guidance)

    def set_noise_level(self, value: float | None) -> None:
        """Noise level in network units; None to estimate it for each image."""
        self.denoiser.noise_level = value

    def get_noise_level(self) -> float | None:
        """Noise level; the one that was used last if it is estimated."""
        return self.denoiser.noise_level or self.denoiser.used_noise_level

    def apply(self, image: Any) -> None:
        """Denoise an image in place."""
        if not isinstance(image, pet.ImageData):
            raise pet.error(f"expected sirf.STIR.ImageData, found {type(image).__name__}")
        self._see(image)
        fill(image, self.denoiser(to_tensor(image), image_geometry(image)))


class _InPlace:
    """What STIR calls: it has a grid first, then images of it."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    def set_up(self, geometry: ImageGeometry) -> None:
        self.geometry = geometry

    def apply(self, x: np.ndarray) -> None:
        from stir_priors.callbacks import as_tensor

        image = as_tensor(x)
        image.copy_(self.denoiser(image, self.geometry))
