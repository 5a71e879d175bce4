"""What a supervised training looks at: images with noise and what the score model makes of them, cut to the object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..geometry.images import ImageGeometry, voxels_agree
from ..models.intensity import intensity_scale
from .data.volume_file import VolumeFile

#: What is brighter, in network units, belongs to the object; it and this many pixels around it are what is shown.
AIR, _MARGIN = 0.05, 2
#: An image with more than this times its intensity scale anywhere is not learnt from.
_MOST_CONTRAST = 8.0
#: Another image is drawn instead of an odd one, so often.
_ATTEMPTS = 20


@dataclass(frozen=True)
class View:
    """A clean image ``[z, y, x]``, network units, and its attenuation; on the network's grid the noisy one and the
    score model's ``v``; the time ``[1]``.
    """

    truth: Tensor
    attenuation: Tensor
    u: Tensor
    v: Tensor
    t: Tensor


def scanned(views: Sequence[View]) -> tuple[Tensor, Tensor]:
    """What is scanned: images and attenuation ``[B, z, y, x]``."""
    return torch.stack([o.truth for o in views]), torch.stack([o.attenuation for o in views])


def check_pixels(file: VolumeFile, geometry: ImageGeometry) -> None:
    """ValueError unless the volumes' pixels are as large as those of the images; how far planes are apart is free."""
    found, expected = file.voxel_size[1:], geometry.voxel_size[1:]
    if not voxels_agree(found, expected):
        raise ValueError(
            f"{file.path} has pixels of {found[0]:g} x {found[1]:g} mm, the score model was trained with "
            f"{expected[0]:g} x {expected[1]:g} mm: make the data with that voxel size"
        )


def is_odd(emission: Tensor, geometry: ImageGeometry) -> bool:
    """Whether an image has nothing, or little but a hot spot: what its intensity scale is hangs on chance."""
    peak = float(emission.max())
    return peak <= 0 or peak > _MOST_CONTRAST * intensity_scale(emission, geometry)


def ordinary(draw: Callable[[int], Tensor], geometry: ImageGeometry) -> Tensor:
    """The first of the images (emission in front) ``draw(0)``, ``draw(1)``, ... that is not odd, or else the last."""
    for attempt in range(_ATTEMPTS + 1):
        images = draw(attempt)
        if not is_odd(images[0], geometry):
            break
    if not bool(images[0].any()):
        raise ValueError(f"{_ATTEMPTS + 1} slices of the data in a row have no activity; are these PET images?")
    return images


@dataclass(frozen=True)
class Window:
    """Cuts images ``[B, z, y, x]`` to windows of one size, each from its own first row and column."""

    full: tuple[int, int]
    size: tuple[int, int]
    places: tuple[tuple[int, int], ...]

    @classmethod
    def around(cls, images: Tensor, multiple: int) -> Window:
        """Around the objects, of a size that is a multiple."""
        full, size, firsts = images.shape[-2:], [], []
        emitting = (images > AIR).any(1)
        for axis, length in enumerate(full):
            found = [image.any(1 - axis).nonzero() for image in emitting]
            ends = [(int(f.min()), int(f.max()) + 1) if len(f) else (0, length) for f in found]
            longest = max(high - low for low, high in ends) + 2 * _MARGIN
            size.append(min(-(-longest // multiple) * multiple, length))
            firsts.append([min(max((low + high - size[-1]) // 2, 0), length - size[-1]) for low, high in ends])
        return cls((full[0], full[1]), (size[0], size[1]), tuple(zip(*firsts, strict=True)))

    def __call__(self, images: Tensor) -> Tensor:
        """The windows."""
        return torch.stack([image[self._part(place)] for image, place in zip(images, self.places, strict=True)])

    def back(self, windows: Tensor) -> Tensor:
        """Images with the windows in their places, zero elsewhere."""
        images = windows.new_zeros((*windows.shape[:-2], *self.full))
        for k, (window, place) in enumerate(zip(windows, self.places, strict=True)):
            images[(k, *self._part(place))] = window
        return images

    def _part(self, place: tuple[int, int]) -> tuple[Any, slice, slice]:
        (y, x), (height, width) = place, self.size
        return ..., slice(y, y + height), slice(x, x + width)
