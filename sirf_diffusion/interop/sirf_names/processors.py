"""Image processors with the names and semantics of ``sirf.STIR``."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from ...engines.embedded.acquisition_model import GaussianBlur
from ...geometry.images import ImageGeometry
from .containers import error, missing
from .data import ImageData

logger = logging.getLogger(__name__)


class ImageDataProcessor:
    """Changes an image in some way."""

    __getattr__ = missing

    def __init__(self) -> None:
        self._input: ImageData | None = None
        self._output: ImageData | None = None

    def apply(self, image: ImageData) -> None:
        """Change an image in place."""
        raise NotImplementedError

    def set_input(self, image: ImageData) -> None:
        self._input = image

    def process(self, image: ImageData | None = None) -> ImageData:
        source = image if image is not None else self._input
        if source is None:
            raise error("input image not set")
        self._output = source.clone()
        self.apply(self._output)
        return self._output

    def get_output(self) -> ImageData | None:
        return self._output


class SeparableGaussianImageFilter(ImageDataProcessor):
    """Gaussian smoothing along the three axes; as an acquisition model's processor, its resolution model.

    As in SIRF, settings and voxel sizes are those of the last ``set_up``, or else of the first image.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fwhms: tuple[float, float, float] = (0.0, 0.0, 0.0)
        self.max_kernel_sizes: tuple[int, int, int] = (-1, -1, -1)
        self.normalise = True
        self._kept: tuple | None = None

    def set_fwhms(self, fwhms: Sequence[float]) -> None:
        """Full widths at half maximum ``(z, y, x)`` in mm."""
        if len(fwhms) != 3 or min(fwhms) < 0:
            raise error(f"fwhms must be three numbers (z, y, x) of at least 0 mm, found {fwhms}")
        self.fwhms = tuple(float(w) for w in fwhms)

    def set_max_kernel_sizes(self, mks: Sequence[int]) -> None:
        """Most voxels of each kernel ``(z, y, x)``; -1 for as many as matter."""
        if len(mks) != 3 or 0 in mks:
            raise error(f"max kernel sizes must be three whole numbers (z, y, x), -1 for no limit, found {mks}")
        self.max_kernel_sizes = tuple(int(n) for n in mks)

    def set_normalise(self, norm: bool = True) -> None:
        """Whether the values of each kernel add up to 1."""
        self.normalise = bool(norm)

    def blur(self, geometry: ImageGeometry) -> GaussianBlur:
        """The filter for tensors of a grid."""
        present = geometry.voxel_size, self.fwhms, self.max_kernel_sizes, self.normalise
        if self._kept is None:
            self._kept = present
        elif self._kept != present:
            logger.warning("the Gaussian filter stays as it was set up, as in SIRF: call set_up(image) after changes")
        sizes, fwhms, *kernel = self._kept
        return GaussianBlur(ImageGeometry(geometry.shape, sizes), fwhms, torch.device("cpu"), *kernel)

    def set_up(self, image: ImageData) -> None:
        """Take up settings and voxel sizes."""
        self._kept = None
        self.blur(image.geometry)

    def apply(self, image: ImageData) -> None:
        """Smooth an image in place, with zeros outside it."""
        image.tensor.copy_(self.blur(image.geometry)(image.tensor))


class TruncateToCylinderProcessor(ImageDataProcessor):
    """Zeroes the image outside the cylinder around the scanner's axis whose diameter is the image's size in x."""

    def __init__(self) -> None:
        super().__init__()
        self._strict = True

    def set_strictly_less_than_radius(self, flag: bool) -> None:
        """Whether voxels exactly on the radius are zeroed."""
        self._strict = bool(flag)

    def get_strictly_less_than_radius(self) -> bool:
        return self._strict

    def apply(self, image: ImageData) -> None:
        """Truncate an image in place."""
        _, ny, nx = image.geometry.shape
        radius = (nx - 1) // 2
        y, x = torch.arange(ny) - ny // 2, torch.arange(nx) - nx // 2
        distance = y[:, None] ** 2 + x[None] ** 2
        image.tensor[:, distance >= radius**2 if self._strict else distance > radius**2] = 0
