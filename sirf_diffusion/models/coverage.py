"""How a network covers a volume: slices of one orientation or of three, or blocks, in batches that fit memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .batching import largest_batch, largest_block
from .blocks import in_blocks
from .networks import NetworkConfig

Network = Callable[..., Tensor]

# Slices of each orientation lie in two axes of [..., z, y, x]; rows before columns. The label is the position here.
_STACKING_AXES = (-3, -2, -1)
# What the backward pass keeps of a slice, in units of what the forward pass alone needs of it at a time.
_GRADIENT_MEMORY = 12


@dataclass(frozen=True)
class Coverage:
    """A network of slices or of blocks as a function of whole volumes.

    Parameters
    ----------
    network
        As for `ScoreModel`.
    planes
        ``"transverse"``, ``"three"`` for the mean over three orientations, ``"alternating"`` for one of them at a time,
        or ``"volume"``, see `ScoreModel.on`.
    multiple
        Sizes of slices or volumes must be multiples of this.
    architecture
        Its configuration, from which memory is estimated, if there is one.
    max_batch, block
        As for `ScoreModel.on`.
    gradient_batch
        Most slices, or volumes, in one network call with gradients; None to fit memory.
    precision
        As for `ScoreModel.load`.
    """

    network: Network
    planes: str
    multiple: int = 1
    architecture: NetworkConfig | None = None
    max_batch: int | None = None
    block: int | None = None
    gradient_batch: int | None = None
    precision: str = "float32"

    def __call__(self, inputs: Tensor, time: float, turn: int | None = None) -> Tensor:
        """Network output ``[..., Z, Y, X]`` for input images ``[..., in, Z, Y, X]`` at one time, see `network_time`.

        Alternating orientations take turns, by the number ``turn``; without one it is the mean over all three.

        Raises
        ------
        ValueError
            If slices or volumes are not multiples of ``multiple``.
        """
        if self.planes == "volume":
            return self._volumes(inputs, time)
        if self.planes == "transverse":
            return self._slices(inputs, time, 0)
        orientations = list(enumerate(_STACKING_AXES))
        if self.planes == "alternating" and turn is not None:
            orientations = [orientations[turn % len(orientations)]]
        total = torch.zeros_like(inputs[..., 0, :, :, :])
        for plane, axis in orientations:
            total += self._slices(inputs.movedim(axis, -3), time, plane).movedim(-3, axis)
        return total.div_(len(orientations))

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        weight = self._weight()
        return torch.device("cpu") if weight is None else weight.device

    def largest_with_gradients(self, shape: tuple[int, int, int]) -> tuple[tuple[int, ...], float]:
        """Shape of the largest slice or block that gradients are taken of at once, and how many of it a volume is."""
        z, y, x = shape
        if self.planes == "volume":
            side = self._side(shape, with_gradients=True)
            block = tuple(min(side, size) for size in shape)
            return block, z * y * x / math.prod(block)
        if self.planes == "transverse":
            return (y, x), float(z)
        height, width = max(((y, x), (z, x), (z, y)), key=lambda sides: sides[0] * sides[1])
        return (height, width), 3.0 * z * y * x / (height * width)

    def _slices(self, stacks: Tensor, time: float, plane: int) -> Tensor:
        """Network output for every slice of ``[..., in, slice, H, W]`` of one orientation."""
        height, width = stacks.shape[-2:]
        if height % self.multiple or width % self.multiple:
            raise ValueError(f"slices must be multiples of {self.multiple}, found {height} x {width}; see to_latent")
        slices = stacks.movedim(-4, -3).flatten(0, -4)
        return self._batches(slices, time, plane).reshape(*stacks.shape[:-4], *stacks.shape[-3:])

    def _volumes(self, inputs: Tensor, time: float) -> Tensor:
        """Network output for ``[..., in, Z, Y, X]``: whole, or in blocks."""
        shape = inputs.shape[-3:]
        if any(size % self.multiple for size in shape):
            raise ValueError(f"volumes must be multiples of {self.multiple}, found {tuple(shape)}; see to_latent")
        volumes = inputs.reshape(-1, *inputs.shape[-4:])
        side = self._side(tuple(shape), with_gradients=torch.is_grad_enabled())
        if side >= max(shape):
            result = self._batches(volumes, time, 0)
        else:
            result = in_blocks(lambda block: self._batches(block, time, 0), volumes, side, self.multiple)
        return result.reshape(*inputs.shape[:-4], *shape)

    def _side(self, shape: tuple[int, ...], *, with_gradients: bool) -> int:
        """Side of the blocks that a volume of this shape is seen in."""
        share = 1 / _GRADIENT_MEMORY if with_gradients else 1.0
        return self.block or largest_block(self.architecture, shape, self.multiple, self.device, share)

    def _batches(self, images: Tensor, time: float, plane: int) -> Tensor:
        """Network output ``[n, 1, ...]`` for slices or volumes ``[n, in, ...]``, in batches."""
        weight = self._weight()
        dtype = images.dtype if weight is None else weight.dtype
        limit, share = self.max_batch, 1.0
        if torch.is_grad_enabled():
            share = 1 / _GRADIENT_MEMORY
            limit = self.gradient_batch or (limit and max(1, limit // _GRADIENT_MEMORY))
        batch = limit or largest_batch(self.architecture, math.prod(images.shape[2:]), self.device, share)
        results = []
        for first in range(0, len(images), batch):
            part = images[first : first + batch].to(dtype)
            times = torch.full((len(part),), time, dtype=dtype, device=part.device)
            labels = torch.full((len(part),), plane, dtype=torch.long, device=part.device)
            with torch.autocast(part.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                output = self._call_network(part, times, labels, keep=len(part) == len(images))
            results.append(output.to(images.dtype))
        return torch.cat(results)

    def _call_network(self, images: Tensor, times: Tensor, labels: Tensor, *, keep: bool) -> Tensor:
        """Network output for a batch; with gradients, ``keep`` keeps activations for the backward pass."""
        if not torch.is_grad_enabled():
            with torch.inference_mode():
                return self.network(images, times, class_labels=labels)
        if keep and self.planes == "transverse":
            return self.network(images, times, class_labels=labels)
        from torch.utils.checkpoint import checkpoint

        return checkpoint(
            self.network, images, times, class_labels=labels, use_reentrant=False, preserve_rng_state=False
        )

    def _weight(self) -> Tensor | None:
        return next(self.network.parameters(), None) if isinstance(self.network, nn.Module) else None
