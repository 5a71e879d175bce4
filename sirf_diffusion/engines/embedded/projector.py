"""The geometric projector G of STIR's cylindrical scanners, as sparse matrices shared by all planes.

In plane, the weight of a pixel in a bin (:mod:`lor_geometry`) depends neither on the plane nor on the image, so it is
computed once and kept. Planes and images of a batch become columns of one sparse product, which is what makes a batch
cheap. An oblique ray climbs ``t tan(theta)`` along its way: each weight then belongs to a plane a fixed number of
planes away from the sinogram's centre, and the same product runs over shifted copies of the image. The adjoint is the
product with the transposed matrix, exact but for rounding.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...geometry.images import ImageGeometry
from ...geometry.projdata import ProjDataGeometry
from .axial import MAX_COLUMNS, SegmentGroup, group_segments
from .lor_geometry import InPlaneGrid, ViewWeights, half_chord, inner_weights, rim_weights, strip_edges
from .sparse import SparseMatrix, map_threaded
from .subsets import as_slice, basic_views, divide_views

_logger = logging.getLogger(__name__)

# A grid may reach beyond the detectors by this factor: vendors' own grids do so in their empty corners.
_BEYOND_THE_RING = 1.1
_BYTES_PER_WEIGHT = 8


class Projector:
    r"""Forward projection :math:`(G x)_i = \sum_j g_{ij} x_j` and its adjoint, in STIR's units.

    ``g_ij`` is the mean length of bin ``i``'s lines in voxel ``j``, divided by the voxel size in x, as STIR's ray
    tracing has it: a projection is the line integral in mm, divided by the voxel size in x. Rays are traced inside the
    largest circle about the axis that the image contains. Axially a bin is as wide as the distance between its
    segment's planes. Raises ValueError if the image lies outside the scanner, is shifted in plane, or its planes do not
    fit the sinograms.

    Parameters
    ----------
    geometry, projdata
        Image grid, in plane centred on the axis, along it with a spacing of planes that divides that of the sinograms;
        layout of the projection data.
    device
        Where to compute and where results live.
    max_bytes
        Bound on the memory for cached weights and temporary copies of the image, at least 64 MiB. Beyond it
        projections run in chunks, and weights that found no room are computed anew in each call.
    related_views
        How many views STIR's projector relates by symmetry at most, see `basic_views`: they share a subset.

    Examples
    --------
    >>> from sirf_diffusion.geometry.projdata import ProjDataGeometry
    >>> projdata = ProjDataGeometry.from_scanner("ECAT 953", span=1, max_ring_difference=0)
    >>> projector = Projector(ImageGeometry((31, 65, 65), (3.375, 4.0, 4.0)), projdata)
    >>> projector.forward(torch.ones(31, 65, 65), views=[0, 1]).shape == (*projdata.shape[:1], 2, *projdata.shape[2:])
    True
    """

    def __init__(
        self,
        geometry: ImageGeometry,
        projdata: ProjDataGeometry,
        device: str | torch.device = "cpu",
        max_bytes: int = 2 << 30,
        related_views: int = 4,
    ) -> None:
        if max_bytes < 64 << 20:
            raise ValueError(f"max_bytes must be at least 64 MiB, found {max_bytes}")
        self.geometry, self.projdata, self.device = geometry, projdata, torch.device(device)
        self.max_bytes = int(max_bytes)
        self._grid = InPlaneGrid(geometry)
        self._check_position()
        self._edges = strip_edges(projdata.tangential_positions().to(self.device))
        self._narrowest = float((self._edges[1] - self._edges[0]).min())  # once: a GPU would be waited for
        self._angles = projdata.view_angles().tolist()
        self._groups = group_segments(geometry, projdata, self._grid)
        self.basic_views = basic_views(geometry, projdata, related_views)
        self._subsets: dict[int, list[tuple[int, ...]]] = {}
        self._cache: dict[tuple[int, tuple[int, ...], bool], SparseMatrix] = {}
        self._cached_bytes = 0
        self._warned = False
        # Views 90 degrees apart see the same weights on a rotated image, where the grid is square.
        square = len(set(self._grid.half_size)) == len(set(self._grid.pixel_size)) == 1
        self._quarter_turn = projdata.num_views // 2 if square and projdata.num_views % 2 == 0 else None

    def forward(self, x: Tensor, views: Sequence[int] | None = None) -> Tensor:
        """Project images ``[..., z, y, x]`` to ``[..., sinograms, len(views), tangential]``, differentiable.

        ``views`` are numbers of views, each at most once; default all.
        """
        views = self._check_views(views)
        x = self._check(x, self.geometry.shape, "image")
        return _Product.apply(x, self, views, False) if x.requires_grad else self._forward(x, views)

    def adjoint(self, p: Tensor, views: Sequence[int] | None = None) -> Tensor:
        """Back-project ``[..., sinograms, len(views), tangential]`` to images ``[..., z, y, x]``; see `forward`."""
        views = self._check_views(views)
        sinograms, _, bins = self.projdata.shape
        p = self._check(p, (sinograms, len(views), bins), "projection data")
        return _Product.apply(p, self, views, True) if p.requires_grad else self._adjoint(p, views)

    def subset_views(self, subset: int | None, num_subsets: int) -> tuple[int, ...] | None:
        """Views of a subset, from 0 (see `divide_views`); ``None``, all, for no subset or the only one."""
        if num_subsets not in self._subsets:
            self._subsets[num_subsets] = divide_views(self.basic_views, num_subsets)
        if subset is not None and not 0 <= subset < num_subsets:
            raise ValueError(f"subset must be in 0..{num_subsets - 1}, found {subset}")
        return None if subset is None or num_subsets == 1 else self._subsets[num_subsets][subset]

    def adjointness_test(self, views: Sequence[int] | None = None, seed: int = 0) -> float:
        """Relative difference of ``<G x, p>`` and ``<x, G^T p>`` for random non-negative ``x`` and ``p``."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(self.geometry.shape, generator=generator).to(self.device)
        projected = self.forward(x, views)
        p = torch.rand(projected.shape, generator=generator).to(self.device)
        left = (projected.double() * p.double()).sum().item()
        right = (x.double() * self.adjoint(p, views).double()).sum().item()
        return abs(left - right) / max(abs(left), abs(right), 1e-30)

    def _check_position(self) -> None:
        ring = self.projdata.scanner.effective_ring_radius
        if self._grid.radius > _BEYOND_THE_RING * ring:
            raise ValueError(
                f"image outside the scanner: its rays reach {self._grid.radius:.1f} mm from the axis, the detector "
                f"ring of '{self.projdata.scanner.name}' has a radius of {ring:.1f} mm. Use a smaller grid"
            )
        (nz, _, _), (dz, _, _) = self.geometry.shape, self.geometry.voxel_size
        reach = max(float(self.projdata.axial_positions(s)[-1]) for s in self.projdata.segments)
        if abs(self.geometry.origin[0]) - nz * dz / 2 > reach + self.projdata.scanner.ring_spacing / 2:
            raise ValueError(
                f"image outside the scanner: its axial centre is {self.geometry.origin[0]:.1f} mm from the scanner's, "
                f"it is {nz * dz:.1f} mm long and the sinograms end {reach:.1f} mm from the centre"
            )

    def _check(self, tensor: Tensor, shape: tuple[int, ...], what: str) -> Tensor:
        if tuple(tensor.shape[-3:]) != shape:
            raise ValueError(f"{what} has shape {tuple(tensor.shape)}, expected [..., {', '.join(map(str, shape))}]")
        return tensor.to(device=self.device, dtype=torch.float32)

    def _check_views(self, views: Sequence[int] | None) -> tuple[int, ...]:
        if views is None:
            return tuple(range(self.projdata.num_views))
        views = tuple(int(v) for v in views)
        if not views or len(set(views)) != len(views) or min(views) < 0 or max(views) >= self.projdata.num_views:
            raise ValueError(f"views must be different numbers in 0..{self.projdata.num_views - 1}, found {views}")
        return views

    # The two products. Columns are [axial position, rotation, image].

    def _forward(self, x: Tensor, views: tuple[int, ...]) -> Tensor:
        images = x.detach().reshape(-1, *self.geometry.shape)
        sinograms, _, bins = self.projdata.shape
        out = torch.empty((len(images), sinograms, len(views), bins), device=self.device)
        for sample, job in self._work(len(images), views):
            stack = self._to_columns(images[sample], job.rotations)
            for group in self._groups:
                planes = group.average(stack)
                for axial in group.chunks(stack.shape[2]):
                    windows = group.expand(planes, axial)
                    for block in self._blocks(job, group):
                        product = self._matrix(group, block.base, transposed=False).times(windows)
                        for rows, r, positions, part in self._parts(group, block, axial, product):
                            out[sample, rows, positions] = part[..., r, :].permute(3, 2, 0, 1)
        return out.reshape(*x.shape[:-3], *out.shape[1:])

    def _adjoint(self, p: Tensor, views: tuple[int, ...]) -> Tensor:
        data = p.detach().reshape(-1, *p.shape[-3:])
        out = torch.zeros((len(data), *self.geometry.shape), device=self.device)
        num_bins = self.projdata.num_tangential_positions
        for sample, job in self._work(len(data), views):
            num_columns = len(job.rotations) * len(data[sample])
            stack = torch.zeros((math.prod(self._grid.shape), self.geometry.shape[0], num_columns), device=self.device)
            for group in self._groups:
                planes = torch.zeros_like(group.average(stack))
                for axial in group.chunks(num_columns):
                    for block in self._blocks(job, group):
                        num_rows = len(group.members) * len(block.base) * num_bins
                        columns = torch.empty((num_rows, len(axial) * num_columns), device=self.device)
                        for rows, r, positions, part in self._parts(group, block, axial, columns):
                            part[..., r, :] = data[sample, rows, positions].permute(2, 3, 1, 0)
                        group.fold(self._matrix(group, block.base, transposed=True).times(columns), planes, axial)
                stack += group.average_adjoint(planes)
            out[sample] += self._from_columns(stack, job.rotations)
        return out.reshape(*p.shape[:-3], *self.geometry.shape)

    def _parts(
        self, group: SegmentGroup, block: _Job, axial: range, columns: Tensor
    ) -> Iterator[tuple[slice, int, Tensor | slice, Tensor]]:
        """Sinograms, rotation, views and values ``[view, bin, axial, rotation, image]`` of each part of a product."""
        shape = len(block.base), self.projdata.num_tangential_positions, len(axial), len(block.rotations), -1
        for member, part in zip(group.members, columns.view(len(group.members), *shape), strict=True):
            rows = slice(member.first_sinogram + axial.start, member.first_sinogram + axial.stop)
            for r, positions in enumerate(block.positions):
                yield rows, r, positions, part

    def _to_columns(self, images: Tensor, rotations: tuple[int, ...]) -> Tensor:
        """Images ``[s, z, y, x]`` as ``[pixel, z, rotation * s]``."""
        rows, columns = self._grid.crop()
        images = images[..., rows, columns]
        turned = [images.flip(-1).transpose(-1, -2) if r else images for r in rotations]
        return torch.stack(turned).flatten(-2).permute(3, 2, 0, 1).flatten(2).contiguous()

    def _from_columns(self, stack: Tensor, rotations: tuple[int, ...]) -> Tensor:
        turned = stack.view(*self._grid.shape, stack.shape[1], len(rotations), -1).permute(3, 4, 2, 0, 1)
        images = sum(t.transpose(-1, -2).flip(-1) if r else t for r, t in zip(rotations, turned, strict=True))
        rows, columns = self._grid.crop()
        (_, ny, nx) = self.geometry.shape
        return functional.pad(images, (columns.start, nx - columns.stop, rows.start, ny - rows.stop))

    def _work(self, num_images: int, views: tuple[int, ...]) -> list[tuple[slice, _Job]]:
        """Samples and views to treat together: few enough samples that their shifted copies stay within bounds."""
        depth = max(max(group.num_shifts for group in self._groups), self.geometry.shape[0])
        per_sample = 2 * 4 * math.prod(self._grid.shape) * depth
        step = max(1, min(MAX_COLUMNS, self.max_bytes // (8 * per_sample)))
        slices = [slice(i, min(i + step, num_images)) for i in range(0, num_images, step)]
        return [(s, job) for s in slices for job in _jobs(views, self._quarter_turn)]

    def _blocks(self, job: _Job, group: SegmentGroup) -> list[_Job]:
        """Parts of a job whose weights take a small part of the memory."""
        dy, dx = self._grid.pixel_size
        shadow = 1 + 1.3 * max(dx, dy) / self._narrowest
        per_view = math.prod(self._grid.shape) * shadow * _BYTES_PER_WEIGHT * len(group.members)
        step = max(1, int(self.max_bytes / 8 / per_view))
        return [job.part(slice(i, i + step)) for i in range(0, len(job.base), step)]

    def _matrix(self, group: SegmentGroup, base: tuple[int, ...], transposed: bool) -> SparseMatrix:
        key = (group.key, base, transposed)
        if key in self._cache:
            return self._cache[key]
        with torch.inference_mode(False), torch.no_grad():
            # One from the other, always, so that sums have the same order whichever was asked for first.
            matrix = self._build(group, base) if transposed else self._matrix(group, base, True).transposed()
        if self._cached_bytes + matrix.num_bytes <= 3 * self.max_bytes // 4:
            self._cache[key] = matrix
            self._cached_bytes += matrix.num_bytes
        elif not self._warned:
            self._warned = True
            _logger.warning(
                "projector weights exceed their part of max_bytes = %.0f MiB: some are computed anew in each "
                "projection, which is slow. Give Projector more memory if there is",
                self.max_bytes / 2**20,
            )
        return matrix

    def _build(self, group: SegmentGroup, base: tuple[int, ...]) -> SparseMatrix:
        """The transposed matrix."""
        num_bins, num_pixels = self.projdata.num_tangential_positions, math.prod(self._grid.shape)
        inner, rim = self._grid.pixels(self.device)

        def weights_of(i: int) -> list[tuple[Tensor, Tensor, Tensor]]:
            phi, found = self._angles[base[i]], []
            shared = inner_weights(self._grid, inner, phi, self._edges)
            for m, member in enumerate(group.members):
                climb = group.climb(member, self.device)
                ends = rim_weights(self._grid, rim, phi, self._edges, climb, group.fraction)
                joined = ViewWeights.join(shared, ends)
                bins, shift, weight, pixel = group.assign_planes(member, joined, half_chord(self._grid, phi))
                row = bins.to(torch.int32) + (m * len(base) + i) * num_bins
                found.append((row, (shift * num_pixels + pixel).to(torch.int32), weight.float()))
            return found

        parts = zip(*map_threaded(weights_of, len(base), self.device), strict=True)
        rows, columns, weights = (torch.cat(v) for v in zip(*itertools.chain(*parts), strict=True))
        shape = (len(group.members) * len(base) * num_bins, group.num_shifts * num_pixels)
        return SparseMatrix.from_sorted(rows, columns, weights, shape).transposed()


class _Product(torch.autograd.Function):
    """Either product with the other as its derivative."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, projector: Projector, views: tuple[int, ...], transposed: bool) -> Tensor:
        ctx.projector, ctx.views, ctx.transposed = projector, views, transposed
        return projector._adjoint(tensor, views) if transposed else projector._forward(tensor, views)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        product = ctx.projector.forward if ctx.transposed else ctx.projector.adjoint
        return product(gradient, ctx.views), None, None, None


@dataclass(frozen=True)
class _Job:
    """Views computed from the weights of ``base``, for each rotation (0 or 1 quarter turns), and where they go."""

    base: tuple[int, ...]
    rotations: tuple[int, ...]
    places: tuple[tuple[int, ...], ...]

    @cached_property
    def positions(self) -> tuple[Tensor | slice, ...]:
        return tuple(as_slice(p) for p in self.places)

    def part(self, which: slice) -> _Job:
        return _Job(self.base[which], self.rotations, tuple(p[which] for p in self.places))


@lru_cache(maxsize=256)
def _jobs(views: tuple[int, ...], quarter_turn: int | None) -> list[_Job]:
    """Pair views with the ones a quarter turn further where both are wanted."""
    place = {view: i for i, view in enumerate(views)}
    if quarter_turn is None:
        return [_Job(views, (0,), (tuple(range(len(views))),))]
    first = [v for v in views if v < quarter_turn]
    both = tuple(v for v in first if v + quarter_turn in place)
    only_first = tuple(v for v in first if v + quarter_turn not in place)
    only_second = tuple(v - quarter_turn for v in views if v >= quarter_turn and v - quarter_turn not in place)
    return [
        _Job(base, turns, tuple(tuple(place[v + turn * quarter_turn] for v in base) for turn in turns))
        for turns, base in (((0, 1), both), ((0,), only_first), ((1,), only_second))
        if base
    ]
