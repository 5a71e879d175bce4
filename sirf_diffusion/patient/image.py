"""An image with its place in the patient, and what makes one unusable."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..geometry.exam import Position

Read = TypeVar("Read")

#: From NIfTI's axes (to the right, front, head) to those of DICOM and ITK (left, back, head).
LPS_OF_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class UnusableImage(ValueError):
    """An image that cannot be used: the reason, without names or paths, which is written into files, and a detail for
    the person at the terminal, such as a library's message, which is not.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class SourceImage:
    """An image in the patient: float32 ``values`` with three axes in any order and direction.

    ``affine`` ``[4, 4]`` takes ``(i, j, k, 1)`` of ``values[i, j, k]`` to LPS coordinates in mm. ``kind`` is
    ``Interfile``, ``NIfTI``, ``DICOM`` or ``ECAT7``. If the file tells: ``patient``, an identifier for grouping, not to
    be written anywhere; ``modality``, ``MR``, ``CT``, ...; and ``position``, how the patient lay, where it is in the
    scanner's coordinates.
    """

    values: NDArray[np.float32]
    affine: NDArray[np.float64]
    kind: str
    patient: str = ""
    modality: str = ""
    position: Position | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Numbers of voxels."""
        return self.values.shape

    def shares_grid(self, other: SourceImage) -> bool:
        """Whether both have the same voxels, at the same places."""
        return self.shape == other.shape and bool(np.allclose(self.affine, other.affine, atol=1e-3))

    def is_of_another(self, other: SourceImage) -> bool:
        """Whether both files tell a patient, and not the same."""
        return bool(self.patient and other.patient) and self.patient != other.patient


def density_of_ct(image: SourceImage) -> SourceImage:
    """Density relative to water from a CT image in Hounsfield units; networks are given non-negative images."""
    return replace(image, values=np.clip(image.values / 1000 + 1, 0, None).astype(np.float32), modality="CT")


def check_values(values: NDArray[np.float32]) -> None:
    """Refuse an image that is empty, not finite or flat."""
    if min(values.shape) < 1:
        raise UnusableImage(f"an empty image of shape {values.shape}")
    bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if bad:
        raise UnusableImage(f"{bad} values that are not finite")
    if values.min() == values.max():
        raise UnusableImage(f"all voxels have the same value, {values.flat[0]:g}")


def check_affine(affine: NDArray[np.float64], *, sheared: bool = False) -> None:
    """Refuse a place in the patient that is impossible; ``sheared`` where a stack of slices may lean."""
    if not np.isfinite(affine).all():
        raise UnusableImage("its orientation is not finite")
    columns = affine[:3, :3]
    spacing = np.linalg.norm(columns, axis=0)
    if spacing.min() < 0.1 or spacing.max() > 50:
        sizes = " x ".join(f"{v:.3g}" for v in spacing)
        raise UnusableImage(f"voxels of {sizes} mm: the file gives wrong sizes, or another unit than mm")
    cosines = (columns / spacing).T @ (columns / spacing)
    if not sheared and np.abs(cosines - np.eye(3)).max() > 0.02:
        raise UnusableImage("its axes are not at right angles (a tilted gantry, or a wrong affine): resample it first")


def usable(read: Callable[[Any], Read], path: Any, name: str = "") -> Read:
    """What ``read(path)`` gives; a ValueError that names the image if it cannot be used."""
    try:
        return read(path)
    except UnusableImage as error:
        raise ValueError(f"{name}{path} cannot be used: {error}") from error


@contextmanager
def reading(reason: str, name: str = "") -> Iterator[None]:
    """Turn what a library makes of damaged bytes, which may be any exception, into UnusableImage."""
    try:
        yield
    except (UnusableImage, ImportError, MemoryError):
        raise
    except Exception as error:
        raise UnusableImage(reason, f"{name}{type(error).__name__}: {error}") from error


def optional(package: str, purpose: str, extra: str = "mr") -> Any:
    """A package that a plain install does not bring, or an error that says how to get it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f'{purpose} needs {package}: pip install "sirf-diffusion[{extra}]"') from error


def simpleitk() -> Any:
    """SimpleITK, for registrations."""
    return optional("SimpleITK", "registration")
