"""What a reader of files is to the fuzzer: inputs for it, what it may raise, and what it promises of a value."""

from __future__ import annotations

import json
import math
import os
from abc import ABC, abstractmethod
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from .mutations import LONGEST

_VARIANTS = 500


class Broken(AssertionError):
    """A reader accepted what it promises not to accept."""


def promise(kept: Any, text: str) -> None:
    """Raise `Broken` unless the promise was kept."""
    if not bool(kept):
        raise Broken(text)


def check_image(values: Any, geometry: Any) -> None:
    """The promises of every image and of projection data: shape of its grid, all values finite."""
    promise(tuple(values.shape) == tuple(geometry.shape), f"shape {values.shape} on a grid of {geometry.shape}")
    promise(bool((values.abs() < math.inf).all()), "values that are not finite")


def check_grid(geometry: Any) -> None:
    """Voxels that a scanner could have."""
    promise(all(1e-5 < v < 1e6 for v in geometry.voxel_size), f"voxels of {geometry.voxel_size} mm")
    promise(all(abs(v) < 1e9 for v in geometry.origin), f"an origin of {geometry.origin} mm")


class Reader(ABC):
    """One kind of file.

    Parameters
    ----------
    folder
        Empty; for the samples, and for the input, which is ``path``.
    """

    name: ClassVar[str]
    file: ClassVar[str]
    #: The errors that are documented for files that cannot be used.
    errors: ClassVar[tuple[type[Exception], ...]]

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / self.file
        self._variants: dict[int, bytes] = {}
        self.samples = self.prepare()

    @abstractmethod
    def prepare(self) -> list[Any]:
        """Samples that `content` changes; other files that they need are put into the folder."""

    @abstractmethod
    def content(self, rng: Random) -> bytes:
        """An input."""

    @abstractmethod
    def read(self) -> None:
        """Read ``path``; raises one of `errors`, or `Broken`, or what the fuzzer is looking for."""

    def whole(self) -> bytes:
        """A sample as it is."""
        sample = self.samples[0]
        if isinstance(sample, bytes):
            return sample
        return (sample if isinstance(sample, str) else json.dumps(sample)).encode()

    def made(self, rng: Random) -> bytes:
        """A changed sample that takes long to make: `variant` makes a few hundred of them."""
        raise NotImplementedError

    def variant(self, rng: Random) -> bytes:
        """One of the samples of `made`, each made once."""
        number = rng.randrange(_VARIANTS)
        if number not in self._variants:
            self._variants[number] = self.made(Random(f"{self.name} {number}"))
        return self._variants[number]

    def put(self, content: bytes) -> None:
        """Write an input."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            os.write(descriptor, content[:LONGEST])
        finally:
            os.close(descriptor)
