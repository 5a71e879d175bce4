"""Weights with which the pixels of a plane contribute to the bins of one view.

A bin is not a line but a strip as wide as the spacing of the tangential positions. Its weight for a pixel is the mean,
over the strip, of the length of the lines inside the pixel: a pixel's shadow on the tangential axis is a trapezoid, so
the mean is an integral in closed form and no ray has to be sampled. STIR's ray tracing with many tangential rays
converges to the same numbers. The strips form of the model goes back to "distance-driven" and "separable footprint"
projectors (De Man and Basu 2004, doi:10.1088/0031-9155/49/11/024).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ...geometry.images import ImageGeometry

_RAYS_AT_THE_RIM = 10
_NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class InPlaneGrid:
    """The pixels of a plane that rays can meet, symmetric about the scanner's axis.

    As in STIR, rays end on a circle about the axis that just stays inside the image, and the pixels in which they end
    count in full. All coordinates are in mm, float64, one entry per pixel of the ``(2 hy + 1) x (2 hx + 1)`` grid that
    can be met; ``pixel`` holds their flat indices. Raises ValueError if the image is shifted in plane.

    Parameters
    ----------
    geometry
        The image grid.
    """

    geometry: ImageGeometry
    radius: float = field(init=False)
    half_size: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        if max(abs(v) for v in self.geometry.origin[1:]) > 0.05:
            raise ValueError(
                f"image origin {self.geometry.origin} (z, y, x) mm is shifted in plane; rays are traced for images "
                "centred on the scanner's axis only. Resample the image to origin y = x = 0"
            )
        (_, ny, nx), (_, dy, dx) = self.geometry.shape, self.geometry.voxel_size
        my, mx = (ny - 1) // 2, (nx - 1) // 2
        radius = min(mx * dx, my * dy)
        object.__setattr__(self, "radius", radius)
        object.__setattr__(self, "half_size", (min(my, round(radius / dy)), min(mx, round(radius / dx))))

    @property
    def pixel_size(self) -> tuple[float, float]:
        """``(dy, dx)`` in mm."""
        return self.geometry.voxel_size[1:]

    @property
    def shape(self) -> tuple[int, int]:
        """Size of the symmetric grid."""
        return 2 * self.half_size[0] + 1, 2 * self.half_size[1] + 1

    def crop(self) -> tuple[slice, slice]:
        """Where the symmetric grid lies in the image."""
        (_, ny, nx), (hy, hx) = self.geometry.shape, self.half_size
        return slice(ny // 2 - hy, ny // 2 + hy + 1), slice(nx // 2 - hx, nx // 2 + hx + 1)

    def pixels(self, device: torch.device) -> tuple[Pixels, Pixels]:
        """The pixels inside the circle, and those on its rim, which it cuts."""
        (hy, hx), (dy, dx) = self.half_size, self.pixel_size
        y = torch.arange(-hy, hy + 1, dtype=torch.float64, device=device) * dy
        x = torch.arange(-hx, hx + 1, dtype=torch.float64, device=device) * dx
        y, x = (v.flatten() for v in torch.meshgrid(y, x, indexing="ij"))
        nearest = torch.hypot((x.abs() - dx / 2).clamp_min(0), (y.abs() - dy / 2).clamp_min(0))
        farthest = torch.hypot(x.abs() + dx / 2, y.abs() + dy / 2)
        inside, touched = farthest <= self.radius, nearest <= self.radius
        which = (torch.nonzero(mask).flatten() for mask in (inside, touched & ~inside))
        inner, rim = (Pixels(index, x[index], y[index]) for index in which)
        return inner, rim


class Pixels(NamedTuple):
    """Flat indices and coordinates of pixels."""

    flat: Tensor
    x: Tensor
    y: Tensor


def strip_edges(s: Tensor) -> tuple[Tensor, Tensor]:
    """Edges of the strips around tangential positions ``s``, each as wide as the mean distance to its neighbours."""
    if s.numel() == 1:
        raise ValueError("projection data with a single tangential position have no bin width")
    extended = torch.cat((2 * s[:1] - s[1:2], s, 2 * s[-1:] - s[-2:-1]))
    half = (extended[2:] - extended[:-2]) / 4
    return s - half, s + half


class ViewWeights(NamedTuple):
    """Non-zero in-plane weights of one view: parallel arrays of pixel, bin, weight (in pixel widths) and t (mm)."""

    pixel: Tensor
    bin: Tensor
    weight: Tensor
    t: Tensor

    @classmethod
    def join(cls, *parts: ViewWeights) -> ViewWeights:
        """All weights of several sets of pixels, ordered by bin."""
        joined = [torch.cat(arrays) for arrays in zip(*parts, strict=True)]
        order = torch.sort(joined[1].to(torch.int32), stable=True).indices
        return cls(*(array[order] for array in joined))


def half_chord(grid: InPlaneGrid, phi: float) -> float:
    """Half of the longest way through a pixel at angle ``phi``, in mm."""
    dy, dx = grid.pixel_size
    return dx * dy / (2 * max(abs(dx * math.cos(phi)), abs(dy * math.sin(phi))))


def inner_weights(grid: InPlaneGrid, pixels: Pixels, phi: float, edges: tuple[Tensor, Tensor]) -> ViewWeights:
    """Weights of pixels inside the circle for strips with the given edges (mm) at angle ``phi`` (radians)."""
    (dy, dx), (cos, sin) = grid.pixel_size, _direction(phi)
    near = _Neighbourhood.of(grid, pixels, phi, edges)
    p, q = abs(dx * cos) / 2, abs(dy * sin) / 2
    outer, inner = p + q, abs(p - q)

    def shadow(u: Tensor) -> Tensor:  # integral of the trapezoid up to u
        ramps = (u + outer).relu_().square_() - (u + inner).relu_().square_()
        ramps += (u - outer).relu_().square_() - (u - inner).relu_().square_()
        return ramps.mul_(half_chord(grid, phi) / (outer - inner))

    weight = (shadow(near.start + near.width) - shadow(near.start)) / (near.width * dx)
    return near.weights(pixels, weight, near.t[:, None].expand_as(weight))


def rim_weights(
    grid: InPlaneGrid,
    pixels: Pixels,
    phi: float,
    edges: tuple[Tensor, Tensor],
    climb: Tensor | None = None,
    fraction: float = 0.0,
) -> ViewWeights:
    """Weights of pixels on the rim, where a ray counts up to the border of the *voxel* in which it meets the circle.

    Ten rays per strip, as nothing is smooth here. With ``climb`` (planes per mm, one per bin) rays are oblique, at
    height ``fraction + climb * t`` in planes, and leave the voxel also through the plane above or below.
    """
    (dy, dx), (cos, sin) = grid.pixel_size, _direction(phi)
    near = _Neighbourhood.of(grid, pixels, phi, edges)
    ray = (torch.arange(_RAYS_AT_THE_RIM, dtype=torch.float64, device=near.t.device) + 0.5) / _RAYS_AT_THE_RIM
    u = near.start[..., None] + near.width[..., None] * ray
    t = near.t[:, None, None]
    along_x, along_y = u * cos / sin, -u * sin / cos
    half_x, half_y = abs(dx / (2 * sin)), abs(dy / (2 * cos))
    enter = t + torch.maximum(along_x - half_x, along_y - half_y)
    leave = t + torch.minimum(along_x + half_x, along_y + half_y)
    reach_squared = grid.radius**2 - (u + near.centre[:, None, None]).square()
    reach = reach_squared.clamp_min(0).sqrt()
    met = (reach_squared >= 0) & (enter <= reach) & (leave >= -reach)
    if climb is not None:
        slope = climb[near.bins][..., None]
        for sign in (-1, 1):
            height = fraction + slope * sign * reach
            # Outward bound, how far to the border of the plane in which the ray meets the circle?
            upwards = slope * sign > 0
            border = height.add(0.5).floor() + torch.where(upwards, 0.5, -0.5)
            beyond = ((border - height) / (slope * sign)).nan_to_num(math.inf, math.inf, math.inf)
            enter, leave = (
                (torch.maximum(enter, -reach - beyond), leave)
                if sign < 0
                else (enter, torch.minimum(leave, reach + beyond))
            )
    chord = (leave - enter).clamp_min(0) * met
    total = chord.sum(-1)
    middle = (chord * (enter + leave) / 2).sum(-1) / total.clamp_min(1e-12)
    return near.weights(pixels, total / (_RAYS_AT_THE_RIM * dx), middle)


class _Neighbourhood(NamedTuple):
    """Bins ``[pixel, candidate]`` that pixels may reach, where their strips start seen from the pixels' centres."""

    bins: Tensor
    exists: Tensor
    start: Tensor
    width: Tensor
    centre: Tensor
    t: Tensor

    @classmethod
    def of(cls, grid: InPlaneGrid, pixels: Pixels, phi: float, edges: tuple[Tensor, Tensor]) -> _Neighbourhood:
        (left, right), (dy, dx), (cos, sin) = edges, grid.pixel_size, _direction(phi)
        reach = (abs(dx * cos) + abs(dy * sin)) / 2
        centre, t = pixels.x * cos + pixels.y * sin, pixels.y * cos - pixels.x * sin
        first = torch.searchsorted(right, centre - reach, right=True)
        past = torch.searchsorted(left, centre + reach)
        most = int((past - first).max()) if first.numel() else 0
        bins = first[:, None] + torch.arange(most, device=left.device)
        exists = bins < past[:, None]
        bins = bins.clamp_max(left.numel() - 1)
        return cls(bins, exists, left[bins] - centre[:, None], (right - left)[bins], centre, t)

    def weights(self, pixels: Pixels, weight: Tensor, t: Tensor) -> ViewWeights:
        keep = self.exists & (weight > _NEGLIGIBLE)
        rows = torch.nonzero(keep)[:, 0]
        return ViewWeights(pixels.flat[rows], self.bins[keep], weight[keep], t[keep])


def _direction(phi: float) -> tuple[float, float]:
    """Cosine and sine; rays along the grid are turned by a hair, which spares the formulas a division by zero."""
    cos, sin = (math.copysign(max(abs(v), 1e-5), v) for v in (math.cos(phi), math.sin(phi)))
    return cos, sin
