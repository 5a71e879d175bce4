"""Whose image it is: how much a reconstruction resembles the anatomy that a personalised model was made for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..geometry.gaussian import gaussian_smooth
from ..geometry.images import ImageGeometry
from .grid import GridAdapter
from .intensity import intensity_scale

#: Voxels of what a model keeps, and of the comparison, mm.
VOXEL_MM = 3.0
#: Largest value that is kept, in network units, and largest image, in voxels.
_LARGEST, _MOST_VOXELS = 4.0, 2**23
#: Contrast is that to the neighbourhood of this FWHM; only what exceeds this activity, smoothed by that FWHM, counts.
#: Chosen with one patient's model: images of four of its planes, 0.37 to 0.54, ten other subjects', 0.15 to 0.27.
_NEIGHBOURHOOD_MM, _EMITTING, _SMOOTHED_MM = 12.0, 0.4, 6.0
_TURNS = (-6.0, -3.0, 0.0, 3.0, 6.0)
_NOISE = 0.15


def expected_image_of(image: Tensor, voxel_size: tuple[float, float, float]) -> Tensor:
    """What a model file keeps of an expected image ``[z, y, x]``, network units: bytes, on voxels of 3 mm."""
    grid = GridAdapter(ImageGeometry(tuple(image.shape), voxel_size), (VOXEL_MM,) * 3, planes="volume")
    return (grid.to_latent(image.float()).clamp(0, _LARGEST) * (255 / _LARGEST)).round().to(torch.uint8)


def check_expected_image(image: Tensor) -> Tensor:
    """What a file has as of `expected_image_of`, or a ValueError."""
    if image.dtype != torch.uint8 or image.ndim != 3 or min(image.shape) < 8 or image.numel() > _MOST_VOXELS:
        raise ValueError(
            f"the expected image must be a volume of bytes, found {image.dtype} of shape {tuple(image.shape)}"
        )
    return image


def resemblance(expected: Tensor, image: Tensor, geometry: ImageGeometry) -> float:
    r"""Mean over transverse planes of their largest correlation with any plane of the expected image.

    Contrast is normalised by that of the neighbourhood: :math:`(x - \bar x) / \sqrt{\overline{(x - \bar x)^2} + 0.15}`.
    Planes are moved anywhere in their plane, and turned by up to 6 degrees; a head that is tilted further resembles
    itself less.

    Parameters
    ----------
    expected
        See `expected_image_of`.
    image, geometry
        Image ``[z, y, x]``, any unit, and its grid; planes may be far apart. One that is empty or not finite resembles
        nothing: 0.
    """
    if not (bool(torch.isfinite(image).all()) and float(image.max()) > 0):
        return 0.0
    expected = expected.to(image.device).float() * (_LARGEST / 255)
    scaled = image / intensity_scale(image, geometry)
    grid = GridAdapter(geometry, (geometry.voxel_size[0], VOXEL_MM, VOXEL_MM))
    planes = grid.to_latent(scaled.float())
    sides = [math.ceil(max(a, b) / 16) * 16 + 16 for a, b in zip(expected.shape[1:], planes.shape[1:], strict=True)]
    places = torch.cat([_normalised(_turned(expected, turn)) for turn in _TURNS])
    spectra, squares = (torch.fft.rfft2(_padded(p, sides)) for p in (places, places.square()))
    found = []
    for plane in planes[:, None]:
        weight = (_smooth(plane, _SMOOTHED_MM) > _EMITTING).float()
        total = weight.sum()
        if not total > 0:
            continue
        contrast = _normalised(plane) * weight
        contrast -= contrast.sum() / total * weight

        def correlated(spectrum: Tensor, kernel: Tensor, total: Tensor = total) -> Tensor:
            return torch.fft.irfft2(spectrum * torch.fft.rfft2(_padded(kernel, sides)).conj(), sides) / total

        mean, square = (correlated(s, weight) for s in (spectra, squares))
        variance = (square - mean.square()).clamp(min=_NOISE)
        own = contrast.square().sum() / total
        found.append(float((correlated(spectra, contrast) / (variance * own).sqrt()).max()))
    return sum(found) / len(found) if found else 0.0


def _normalised(planes: Tensor) -> Tensor:
    contrast = planes - _smooth(planes, _NEIGHBOURHOOD_MM)
    return contrast / (_smooth(contrast.square(), _NEIGHBOURHOOD_MM) + _NOISE).sqrt()


def _smooth(planes: Tensor, fwhm_mm: float) -> Tensor:
    """Each plane for itself."""
    geometry = ImageGeometry((1, *planes.shape[1:]), (VOXEL_MM,) * 3)
    return gaussian_smooth(planes[:, None], geometry, fwhm_mm)[:, 0]


def _turned(planes: Tensor, degrees: float) -> Tensor:
    """Planes turned about their middle."""
    if not degrees:
        return planes
    angle, (height, width) = math.radians(degrees), planes.shape[1:]
    c, s = math.cos(angle), math.sin(angle)
    matrix = torch.tensor([[c, -s * height / width, 0], [s * width / height, c, 0]]).to(planes)
    where = torch.nn.functional.affine_grid(matrix[None], (1, 1, height, width), align_corners=False)
    return torch.nn.functional.grid_sample(planes[None], where, align_corners=False)[0]


def _padded(planes: Tensor, sides: Sequence[int]) -> Tensor:
    return torch.nn.functional.pad(planes, (0, sides[1] - planes.shape[-1], 0, sides[0] - planes.shape[-2]))
