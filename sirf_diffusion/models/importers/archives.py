"""Weights out of TorchScript and ``torch.export`` archives, without running the programs in them.

Both formats hold a program beside its weights, and PyTorch warns of both ``torch.jit.load`` and ``torch.export.load``
that a malicious file may run any code while it is loaded. Neither is called here. The weights lie in the zip archive as
plain arrays; what names them is JSON in the one format, and in the other a pickle stream, of which only tensors,
numbers, texts and containers are taken: any other name in it is refused before anything is called.
"""

from __future__ import annotations

import json
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Type codes of ``torch.export``'s JSON, and the storages of TorchScript.
_EXPORTED = {6: torch.float16, 7: torch.float32, 8: torch.float64, 13: torch.bfloat16}
_STORED = {
    "HalfStorage": torch.float16, "FloatStorage": torch.float32, "DoubleStorage": torch.float64,
    "BFloat16Storage": torch.bfloat16,
}  # fmt: skip
_MAX_BYTES = 4 * 1024**3


class ArchiveError(ValueError):
    """An archive has no weights that can be read."""


def read_archive(path: Path) -> tuple[str, dict[str, Tensor]] | None:
    """Kind (``"TorchScript"`` or ``"torch.export"``) and named weights of an archive; None for any other file.

    Raises
    ------
    ArchiveError
        If the archive is damaged, or holds weights in another form than plain floating-point arrays.
    """
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        if sum(item.file_size for item in archive.infolist()) > _MAX_BYTES:
            raise ArchiveError(f"it unpacks to more than {_MAX_BYTES} bytes")
        names = {name.split("/", 1)[-1]: name for name in archive.namelist()}
        try:
            if "constants.pkl" in names or any(name.startswith("code/") for name in names):
                return "TorchScript", _scripted(archive, names)
            if any(name.startswith(("models/", "serialized_exported_program")) for name in names):
                return "torch.export", _exported(archive, names)
        except ArchiveError:
            raise
        except Exception as error:
            # A hostile or damaged archive raises anything.
            raise ArchiveError(f"its weights cannot be read ({type(error).__name__}: {error})") from error
    return None


def _exported(archive: zipfile.ZipFile, names: dict[str, str]) -> dict[str, Tensor]:
    configs = [name for name in names if name.startswith("data/weights/") and name.endswith("_weights_config.json")]
    if len(configs) != 1:
        raise ArchiveError("it is of an older form, or holds several programs")
    weights = {}
    for name, entry in json.loads(archive.read(names[configs[0]]))["config"].items():
        meta = entry["tensor_meta"]
        if entry["use_pickle"]:
            raise ArchiveError(f"weight {name!r} is pickled")
        if meta["dtype"] not in _EXPORTED:
            continue  # counters and the like
        sizes, strides = ([item["as_int"] for item in meta[key]] for key in ("sizes", "strides"))
        content = archive.read(names[f"data/weights/{entry['path_name']}"])
        weights[name] = _tensor(content, _EXPORTED[meta["dtype"]], meta["storage_offset"]["as_int"], sizes, strides)
    return weights


def _scripted(archive: zipfile.ZipFile, names: dict[str, str]) -> dict[str, Tensor]:
    if archive.read(names.get("byteorder", "")) != b"little":
        raise ArchiveError("its numbers are not little-endian")
    with archive.open(names["data.pkl"]) as file:
        module = _Reader(file, archive, names).load()
    return dict(_named(module, ""))


def _named(module: Any, prefix: str) -> Any:
    for key, value in getattr(module, "content", {}).items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, _Module):
            yield from _named(value, f"{prefix}{key}.")


class _Module:
    """Stands for an object of any class of the program; keeps its attributes and does nothing."""

    def __setstate__(self, state: Any) -> None:
        self.content = state if isinstance(state, dict) else {}


class _Reader(pickle.Unpickler):
    """Unpickler that knows the few names below and refuses all others."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, names: dict[str, str]) -> None:
        super().__init__(file)
        self._archive, self._names = archive, names

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuilt
        if module == "torch" and name.endswith("Storage"):
            return name
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch.jit._pickle":  # typed lists: [values] comes back
            return _first
        raise ArchiveError(f"it refers to {module}.{name}")

    def persistent_load(self, pid: Any) -> tuple[bytes, torch.dtype | None]:
        _, storage, key, _, _ = pid
        return self._archive.read(self._names[f"data/{key}"]), _STORED.get(storage)


def _first(*values: Any) -> Any:
    return values[0] if values else None


def _rebuilt(storage: tuple[bytes, torch.dtype | None], offset: int, sizes: Any, strides: Any, *_: Any) -> Any:
    content, dtype = storage
    return None if dtype is None else _tensor(content, dtype, offset, sizes, strides)


def _tensor(content: bytes, dtype: torch.dtype, offset: int, sizes: Any, strides: Any) -> Tensor:
    """A copy of an array in raw numbers; its extent is checked."""
    sizes, strides = [int(n) for n in sizes], [int(n) for n in strides]
    values = torch.from_numpy(np.frombuffer(content, np.uint8).copy()).view(dtype)
    if len(sizes) != len(strides) or min([offset, *sizes, *strides]) < 0:
        raise ArchiveError("a weight has an impossible shape")
    if math.prod(sizes) and offset + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True)) >= len(values):
        raise ArchiveError("a weight is longer than its numbers")
    return torch.as_strided(values, sizes, strides, offset).clone(memory_format=torch.contiguous_format)
