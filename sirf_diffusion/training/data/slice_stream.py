"""Random slices and cubes from a file of volumes, streamed: a batch is a pure function of seed, step and size.

Where all volumes fit into the file's memory budget, every sample draws its volume from all of them. Otherwise a window
slides over an endless sequence of random orders of the volumes: only those in the window are in memory, each stays for
``slices_per_volume`` samples per place in the window, and each is read once per pass. The window is computed from the
step alone, so that a training that was killed meets the same slices again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ...models.grid import neighbouring
from .augmentation import Augmentation
from .volume_file import VolumeFile

T = TypeVar("T")

#: Places of the window are dealt out to the samples of a batch in this many groups: with R processes that divide it,
#: each process reads only its R-th part of the file.
_GROUPS = 8
#: Slices of which less than this share is in the emission mask are not drawn.
_MIN_OCCUPANCY = 0.05
_SMALLEST_SIDE = 16


@dataclass
class SliceStream:
    """Random slices or cubes with random crop, flip, rotation, scaling and contrast.

    Sample ``i`` of a batch depends on ``(seed, step, size, i)`` only; process ``rank`` of ``world`` gets the samples
    ``rank, rank + world, ...``. So two processes together see what one would see, whatever ``world`` is.

    Parameters
    ----------
    file
        The volumes; its ``memory_mb`` decides how many are held, and is part of what the result depends on when the
        file is larger.
    crops
        Square crop sizes in pixels, or sides of cubes; each batch has one of them.
    planes
        Orientations to draw from: 0 transverse, 1 coronal, 2 sagittal.
    anatomy
        Give the anatomical image as a second channel, zero where a volume has none.
    slices_per_volume
        How many samples are drawn, on average, for each time that a volume is read; at least 1.
    neighbours
        Give each slice with so many on both sides of it, ``[1 or 2, 1 + 2 neighbours, crop, crop]``.
    cubes
        Give cubes around emitting tissue instead, of orientation 0.
    """

    file: VolumeFile
    crops: tuple[int, ...]
    seed: int
    planes: tuple[int, ...] = (0, 1, 2)
    anatomy: bool = False
    augmentation: Augmentation = field(default_factory=Augmentation)
    slices_per_volume: int = 64
    cubes: bool = False
    neighbours: int = 0

    def __post_init__(self) -> None:
        self.crops, self.planes = tuple(self.crops), tuple(self.planes)
        if not self.planes or not set(self.planes) <= {0, 1, 2}:
            raise ValueError(f"planes must be among 0, 1 and 2, found {self.planes}")
        if self.anatomy and not self.file.has_anatomy:
            raise ValueError(
                f"{self.file.path} has no anatomical images: build it with --mr or --ct, or use in_channels = 1"
            )
        self._choices = [[_usable(o) for o in info.occupancy] for info in self.file.infos]
        for k, info in enumerate(self.file.infos):
            for plane in range(3):
                if min(s for axis, s in enumerate(info.shape) if axis != plane) < _SMALLEST_SIDE:
                    self._choices[k][plane] = np.empty(0, np.int64)
            if not any(len(self._choices[k][plane]) for plane in self.planes):
                raise ValueError(
                    f"{self.file.path}: volume {info.name} of shape {info.shape} has no slices of the orientations "
                    f"{self.planes} with sides of {_SMALLEST_SIDE} pixels"
                )
        bytes_each = max(int(np.prod(i.shape)) * 2 * (1 + (self.anatomy and i.has_anatomy)) for i in self.file.infos)
        room = self.file.memory // bytes_each
        self.window = min(len(self.file), max(1, room if room < _GROUPS else room // _GROUPS * _GROUPS))
        self._orders: dict[int, np.ndarray] = {}

    @property
    def streams(self) -> bool:
        """Whether the volumes do not all fit into memory."""
        return self.window < len(self.file)

    @property
    def fingerprint(self) -> str:
        """Hash of what the file gives to a training."""
        return self.file.fingerprint

    def batch(self, step: int, size: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        """Slices ``[n, 1 or 2, crop, crop]`` or cubes of one step, float32, emission first; orientations ``[n]``."""
        crop = int(self.crops[np.random.default_rng([26, self.seed, step]).integers(len(self.crops))])
        draw = self._cube if self.cubes else self._slice
        images, planes = zip(*(draw(*one, crop) for one in self._samples(step, size, rank, world)), strict=True)
        return torch.stack(images), torch.tensor(planes)

    def _slice(self, rng: np.random.Generator, index: int, crop: int) -> tuple[Tensor, int]:
        usable = [plane for plane in self.planes if len(self._choices[index][plane])]
        plane = usable[int(rng.integers(len(usable)))]
        choices = self._choices[index][plane]
        place = int(choices[rng.integers(len(choices))])
        channels = [with_neighbours(c, plane, place, self.neighbours) for c in self._channels(index)]
        image = torch.stack(channels)
        size = self.file.voxel_size
        across = (size[plane], *size[:plane], *size[plane + 1 :])
        return self.augmentation.slices(rng, image, plane, crop, across), plane

    def _cube(self, rng: np.random.Generator, index: int, side: int) -> tuple[Tensor, int]:
        choices, shape = self._choices[index][0], self.file.infos[index].shape
        centre = [int(choices[rng.integers(len(choices))]) if len(choices) else shape[0] // 2]
        centre += [int(rng.integers(n)) for n in shape[1:]]
        margin = self.augmentation.margin(side)
        patch = torch.stack([_patch(c, centre, side, margin) for c in self._channels(index)])
        return self.augmentation.cubes(rng, patch, side, self.file.voxel_size), 0

    def _samples(self, step: int, size: int, rank: int, world: int) -> list[tuple[np.random.Generator, int]]:
        """Random generator and volume of each sample of this process."""
        if not 0 <= rank < world or size < world:
            raise ValueError(f"rank {rank}, {world} processes, batches of {size}: expected 0 <= rank < world <= size")
        first, samples = step * size // self.slices_per_volume, []
        for i in range(rank, size, world):
            rng = np.random.default_rng([27, self.seed, step, i])
            samples.append((rng, self._volume(rng, first, i)))
        if self.streams:
            self.file.forget({self._at(first + k) for k in range(self.window)})
        return samples

    def _volume(self, rng: np.random.Generator, first: int, sample: int) -> int:
        if not self.streams:
            return int(rng.integers(len(self.file)))
        groups = min(_GROUPS, self.window)
        member = int(rng.integers(self.window // groups))
        # the places first, first + 1, ... whose number has the remainder of this sample's group
        start = first + (sample - first) % groups
        return self._at(start + member * groups)

    def _at(self, place: int) -> int:
        """The volume at a place of the endless sequence."""
        epoch, position = divmod(place, len(self.file))
        if epoch not in self._orders:
            for old in [e for e in self._orders if e < epoch - 1]:
                del self._orders[old]
            self._orders[epoch] = np.random.default_rng([28, self.seed, epoch]).permutation(len(self.file))
        return int(self._orders[epoch][position])

    def _channels(self, index: int) -> list[Tensor]:
        emission = self.file.volume(index)
        if not self.anatomy:
            return [emission]
        if self.file.infos[index].has_anatomy:
            return [emission, self.file.volume(index, "anatomy")]
        return [emission, torch.zeros((), dtype=emission.dtype).expand(emission.shape)]


def with_neighbours(volume: Tensor, plane: int, place: int, reach: int) -> Tensor:
    """A slice ``[h, w]`` of ``[z, y, x]``, or with its neighbours ``[1 + 2 reach, h, w]``, float32."""
    if not reach:
        return volume.select(plane, place).float()
    places = neighbouring(torch.tensor([place]), volume.shape[plane], reach)[0]
    return volume.index_select(plane, places).movedim(plane, 0).float()


def prefetched(function: Callable[[int], T], steps: Iterable[int], depth: int = 2) -> Iterator[T]:
    """Yield ``function(step)`` for every step, in order, computed up to ``depth`` steps ahead by one thread.

    An exception in ``function`` is raised at its step. Closing the iterator ends the thread.

    Examples
    --------
    >>> list(prefetched(lambda step: step**2, range(4)))
    [0, 1, 4, 9]
    """
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(1, "prefetch") as thread:
        try:
            for step in steps:
                waiting.append(thread.submit(function, step))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            thread.shutdown(wait=True, cancel_futures=True)


def _usable(occupancy: np.ndarray) -> np.ndarray:
    """Slices with enough in them; half of the fullest is enough for a small object in a large image."""
    return np.flatnonzero(occupancy > min(_MIN_OCCUPANCY, 0.5 * float(occupancy.max(initial=0.0))))


def _patch(volume: Tensor, centre: list[int], side: int, margin: int) -> Tensor:
    cube = torch.zeros((side + 2 * margin,) * 3)
    source, target = [], []
    for c, n in zip(centre, volume.shape, strict=True):
        # stay inside where the volume is large enough, in the middle where it is not; the margin may lie outside
        low = ((n - side) // 2 if n <= side else min(max(c - side // 2, 0), n - side)) - margin
        source.append(slice(max(low, 0), min(low + side + 2 * margin, n)))
        target.append(slice(max(-low, 0), max(-low, 0) + source[-1].stop - source[-1].start))
    cube[tuple(target)] = volume[tuple(source)].float()
    return cube
