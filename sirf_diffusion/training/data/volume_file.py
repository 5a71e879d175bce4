"""Reading training volumes, with bounded memory however large the file is, and whatever it claims."""

from __future__ import annotations

import hashlib
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...files.documents import parse_json
from ...files.versions import check_version
from .hdf5_damage import check_chunks, check_heaps, longest_text
from .volumes import DTYPES, FORMAT, SCHEMA_VERSION, SPLITS

#: Limits of what is believed: voxels of a volume; bytes of data for each byte in the file (gzip's is 1032); of a text.
_MOST_VOXELS, _MOST_COMPRESSED, _LONGEST = 10**9, 1100, 2**20


class VolumeFileError(ValueError):
    """A file is no complete file of training volumes; the message names it and says what to do."""


class _WrongContent(Exception):
    """What is wrong in a file, without its name."""


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
        file, everything = _opened(self.path)
        with file, _errors_of(self.path):
            self.attributes: dict[str, Any] = dict(file.attrs)
            self.voxel_size: tuple[float, float, float] = tuple(float(v) for v in file.attrs["voxel_size"])
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
    def tracer(self) -> str:
        """Tracers of all volumes, in words."""
        return ", ".join(sorted({info.tracer for info in self.infos if info.tracer}))

    @property
    def fingerprint(self) -> str:
        """Hash of the voxel size and the data of this split: what a training depends on."""
        text = [str(self.voxel_size), *(info.data_sha256 + info.anatomy_sha256 for info in self.infos)]
        return hashlib.sha256("\n".join(text).encode()).hexdigest()[:16]

    def volume(self, index: int, name: str = "emission") -> Tensor:
        """One array ``[z, y, x]`` as it is stored: float16, masks and labels uint8 or uint16. Not to be written to.

        Raises
        ------
        KeyError
            If this volume has no such array.
        VolumeFileError
            If the data are damaged, not finite or negative.
        """
        key = (index, name)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        where = f"{self.path}: volume {self.infos[index].name}"
        group = self._open()["volumes"][self.infos[index].name]
        if name not in group:
            raise KeyError(f"{where} has no {name!r}")
        with _errors_of(where):
            dataset = group[name]
            while self._kept and self._held() + dataset.nbytes > self.memory:
                self._kept.popitem(last=False)
            check_chunks(dataset)
            values = np.empty(dataset.shape, dataset.dtype)
            dataset.read_direct(values)
        if values.dtype == np.float16:
            bits = values.view(np.uint16)  # infinity and NaN from 0x7c00 on, then -0, then what is negative
            if bool(((bits >= 0x7C00) & (bits != 0x8000)).any()):
                raise VolumeFileError(f"{where} has {name} values that are negative or not finite: build it anew")
        tensor = torch.from_numpy(values)
        self._kept[key] = tensor
        return tensor

    def details(self, prefix: str) -> list[dict[str, float]]:
        """Numbers that each volume has as attributes whose names begin so, without the beginning."""
        with _errors_of(self.path):
            groups = [self._open()["volumes"][info.name].attrs for info in self.infos]
            return [{k.removeprefix(prefix): float(a[k]) for k in a if k.startswith(prefix)} for a in groups]

    def check_values(self, *names: str) -> None:
        """Read these arrays of all volumes once, so that what is wrong shows before a training and not in it."""
        for index, info in enumerate(self.infos):
            for name in names:
                if name != "anatomy" or info.has_anatomy:
                    self.volume(index, name)

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
    """Open a file of training volumes for reading, and check all that it says against its layout and its size."""
    return _opened(Path(path))[0]


def _opened(path: Path) -> tuple[Any, list[VolumeInfo]]:
    """See `open_checked`; and what the volumes say of themselves."""
    import h5py

    if not path.is_file():
        parts = path.with_name(path.name + ".parts")
        more = f"; {parts} is an unfinished build: give its command again" if parts.is_dir() else ""
        raise VolumeFileError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}{more}")
    with _errors_of(path):
        check_heaps(path)
    try:
        # The default chunk cache of 1 MB per data set would only delay what is kept as a whole anyway.
        file = h5py.File(path, "r", rdcc_nbytes=0)
    except OSError as error:
        raise VolumeFileError(f"{path} cannot be read as HDF5: incomplete or damaged ({error})") from error
    with _errors_of(path, file.close):
        return file, _check(file)


