"""Random changes of training slices and cubes: flips, rotation, scale, crop, contrast, brightness.

All random numbers come from the generator that the caller gives: a slice is a function of its seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...geometry.checks import check_count, check_real
from ...simulation.uptake import varied


@dataclass(frozen=True)
class Augmentation:
    """How much training images are changed (methods: flips and small rotations, intensity U(0.5, 1.5)).

    Parameters
    ----------
    flip
        Probability in [0, 1] of exchanging left and right (front and back in sagittal slices).
    axial_flip
        The same for head and feet, in coronal and sagittal slices.
    rotation
        Largest angle in degrees, 0 to 180; of cubes, about an axis of random direction.
    scale
        Largest change of size, as a share in [0, 0.5]: 0.1 is 0.9 to 1.1 times.
    gamma_share, gamma
        How often the contrast changes by ``u ** g``, and the range of ``g``, both positive.
    intensity
        Range of the factor on the whole image, both positive.
    anatomy_intensity
        The same for the anatomical image, which is scaled by a rule and so needs less of it.
    shift
        Largest shift of a slice that its crop has room for, as a share in [0, 1] of half its side. Smaller crops lie
        where they please.
    uptake_share
        How often, as a share in [0, 1], the uptake is another: it varies from place to place, and there are lesions.
    uptake_sd, lesions
        By how much it varies then (standard deviation of its logarithm over 10 and over 20 mm, in [0, 1]) and how many
        lesions there are, both at most.
    """

    flip: float = 0.5
    axial_flip: float = 0.5
    rotation: float = 15.0
    scale: float = 0.1
    gamma_share: float = 0.4
    gamma: tuple[float, float] = (0.75, 1.35)
    intensity: tuple[float, float] = (0.5, 1.5)
    anatomy_intensity: tuple[float, float] = (0.9, 1.1)
    shift: float = 0.1
    uptake_share: float = 0.0
    uptake_sd: float = 0.25
    lesions: int = 6

    def __post_init__(self) -> None:
        limits = {
            "flip": 1, "axial_flip": 1, "gamma_share": 1, "rotation": 180, "scale": 0.5, "shift": 1, "uptake_share": 1,
            "uptake_sd": 1,
        }  # fmt: skip
        for name, highest in limits.items():
            check_real(f"augmentation: {name}", getattr(self, name), 0.0, highest)
        check_count("augmentation: lesions", self.lesions, 0, 1000)
        for name in ("gamma", "intensity", "anatomy_intensity"):
            value = tuple(getattr(self, name))
            if len(value) != 2 or not 0 < value[0] <= value[1] < math.inf:
                raise ValueError(f"augmentation: {name} must be two positive numbers, the lower first, found {value!r}")
            object.__setattr__(self, name, value)

    def slices(
        self, rng: np.random.Generator, images: Tensor, plane: int, crop: int, voxel_size: tuple[float, float, float]
    ) -> Tensor:
        """Change one slice ``[1 or 2, h, w]``, emission first, to ``[1 or 2, crop, crop]``.

        Or a stack of transverse ones ``[1 or 2, n, h, w]``, all alike. Emission and anatomical image are moved alike;
        the change of contrast is the emission image's only. ``plane`` is 0 for transverse, 1 for coronal and 2 for
        sagittal slices.
        """
        if rng.random() < self.flip:
            # left and right are alike: x is the last axis, but for sagittal slices, where front and back change places
            images = images.flip(-1)
        if plane > 0 and rng.random() < self.axial_flip:
            images = images.flip(-2)
        return self._brightened(rng, self._varied(rng, self._moved(rng, images, crop), voxel_size))

    def margin(self, side: int) -> int:
        """Voxels around a cube that rotation and scaling may bring into it."""
        angle = math.radians(min(self.rotation, 90.0))
        reach = math.cos(angle) + math.sqrt(2) * math.sin(angle) + math.sqrt(3) * (1 - math.cos(angle))
        return math.ceil((min(reach, math.sqrt(3)) * (1 + self.scale) - 1) * side / 2)

    def cubes(
        self, rng: np.random.Generator, images: Tensor, side: int, voxel_size: tuple[float, float, float]
    ) -> Tensor:
        """Change one cube ``[1 or 2, s, s, s]``, ``s = side + 2 * margin(side)``, to ``[1 or 2, side, side, side]``."""
        for axis, chance in ((-1, self.flip), (-3, self.axial_flip)):
            if rng.random() < chance:
                images = images.flip(axis)
        if self.rotation or self.scale:
            axis = rng.standard_normal(3)
            x, y, z = axis / np.linalg.norm(axis)
            angle = math.radians(rng.uniform(-self.rotation, self.rotation))
            cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
            turn = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
            turn *= rng.uniform(1 - self.scale, 1 + self.scale) * side / images.shape[-1]
            matrix = torch.from_numpy(np.hstack((turn, np.zeros((3, 1))))).float()
            grid = torch.nn.functional.affine_grid(matrix[None], [1, 1, side, side, side], align_corners=False)
            images = torch.nn.functional.grid_sample(images[None], grid, align_corners=False)[0]
        return self._brightened(rng, self._varied(rng, images, voxel_size))

    def _brightened(self, rng: np.random.Generator, images: Tensor) -> Tensor:
        """Change contrast and intensity."""
        emission = images[:1]
        if rng.random() < self.gamma_share:
            emission = emission.pow(rng.uniform(*self.gamma))
        emission = emission * rng.uniform(*self.intensity)
        if len(images) == 1:
            return emission
        return torch.cat([emission, images[1:] * rng.uniform(*self.anatomy_intensity)])

    def _varied(self, rng: np.random.Generator, images: Tensor, voxel_size: tuple[float, float, float]) -> Tensor:
        """Change the uptake of the emission image."""
        if not self.uptake_share or rng.random() >= self.uptake_share:
            return images
        stack = images[0].reshape(-1, *images.shape[-2:]).numpy()
        changed = varied(stack, voxel_size, rng, self.lesions, self.uptake_sd)
        return torch.cat([torch.from_numpy(changed).reshape(images[:1].shape), images[1:]])

    def _moved(self, rng: np.random.Generator, images: Tensor, crop: int) -> Tensor:
        """Rotate, scale and crop; zero outside."""
        angle = math.radians(rng.uniform(-self.rotation, self.rotation))
        scale = rng.uniform(1 - self.scale, 1 + self.scale)
        height, width = images.shape[-2:]
        reach_x, reach_y = (max(self.shift, 1 - crop / side) for side in (width, height))
        centre = [rng.uniform(-reach_x, reach_x), rng.uniform(-reach_y, reach_y)]
        cos, sin = math.cos(angle) * crop * scale, math.sin(angle) * crop * scale
        matrix = torch.tensor([[cos / width, -sin / width, centre[0]], [sin / height, cos / height, centre[1]]])
        grid = torch.nn.functional.affine_grid(matrix[None], [1, 1, crop, crop], align_corners=False)
        flat = images.flatten(0, -3)
        return torch.nn.functional.grid_sample(flat[None], grid, align_corners=False)[0].unflatten(0, images.shape[:-2])
