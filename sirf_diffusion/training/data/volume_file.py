"""Reading training volumes, with bounded memory however large the file is."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .volumes import FORMAT, SCHEMA_VERSION, SPLITS


class VolumeFileError(ValueError):
    """A file is no complete file of training volumes; the message names it and says what to do."""


@dataclass(frozen=True)
class VolumeInfo:
    """What a file says of one volume; see `sirf_diffusion.training.data.volumes`."""

    name: str
    subject: str
    split: str
    shape: tuple[int, int, int]
    tracer: str
    intensity_scale: float
    has_anatomy: bool
    modality: str
    data_sha256: str
    anatomy_sha256: str
    notes: str
    bytes_on_disk: int
    occupancy: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


class VolumeFile:
    """Volumes of one file, or of one split of it.

    Volumes are read when they are asked for, as they are stored (float16), and kept until the ones in memory take more
    than ``memory_mb``; then those that were not used for the longest time go. Copies in other processes (after a fork,
    or pickled for ``spawn``) open the file for themselves.

    Parameters
    ----------
    path
        A file written by ``sirf-diffusion data``.
    split
        ``"train"``, ``"validation"``, ``"test"``; None for all volumes.
    memory_mb
        Memory for volumes in MB, positive. One volume is kept in any case.

    Raises
    ------
    VolumeFileError
        If it is no such file, was written by a newer version, or the split is empty or unknown.

    Examples
    --------
    ::

        file = VolumeFile("train.h5", "train")
        emission = file.volume(0)  # [z, y, x], float16, about 1 in emitting tissue
    """

    def __init__(self, path: str | os.PathLike[str], split: str | None = None, *, memory_mb: float = 400.0) -> None:
        if split is not None and split not in SPLITS:
            raise VolumeFileError(f"split must be one of {', '.join(SPLITS)}, found {split!r}")
        if not memory_mb > 0:
            raise VolumeFileError(f"memory_mb must be positive, found {memory_mb!r}")
        self.path, self.split, self.memory = Path(path), split, int(memory_mb * 1e6)
        with open_checked(self.path) as file:
            self.voxel_size: tuple[float, float, float] = tuple(float(v) for v in file.attrs["voxel_size"])
            self.attributes: dict[str, Any] = dict(file.attrs)
            everything = [_info(name, file["volumes"][name]) for name in sorted(file["volumes"])]
        self.infos = [info for info in everything if split in (None, info.split)]
        if not self.infos:
            found = ", ".join(sorted({info.split for info in everything})) or "no volumes"
            raise VolumeFileError(f"{self.path} has no volumes in split {split!r}, found {found}")
        self._kept: OrderedDict[tuple[int, str], Tensor] = OrderedDict()
        self._file: Any = None
        self._process = -1

    def __len__(self) -> int:
        return len(self.infos)

    @property
    def has_anatomy(self) -> bool:
        """Whether any volume has an anatomical image."""
        return any(info.has_anatomy for info in self.infos)

    @property
    def fingerprint(self) -> str:
        """Hash of the voxel size and the data of this split: what a training depends on."""
        text = [str(self.voxel_size), *(info.data_sha256 + info.anatomy_sha256 for info in self.infos)]
        return hashlib.sha256("\n".join(text).encode()).hexdigest()[:16]

    def volume(self, index: int, name: str = "emission") -> Tensor:
        """One array ``[z, y, x]`` as it is stored: float16, or uint8 for masks and labels. Not to be written to.

        Raises
        ------
        KeyError
            If this volume has no such array.
        VolumeFileError
            If the data are damaged.
        """
        key = (index, name)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        group = self._open()["volumes"][self.infos[index].name]
        if name not in group:
            raise KeyError(f"volume {self.infos[index].name} of {self.path} has no {name!r}")
        dataset = group[name]
        size = dataset.dtype.itemsize * int(np.prod(dataset.shape))
        while self._kept and self._held() + size > self.memory:
            self._kept.popitem(last=False)
        values = np.empty(dataset.shape, dataset.dtype)
        try:
            dataset.read_direct(values)
        except OSError as error:
            raise VolumeFileError(f"{self.path}: volume {self.infos[index].name} is damaged ({error})") from error
        tensor = torch.from_numpy(values)
        self._kept[key] = tensor
        return tensor

    def forget(self, keep: set[int]) -> None:
        """Drop the volumes in memory whose index is not in ``keep``."""
        for key in [k for k in self._kept if k[0] not in keep]:
            del self._kept[key]

    def close(self) -> None:
        """Close the file and drop what is in memory; reading opens it again."""
        self._kept.clear()
        if self._file is not None and self._process == os.getpid():
            self._file.close()
        self._file = None

    def _held(self) -> int:
        return sum(t.numel() * t.element_size() for t in self._kept.values())

    def _open(self) -> Any:
        if self._file is None or self._process != os.getpid():
            self._file, self._process = open_checked(self.path), os.getpid()
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": OrderedDict(), "_file": None, "_process": -1}


def open_checked(path: str | os.PathLike[str]) -> Any:
    """Open a file of training volumes for reading.

    Raises
    ------
    VolumeFileError
        If it is missing, no HDF5 file, of another format, incomplete, or written by a newer version.
    """
    import h5py

    path = Path(path)
    if not path.is_file():
        more = f"; {path}.parts is an unfinished build: give its command again" if _parts(path).is_dir() else ""
        raise VolumeFileError(f"{path}: no such file{more}")
    try:
        # The default chunk cache of 1 MB per data set would only delay what is kept as a whole anyway.
        file = h5py.File(path, "r", rdcc_nbytes=0)
    except OSError as error:
        raise VolumeFileError(f"{path} cannot be read as HDF5: incomplete or damaged ({error})") from error
    if file.attrs.get("format") != FORMAT or "volumes" not in file:
        file.close()
        raise VolumeFileError(f"{path} holds no training volumes: make some by 'sirf-diffusion data build'")
    version = int(file.attrs["schema_version"])
    if version > SCHEMA_VERSION:
        file.close()
        raise VolumeFileError(
            f"{path} has schema version {version}, this program reads up to {SCHEMA_VERSION}: install a newer one"
        )
    return file


def rejected_inputs(path: str | os.PathLike[str]) -> list[tuple[int, str, str]]:
    """Number, hashed source and reason of the inputs that were left out of a file."""
    with open_checked(path) as file:
        table = file["rejected"]
        names, reasons = (table[column].asstr()[:].tolist() for column in ("source", "reason"))
        return list(zip(table["number"][:].tolist(), names, reasons, strict=True))


def _parts(path: Path) -> Path:
    return path.with_name(path.name + ".parts")


def _info(name: str, group: Any) -> VolumeInfo:
    attributes = group.attrs
    return VolumeInfo(
        name=name,
        subject=str(attributes["subject"]),
        split=str(attributes["split"]),
        shape=tuple(group["emission"].shape),
        tracer=str(attributes["tracer"]),
        intensity_scale=float(attributes["intensity_scale"]),
        has_anatomy="anatomy" in group,
        modality=str(attributes["modality"]),
        data_sha256=str(attributes["data_sha256"]),
        anatomy_sha256=str(attributes["anatomy_sha256"]),
        notes=str(attributes["notes"]),
        bytes_on_disk=sum(dataset.id.get_storage_size() for dataset in group.values()),
        occupancy=tuple(attributes[f"occupancy_{letter}"] for letter in "zyx"),
    )