@contextmanager
def _errors_of(path: str | os.PathLike[str], close: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Turn what HDF5 makes of damaged or hostile bytes into the documented error."""
    try:
        yield
    except _WrongContent as error:
        close()
        raise VolumeFileError(f"{path} {error}") from None
    except Exception as error:
        close()
        raise VolumeFileError(f"{path} is damaged ({type(error).__name__}: {error}): build it anew") from error


def rejected_inputs(path: str | os.PathLike[str]) -> list[tuple[int, str, str]]:
    """Number, hashed source and reason of the inputs that were left out of a file."""
    with open_checked(path) as file, _errors_of(path):
        table = file["rejected"]
        names, reasons = (table[column].asstr()[:].tolist() for column in ("source", "reason"))
        return list(zip(table["number"][:].tolist(), names, reasons, strict=True))


def _check(file: Any) -> list[VolumeInfo]:
    _check_attributes(file, "the file")
    if file.attrs.get("format") != FORMAT or "volumes" not in file:
        raise _WrongContent("holds no training volumes: make some by 'sirf-diffusion data build'")
    try:
        check_version(file.attrs["schema_version"], SCHEMA_VERSION)
    except ValueError as error:
        raise _WrongContent(f"cannot be read: {error}") from None
    size = np.asarray(file.attrs["voxel_size"], float)
    if size.shape != (3,) or not ((size >= 0.1) & (size <= 100)).all():
        raise _WrongContent(f"has voxels of {size.tolist()} mm; expected three sizes from 0.1 to 100: build it anew")
    for name in ("kind", "created_by", "axes", "intensity_rule"):
        if not isinstance(file.attrs[name], str):
            raise _WrongContent(f"has a {name} that is no text: build it anew")
    parse_json(file.attrs["settings"])
    if "rejected" in file:
        for column in ("number", "source", "reason"):
            _check_dataset(file["rejected"], column, 1)
    return [_info(name, _own(file["volumes"], name)) for name in sorted(file["volumes"])]


def _info(name: str, group: Any) -> VolumeInfo:
    """What a volume says of itself, if it can be so."""
    where = f"volume {name[:40]!r}"
    _check_attributes(group, where)
    shape = _check_dataset(group, "emission", 3).shape
    for array in group:
        if array not in DTYPES:
            raise _WrongContent(f"has {array[:40]!r} in {where}; expected {', '.join(DTYPES)}")
        dataset = _check_dataset(group, array, 3)
        if dataset.dtype not in DTYPES[array] or dataset.shape != shape:
            found, expected = f"{dataset.dtype} {dataset.shape}", np.dtype(DTYPES[array][0])
            raise _WrongContent(f"has {array} of {found} in {where}; expected {expected} of one shape: build it anew")
    occupancy = tuple(group.attrs[f"occupancy_{letter}"] for letter in "zyx")
    for share, size in zip(occupancy, shape, strict=True):
        if np.shape(share) != (size,) or not ((share >= 0) & (share <= 1)).all():
            raise _WrongContent(f"has shares of the mask in {where} that do not fit its shape: build it anew")
    scale, split = float(group.attrs["intensity_scale"]), group.attrs["split"]
    if not 0 < scale < math.inf or split not in ("", *SPLITS):
        raise _WrongContent(f"has intensity scale {scale} and split {str(split)[:40]!r} in {where}: build it anew")
    texts = ("subject", "split", "tracer", "modality", "data_sha256", "anatomy_sha256", "notes")
    return VolumeInfo(
        name=name, shape=tuple(shape), intensity_scale=scale, has_anatomy="anatomy" in group, occupancy=occupancy,
        bytes_on_disk=sum(dataset.id.get_storage_size() for dataset in group.values()),
        **{text: str(group.attrs[text]) for text in texts},
    )  # fmt: skip


def _check_dataset(group: Any, name: str, dimensions: int) -> Any:
    """The data set, if its size can be: HDF5 believes any shape and reads from any file that a data set names."""
    dataset = _own(group, name)
    _check_type(dataset.id, name)
    room = _MOST_COMPRESSED * dataset.id.get_storage_size() + 4096
    if dataset.is_virtual or dataset.external or dataset.ndim != dimensions:
        raise _WrongContent(f"has {name} that is no array of {dimensions} axes in the file itself: build it anew")
    if dataset.size > _MOST_VOXELS or dataset.nbytes > room or min(dataset.shape) < dimensions // 3:
        raise _WrongContent(
            f"has {name} of shape {dataset.shape} in {dataset.id.get_storage_size()} bytes: damaged, build it anew"
        )
    return dataset


def _own(group: Any, name: str) -> Any:
    import h5py

    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise _WrongContent(f"has {name[:40]!r} as a link: expected the data themselves")
    return group[name]


def _check_attributes(owner: Any, where: str) -> None:
    with open(owner.file.filename, "rb") as file:
        if longest_text(file, owner) > os.fstat(file.fileno()).st_size:
            raise _WrongContent(f"has a text in {where} that is longer than the file")
    for name in owner.attrs:
        attribute = owner.attrs.get_id(name)
        if attribute.get_storage_size() > _LONGEST:
            raise _WrongContent(f"has an attribute {name[:40]!r} of {where} that is larger than 1 MB")
        _check_type(attribute, f"an attribute {name[:40]!r} of {where}")


def _check_type(stored: Any, what: str) -> None:
    """HDF5 does not survive damage in values whose length is told elsewhere, but for texts."""
    from h5py import h5t

    if stored.get_type().get_class() not in (h5t.INTEGER, h5t.FLOAT, h5t.STRING, h5t.ENUM):
        raise _WrongContent(f"has {what} that is neither numbers nor text: build it anew")
