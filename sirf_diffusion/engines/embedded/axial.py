"""Planes that contribute to a segment's sinograms; segments of equal tilt are grouped and share copies of the image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...geometry.images import ImageGeometry
from ...geometry.projdata import ProjDataGeometry, Segment
from .lor_geometry import InPlaneGrid, ViewWeights

# Columns per product: more do not fit the caches of a CPU core, fewer waste its vector units.
MAX_COLUMNS = 32


@dataclass(frozen=True)
class Member:
    """A segment of a group: where its sinograms start and how steep its rays are in each tangential position."""

    first_sinogram: int
    tangent: Tensor


@dataclass(frozen=True)
class SegmentGroup:
    """Segments whose sinograms lie in the same planes and that tilt equally, to either side.

    An axial bin covers ``width`` planes, so that a ray's plane is looked up in an image averaged over ``width``
    neighbours; averaged plane ``a`` covers planes ``a .. a + width - 1``. The bin at axial position ``p`` is centred
    on averaged plane ``first_plane + fraction + p * width``; its rays stay within ``shifts`` of ``first_plane + p *
    width``. A window is that run of averaged planes, for one shift and all axial positions.
    """

    key: int
    width: int
    first_plane: int
    fraction: float
    spacing: float
    num_positions: int
    shifts: tuple[int, int]
    num_planes: int
    members: tuple[Member, ...]

    @property
    def num_shifts(self) -> int:
        return self.shifts[1] - self.shifts[0] + 1

    @property
    def _range(self) -> tuple[int, int]:
        """First and last averaged plane that is needed."""
        first, last = (self.first_plane + shift for shift in self.shifts)
        return first, last + self.width * (self.num_positions - 1)

    def climb(self, member: Member, device: torch.device) -> Tensor | None:
        """Planes per mm along the ray, per bin; ``None`` for direct segments."""
        return (member.tangent / self.spacing).to(device) if bool((member.tangent != 0).any()) else None

    def assign_planes(
        self, member: Member, found: ViewWeights, half_chord: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Bin, shift (from 0), weight and pixel of the one or two planes of each weight; bins stay sorted."""
        if self.num_shifts == 1:
            return found.bin, torch.zeros_like(found.bin), found.weight, found.pixel
        tangent = member.tangent.to(found.t.device)[found.bin]
        position = self.fraction + found.t * tangent / self.spacing
        if self.climb(member, found.t.device) is not None:
            # Within a pixel the ray climbs by a fraction of a plane: only near a border does it meet two of them.
            climb = (2 * half_chord * tangent.abs() / self.spacing).clamp(1e-6, 1.0)
        else:
            climb = torch.ones_like(position)
        lower = position.floor()
        upper_part = ((position - lower - 0.5) / climb + 0.5).clamp(0, 1)
        length = found.weight * (1 + tangent.square()).sqrt()
        weight = torch.stack((length * (1 - upper_part), length * upper_part), 1).flatten()
        entry = torch.nonzero(weight > 0).flatten()
        source = entry // 2
        shift = lower.long()[source] + entry % 2 - self.shifts[0]
        return found.bin[source], shift, weight[entry], found.pixel[source]

    def average(self, stack: Tensor) -> Tensor:
        """Mean over ``width`` planes, zeros outside the image, of the planes that are needed."""
        low, high = self._range
        if (self.width, low, high) == (1, 0, self.num_planes - 1):
            return stack
        padded = functional.pad(stack, (0, 0, -low, high + self.width - self.num_planes))
        size = high - low + 1
        return padded if self.width == 1 else torch.stack([padded[:, i : i + size] for i in range(self.width)]).mean(0)

    def average_adjoint(self, planes: Tensor) -> Tensor:
        low, high = self._range
        if self.width > 1:
            shifted = [functional.pad(planes, (0, 0, i, self.width - 1 - i)) for i in range(self.width)]
            planes = torch.stack(shifted).mean(0)
        return functional.pad(planes, (0, 0, low, self.num_planes - high - self.width))

    def chunks(self, columns_per_position: int) -> list[range]:
        step = max(1, MAX_COLUMNS // columns_per_position)
        return [range(i, min(i + step, self.num_positions)) for i in range(0, self.num_positions, step)]

    def _windows(self, planes: Tensor, axial: range) -> list[Tensor]:
        starts = [shift + self.width * axial.start for shift in range(self.num_shifts)]
        return [planes[:, s : s + self.width * (len(axial) - 1) + 1 : self.width] for s in starts]

    def expand(self, planes: Tensor, axial: range) -> Tensor:
        """Windows ``[shift * pixel, axial * column]`` of planes ``[pixel, plane, column]``."""
        if self.num_shifts == 1:
            return self._windows(planes, axial)[0].flatten(1).contiguous()
        out = planes.new_empty((self.num_shifts, planes.shape[0], len(axial), planes.shape[2]))
        for target, window in zip(out, self._windows(planes, axial), strict=True):
            target.copy_(window)
        return out.view(-1, len(axial) * planes.shape[2])

    def fold(self, windows: Tensor, planes: Tensor, axial: range) -> None:
        """Adjoint of `expand`, added to ``planes``."""
        windows = windows.view(self.num_shifts, planes.shape[0], len(axial), planes.shape[2])
        for source, window in zip(windows, self._windows(planes, axial), strict=True):
            window += source


def group_segments(geometry: ImageGeometry, projdata: ProjDataGeometry, grid: InPlaneGrid) -> list[SegmentGroup]:
    groups: dict[tuple, list[Member]] = {}
    for segment, rows in zip(projdata.segments, projdata.segment_slices(), strict=True):
        axial = _axial_position(geometry, projdata, segment)
        key = (*axial, abs(segment.average_ring_difference), segment.num_axial_positions)
        groups.setdefault(key, []).append(Member(rows.start, projdata.tan_theta(segment)))
    seen = projdata.tangential_positions().abs() <= grid.radius + 2 * max(grid.pixel_size)
    found = []
    for number, ((width, first_plane, fraction, _, num_positions), members) in enumerate(groups.items()):
        steepest = float(members[0].tangent[seen].abs().max()) if bool(seen.any()) else 0.0
        climb = (grid.radius + 2 * max(grid.pixel_size)) * steepest / geometry.voxel_size[0]
        shifts = math.floor(fraction - climb), math.floor(fraction + climb) + (1 if climb or fraction else 0)
        found.append(
            SegmentGroup(number, width, first_plane, fraction, geometry.voxel_size[0], num_positions, shifts,
                   geometry.shape[0], tuple(members))
        )  # fmt: skip
    return found


def _axial_position(geometry: ImageGeometry, projdata: ProjDataGeometry, segment: Segment) -> tuple[int, int, float]:
    """Number of planes per axial bin, and the averaged plane on which the first bin is centred."""
    dz, sampling = geometry.voxel_size[0], projdata.axial_sampling(segment)
    width = round(sampling / dz)
    if width < 1 or abs(sampling / dz - width) > 0.01:
        raise ValueError(
            f"image planes are {dz} mm apart, but the sinograms of segment {segment.num} {sampling} mm: the distance "
            "of sinograms must be a multiple of that of planes. Resample the image"
        )
    centre = (geometry.shape[0] - 1) / 2 - geometry.origin[0] / dz - (segment.num_axial_positions - 1) / 2 * width
    first = centre - (width - 1) / 2
    # A thousandth of a plane is rounding of voxel sizes in headers.
    nearest_half = round(2 * first) / 2
    first = nearest_half if abs(first - nearest_half) < 1e-3 else first
    plane = math.floor(first)
    return width, plane, first - plane
