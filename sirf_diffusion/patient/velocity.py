"""Diffeomorphisms by their velocities: exponential, logarithm and composition of displacements.

Velocities may be averaged as vectors are, and a mean of velocities is the velocity of a deformation that does not fold:
the log-Euclidean mean (Arsigny et al. 2006, doi:10.1007/11866565_113). Fields are float64 ``[z, y, x, 3]`` in mm, the
components along x, y and z, on the grid of an image of SimpleITK.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .image import simpleitk

Field = NDArray[np.float64]


def as_image(field: Field, like: Any) -> Any:
    """A field as a vector image of SimpleITK."""
    image = simpleitk().GetImageFromArray(np.ascontiguousarray(field), isVector=True)
    image.CopyInformation(like)
    return image


def as_transform(field: Field, like: Any) -> Any:
    """A displacement as a transform of SimpleITK."""
    return simpleitk().DisplacementFieldTransform(as_image(field, like))


def compose(first: Field, second: Field, like: Any) -> Field:
    """The displacement of moving by ``first``, and from there by ``second``."""
    sitk = simpleitk()
    moved = sitk.Resample(as_image(second, like), like, as_transform(first, like), sitk.sitkLinear, 0.0)
    return first + sitk.GetArrayFromImage(moved)


def exponential(velocity: Field, like: Any) -> Field:
    """The displacement after unit time, by scaling and squaring."""
    largest = float(np.linalg.norm(velocity, axis=-1).max())
    halvings = max(0, math.ceil(math.log2(max(largest, 1e-9) / (0.3 * min(like.GetSpacing())))))
    displacement = velocity * 0.5**halvings
    for _ in range(halvings):
        displacement = compose(displacement, displacement, like)
    return displacement


def logarithm(displacement: Field, like: Any) -> Field:
    r"""The velocity whose exponential is this displacement, which must not fold.

    Four fixed-point iterations :math:`v \leftarrow v + (u - (\exp v - id))`, from :math:`v = u`.
    """
    velocity = displacement
    for _ in range(4):
        velocity = velocity + (displacement - exponential(velocity, like))
    return velocity
