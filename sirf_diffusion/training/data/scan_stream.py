"""What is scanned in a supervised training: random slices, or stacks of them, of emission and attenuation."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ...geometry.images import ImageGeometry
from ...models.grid import GridAdapter
from .slice_stream import SliceStream

#: Of the water that stands for the attenuation of what has no attenuation map, 1/cm; and where there is some.
_WATER, _AIR = 0.096, 0.05


@dataclass
class ScanStream(SliceStream):
    """Slices of emission and attenuation; water where there is activity of volumes that have no attenuation map.

    With ``depth``, each is a stack ``[2, depth, crop, crop]`` of transverse planes that are ``spacing`` mm apart, from
    anywhere in a volume, all of them changed alike.
    """

    depth: int = 0
    spacing: float = 0.0

    @property
    def fingerprint(self) -> str:
        """With the attenuation maps, as far as the file has them."""
        total = hashlib.sha256(self.file.fingerprint.encode())
        for index in range(len(self.file)):
            with suppress(KeyError):
                total.update(self.file.volume(index, "mu").numpy().tobytes())
        return total.hexdigest()[:16]

    def _slice(self, rng: np.random.Generator, index: int, crop: int) -> tuple[Tensor, int]:
        if not self.depth:
            return super()._slice(rng, index, crop)
        choices, shape, size = self._choices[index][0], self.file.infos[index].shape, self.file.voxel_size
        wanted = ImageGeometry((self.depth, *shape[1:]), (self.spacing, *size[1:]))
        grid = GridAdapter(wanted, size, planes="three")
        planes, length = grid.latent_geometry.shape[0], shape[0]
        centre = int(choices[rng.integers(len(choices))]) if len(choices) else length // 2
        low = (length - planes) // 2 if length <= planes else min(max(centre - planes // 2, 0), length - planes)
        sides = (0, 0, 0, 0, -low, low + planes - length)  # air where the volume ends, and less where it goes on
        stack = torch.stack([pad(c, sides).float() for c in self._channels(index)])
        return self.augmentation.slices(rng, grid.to_image(stack), 0, crop, wanted.voxel_size), 0

    def _channels(self, index: int) -> list[Tensor]:
        emission = self.file.volume(index)
        try:
            return [emission, self.file.volume(index, "mu")]
        except KeyError:
            return [emission, _WATER * (emission > _AIR)]
