"""Enhancement of SIRF images by a score model, as an image processor of SIRF's."""

from __future__ import annotations

from typing import Any

import numpy as np
import sirf.STIR as pet

from ...engines.sirf.convert import fill, image_geometry, to_tensor
from ...geometry.images import ImageGeometry
from ...models.denoiser import Denoiser
from ..prior_settings import ProcessorSettings
from .handles import processor_handle
from .priors import PythonPrior


class ScoreImageProcessor(ProcessorSettings, pet.ImageDataProcessor):
    __doc__ = ProcessorSettings.__doc__

    name = "ScoreImageProcessor"
    _handle: Any = None

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
        from ..stir.callbacks import as_tensor

        image = as_tensor(x)
        image.copy_(self.denoiser(image, self.geometry))
