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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...images import ImageGeometry
from .geometry import ProjDataGeometry, Segment
from .lor_geometry import InPlaneGrid, ViewWeights, half_chord, inner_weights, rim_weights, strip_edges

_logger = logging.getLogger(__name__)

# Columns per product: more do not fit the caches of a CPU core, fewer waste its vector units.
_COLUMNS = 32
# A grid may reach beyond the detectors by this factor: vendors' own grids do so in their empty corners.
_BEYOND_THE_RING = 1.1
_BYTES_PER_WEIGHT = 8


class Projector:
    r"""Forward projection :math:`(G x)_i = \sum_j g_{ij} x_j` and its adjoint, in STIR's units.

    ``g_ij`` is the mean length of bin ``i``'s lines in voxel ``j``, divided by the voxel size in x, as STIR's ray
    tracing has it: a projection is the line integral in mm, divided by the voxel size in x. Rays are traced inside the
    largest circle about the axis that the image contains. Axially a bin is as wide as the distance between its
    segment's planes.

    Parameters
    ----------
    geometry
        Image grid. In plane it is centred on the axis; along it the planes' spacing divides that of the sinograms.
    projdata
        Layout of the projection data.
    device
        Where to compute and where results live.
    max_bytes
        Bound on the memory for cached weights and temporary copies of the image, at least 64 MiB. Beyond it
        projections run in chunks, and weights that found no room are computed anew in each call.

    Raises
    ------
    ValueError
        If the image lies outside the scanner, is shifted in plane, or its planes do not fit the sinograms.

    Examples
    --------
    >>> from sirf_diffusion.engines.embedded.geometry import ProjDataGeometry
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
    ) -> None:
        if max_bytes < 64 << 20:
            raise ValueError(f"max_bytes must be at least 64 MiB, found {max_bytes}")
        self.geometry, self.projdata, self.device = geometry, projdata, torch.device(device)
        self.max_bytes = int(max_bytes)
        self._grid = InPlaneGrid(geometry)
        self._check_position()
        self._edges = tuple(e.to(self.device) for e in strip_edges(projdata.tangential_positions()))
        self._angles = projdata.view_angles().tolist()
        self._groups = _group_segments(geometry, projdata, self._grid)
        self._cache: dict[tuple, _Sparse] = {}
        self._cached_bytes = 0
        (hy, hx), (dy, dx) = self._grid.half_size, self._grid.pixel_size
        # Views 90 degrees apart see the same weights on a rotated image, where the grid is square.
        self._quarter_turn = projdata.num_views // 2 if hy == hx and dy == dx and projdata.num_views % 2 == 0 else None

    def forward(self, x: Tensor, views: Sequence[int] | None = None) -> Tensor:
        """Project images.

        Parameters
        ----------
        x
            Images ``[..., z, y, x]``, float32.
        views
            View numbers, each at most once; default all.

        Returns
        -------
        Tensor
            ``[..., sinograms, len(views), tangential]``. Differentiable in ``x``.
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
                    windows = None
                    for block in self._blocks(job, group):
                        num_rows = len(group.members) * len(block.base) * num_bins
                        columns = torch.empty((num_rows, len(axial) * num_columns), device=self.device)
                        for rows, r, positions, part in self._parts(group, block, axial, columns):
                            part[..., r, :] = data[sample, rows, positions].permute(2, 3, 1, 0)
                        product = self._matrix(group, block.base, transposed=True).times(columns)
                        windows = product if windows is None else windows.add_(product)
                    group.fold(windows, planes, axial)
                stack += group.average_adjoint(planes)
            out[sample] += self._from_columns(stack, job.rotations)
        return out.reshape(*p.shape[:-3], *self.geometry.shape)

    def _parts(
        self, group: _Group, block: _Job, axial: range, columns: Tensor
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
        step = max(1, min(_COLUMNS, self.max_bytes // (8 * per_sample)))
        slices = [slice(i, min(i + step, num_images)) for i in range(0, num_images, step)]
        return [(s, job) for s in slices for job in _jobs(views, self._quarter_turn)]

    def _blocks(self, job: _Job, group: _Group) -> list[_Job]:
        """Parts of a job whose weights take a small part of the memory."""
        dy, dx = self._grid.pixel_size
        left, right = self._edges
        shadow = 1 + 1.3 * max(dx, dy) / float((right - left).min())
        per_view = math.prod(self._grid.shape) * shadow * _BYTES_PER_WEIGHT * len(group.members)
        step = max(1, int(self.max_bytes / 8 / per_view))
        return [job.part(slice(i, i + step)) for i in range(0, len(job.base), step)]

    def _matrix(self, group: _Group, base: tuple[int, ...], transposed: bool) -> _Sparse:
        key = (group.key, base, transposed)
        if key in self._cache:
            return self._cache[key]
        other = self._cache.get((group.key, base, not transposed))
        with torch.inference_mode(False), torch.no_grad():
            matrix = other.transposed() if other is not None else self._build(group, base, transposed)
        if self._cached_bytes + matrix.num_bytes <= 3 * self.max_bytes // 4:
            self._cache[key] = matrix
            self._cached_bytes += matrix.num_bytes
        elif not getattr(self, "_warned", False):
            self._warned = True
            _logger.warning(
                "projector weights exceed their part of max_bytes = %.0f MiB: some are computed anew in each "
                "projection, which is slow. Give Projector more memory if there is",
                self.max_bytes / 2**20,
            )
        return matrix

    def _build(self, group: _Group, base: tuple[int, ...], transposed: bool) -> _Sparse:
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

        parts = zip(*_map(weights_of, len(base), self.device), strict=True)
        rows, columns, weights = (torch.cat(v) for v in zip(*itertools.chain(*parts), strict=True))
        shape = (len(group.members) * len(base) * num_bins, group.num_shifts * num_pixels)
        matrix = _Sparse.from_sorted(rows, columns, weights, shape)
        return matrix.transposed() if transposed else matrix


def _map(function: Callable[[int], list], count: int, device: torch.device) -> list:
    """``function`` of ``0 .. count - 1``, on a CPU in as many threads as torch has, each of which computes alone.

    The many small operations that make up one view would otherwise wait for all threads a hundred times.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu":
        return [function(i) for i in range(count)]

    def start() -> None:
        torch.set_num_threads(1)

    def run(i: int) -> list:
        # The modes of autograd belong to a thread.
        with torch.inference_mode(False), torch.no_grad():
            return function(i)

    try:
        with ThreadPoolExecutor(threads, initializer=start) as pool:
            return list(pool.map(run, range(count)))
    finally:
        torch.set_num_threads(threads)


class _Product(torch.autograd.Function):
    """Either product with the other as its derivative."""

    @staticmethod
    def forward(ctx, tensor: Tensor, projector: Projector, views: tuple[int, ...], transposed: bool) -> Tensor:
        ctx.projector, ctx.views, ctx.transposed = projector, views, transposed
        return projector._adjoint(tensor, views) if transposed else projector._forward(tensor, views)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        product = ctx.projector.forward if ctx.transposed else ctx.projector.adjoint
        return product(gradient, ctx.views), None, None, None


@dataclass(frozen=True)
class _Sparse:
    """Compressed rows. ``embedding_bag`` is the product with few columns that runs on every device and any CPU."""

    offsets: Tensor
    columns: Tensor
    weights: Tensor
    num_columns: int

    @classmethod
    def from_sorted(cls, rows: Tensor, columns: Tensor, weights: Tensor, shape: tuple[int, int]) -> _Sparse:
        counts = torch.bincount(rows, minlength=shape[0])
        offsets = torch.cat((counts.new_zeros(1), counts.cumsum(0))).to(torch.int32)
        return cls(offsets, columns, weights, shape[1])

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.offsets, self.columns, self.weights))

    def times(self, dense: Tensor) -> Tensor:
        return functional.embedding_bag(
            self.columns, dense, self.offsets, mode="sum", per_sample_weights=self.weights, include_last_offset=True
        )

    def transposed(self) -> _Sparse:
        num_rows = self.offsets.numel() - 1
        rows = torch.repeat_interleave(
            torch.arange(num_rows, dtype=torch.int32, device=self.columns.device), self.offsets.diff()
        )
        columns, order = torch.sort(self.columns, stable=True)
        return _Sparse.from_sorted(columns, rows[order], self.weights[order], (self.num_columns, num_rows))


@dataclass(frozen=True)
class _Job:
    """Views computed from the weights of ``base``, for each rotation (0 or 1 quarter turns), and where they go."""

    base: tuple[int, ...]
    rotations: tuple[int, ...]
    positions: tuple[Tensor | slice, ...]
    places: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, base: tuple[int, ...], rotations: tuple[int, ...], places: tuple[tuple[int, ...], ...]) -> _Job:
        return cls(base, rotations, tuple(_as_slice(p) for p in places), places)

    def part(self, which: slice) -> _Job:
        return _Job.of(self.base[which], self.rotations, tuple(p[which] for p in self.places))


def _as_slice(numbers: tuple[int, ...]) -> slice | Tensor:
    """Evenly spaced positions as a slice, which copies faster."""
    step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    if step > 0 and numbers == tuple(range(numbers[0], numbers[-1] + 1, step)):
        return slice(numbers[0], numbers[-1] + 1, step)
    return torch.tensor(numbers)


def _jobs(views: tuple[int, ...], quarter_turn: int | None) -> list[_Job]:
    """Pair views with the ones a quarter turn further where both are wanted."""
    place = {view: i for i, view in enumerate(views)}
    if quarter_turn is None:
        return [_Job.of(views, (0,), (tuple(range(len(views))),))]
    first = [v for v in views if v < quarter_turn]
    both = tuple(v for v in first if v + quarter_turn in place)
    only_first = tuple(v for v in first if v + quarter_turn not in place)
    only_second = tuple(v - quarter_turn for v in views if v >= quarter_turn and v - quarter_turn not in place)
    jobs = []
    if both:
        places = tuple(place[v] for v in both), tuple(place[v + quarter_turn] for v in both)
        jobs.append(_Job.of(both, (0, 1), places))
    if only_first:
        jobs.append(_Job.of(only_first, (0,), (tuple(place[v] for v in only_first),)))
    if only_second:
        jobs.append(_Job.of(only_second, (1,), (tuple(place[v + quarter_turn] for v in only_second),)))
    return jobs


@dataclass(frozen=True)
class _Member:
    """A segment of a group: where its sinograms start and how steep its rays are in each tangential position."""

    first_sinogram: int
    tangent: Tensor


@dataclass(frozen=True)
class _Group:
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
    members: tuple[_Member, ...]

    @property
    def num_shifts(self) -> int:
        return self.shifts[1] - self.shifts[0] + 1

    @property
    def _range(self) -> tuple[int, int]:
        """First and last averaged plane that is needed."""
        first, last = (self.first_plane + shift for shift in self.shifts)
        return first, last + self.width * (self.num_positions - 1)

    def climb(self, member: _Member, device: torch.device) -> Tensor | None:
        """Planes per mm along the ray, per bin; ``None`` for direct segments."""
        return (member.tangent / self.spacing).to(device) if bool((member.tangent != 0).any()) else None

    def assign_planes(
        self, member: _Member, found: ViewWeights, half_chord: float
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
        return padded if self.width == 1 else sum(padded[:, i : i + size] for i in range(self.width)) / self.width

    def average_adjoint(self, planes: Tensor) -> Tensor:
        low, high = self._range
        if self.width > 1:
            planes = sum(functional.pad(planes, (0, 0, i, self.width - 1 - i)) for i in range(self.width)) / self.width
        return functional.pad(planes, (0, 0, low, self.num_planes - high - self.width))

    def chunks(self, columns_per_position: int) -> list[range]:
        step = max(1, _COLUMNS // columns_per_position)
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


def _group_segments(geometry: ImageGeometry, projdata: ProjDataGeometry, grid: InPlaneGrid) -> list[_Group]:
    groups: dict[tuple, list[_Member]] = {}
    for segment, rows in zip(projdata.segments, projdata.segment_slices(), strict=True):
        axial = _axial_position(geometry, projdata, segment)
        key = (*axial, abs(segment.average_ring_difference), segment.num_axial_positions)
        groups.setdefault(key, []).append(_Member(rows.start, projdata.tan_theta(segment)))
    seen = projdata.tangential_positions().abs() <= grid.radius + 2 * max(grid.pixel_size)
    found = []
    for number, ((width, first_plane, fraction, _, num_positions), members) in enumerate(groups.items()):
        steepest = float(members[0].tangent[seen].abs().max()) if bool(seen.any()) else 0.0
        climb = (grid.radius + 2 * max(grid.pixel_size)) * steepest / geometry.voxel_size[0]
        shifts = math.floor(fraction - climb), math.floor(fraction + climb) + (1 if climb or fraction else 0)
        found.append(
            _Group(number, width, first_plane, fraction, geometry.voxel_size[0], num_positions, shifts,
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
