"""Weights files: tensors, and one JSON document about them, in a ``.safetensors`` file.

Models, adapters and checkpoints are such files. A file is hostile until checked: nothing is unpickled, the header is
bounded before it is parsed, and every tensor must lie in the file before memory is taken for it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .outputs import atomic_path

MAX_FILE_BYTES = 4 * 1024**3
_MAX_HEADER_BYTES = 4 * 1024**2
_MAX_DEPTH = 32
#: Bytes a number takes, by the names of types in safetensors files.
_SIZES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1,
    "U8": 1, "BOOL": 1,
}  # fmt: skip

#: Called with the JSON document and the header's tensors, ``{"dtype": ..., "shape": ..., ...}`` by name, before memory
#: is taken; raises ValueError.
Check = Callable[[dict[str, Any], dict[str, Any]], None]


class WeightsFileError(ValueError):
    """A weights file cannot be used; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class WeightsFormat:
    """One kind of weights file.

    Parameters
    ----------
    what
        What messages call it, with its article.
    key
        Key of the JSON document in the metadata of the header.
    remedy
        What to do about a file of an unknown version.
    error
        What is raised for a file that cannot be used.
    version, version_key
        Version that is read and written, and its key in the document.
    """

    what: str
    key: str
    remedy: str
    error: type[WeightsFileError] = WeightsFileError
    version: int = 1
    version_key: str = "version"

    def document(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """The JSON document of a file, read without the tensors."""
        with _Header(Path(path), self) as header:
            return header.document()

    def read(
        self, path: str | os.PathLike[str], check: Check | None = None
    ) -> tuple[dict[str, Any], dict[str, Tensor], str]:
        """JSON document, tensors on the CPU as they are stored, and SHA-256 of a file.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        WeightsFileError
            `error`: if it is not such a file, is damaged, or ``check`` refuses it.
        """
        with _Header(Path(path), self) as header:
            document = header.document()
            if check is not None:
                header.guarded(lambda: check(document, header.entries))
            tensors, digest = header.tensors()
        return document, tensors, digest

    def content(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> bytes:
        """Bytes of a file, the same for the same tensors and document."""
        text = json.dumps({self.version_key: self.version, **document}, sort_keys=True, allow_nan=False)
        return _content(tensors, {self.key: text})

    def write(self, path: str | os.PathLike[str], tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> str:
        """Write a file, whole or not at all, and return its SHA-256; an existing one is replaced.

        Raises
        ------
        FileNotFoundError
            If its folder does not exist.
        """
        return _write(Path(path), self.content(tensors, document), self.what)


def read_tensors(
    path: str | os.PathLike[str], what: str, error: type[WeightsFileError]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of any safetensors file, without a JSON document; raises ``error``."""
    with _Header(Path(path), WeightsFormat(what, "", "", error)) as header:
        return header.tensors()[0], header.metadata


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> str:
    """Write any safetensors file, whole or not at all, and return its SHA-256."""
    return _write(Path(path), _content(tensors, metadata), "a safetensors file")


class _Header:
    """The checked header of an open file."""

    def __init__(self, path: Path, kind: WeightsFormat) -> None:
        self.path, self.kind = path, kind
        if not path.is_file():
            raise FileNotFoundError(2, f"no such file ({kind.what})", str(path))
        self.size = path.stat().st_size
        if self.size > MAX_FILE_BYTES:
            raise self.refusal(f"it has {self.size} bytes, more than the {MAX_FILE_BYTES} that one may have")
        self._file = path.open("rb")
        try:
            self._parse()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> _Header:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def refusal(self, problem: str) -> WeightsFileError:
        return self.kind.error(f"{self.path} cannot be read as {self.kind.what}: {problem}")

    def guarded(self, action: Callable[[], Any]) -> Any:
        """Do it; a value that it finds wrong is the file's."""
        try:
            return action()
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
            raise self.refusal(f"its {self.kind.key!r} configuration is not valid: {error}") from error

    def _parse(self) -> None:
        head = self._file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or not 2 <= length <= _MAX_HEADER_BYTES:
            raise self.refusal(
                f"it is not a safetensors file, or its header of {length} bytes exceeds {_MAX_HEADER_BYTES}"
            )
        if 8 + length > self.size:
            raise self.refusal(f"it is truncated: the header needs {8 + length} bytes, the file has {self.size}")
        self._text = head + self._file.read(length)
        try:
            header = json.loads(self._text[8:].decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise self.refusal(f"it is not a safetensors file: its header is not JSON ({error})") from error
        metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise self.refusal("it is not a safetensors file: its header is no dictionary, or its metadata is not text")
        self.entries: dict[str, Any] = header
        self.metadata: dict[str, str] = metadata

    def document(self) -> dict[str, Any]:
        kind = self.kind
        if kind.key not in self.metadata:
            raise kind.error(f"{self.path} is not {kind.what}: its header has no {kind.key!r} configuration")
        content = self.guarded(lambda: json.loads(self.metadata[kind.key]))
        if not isinstance(content, dict):
            raise self.refusal(f"its {kind.key!r} configuration must be a dictionary, found {type(content).__name__}")
        if _depth(content) > _MAX_DEPTH:
            raise self.refusal(f"its {kind.key!r} configuration is not valid: it is nested more than {_MAX_DEPTH} deep")
        version = content.get(kind.version_key)
        if version != kind.version or isinstance(version, bool):
            raise self.refusal(
                f"format version {version!r} is unknown to this release, which reads version {kind.version}: update "
                f"sirf-diffusion, or {kind.remedy}"
            )
        return content

    def tensors(self) -> tuple[dict[str, Tensor], str]:
        """All tensors, and the SHA-256 of the file."""
        import safetensors
        import safetensors.torch

        room = self.size - len(self._text)
        for name, entry in self.entries.items():
            if not _fits(entry, room):
                raise self.refusal(
                    f"it is not a complete safetensors file (tensor {name!r}): copy or download it again"
                )
        content = self._text + self._file.read()
        try:
            return safetensors.torch.load(content), hashlib.sha256(content).hexdigest()
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            raise self.refusal(f"it is not a complete safetensors file ({error}): copy or download it again") from error


def _depth(content: Any) -> int:
    """Levels of dictionaries and lists in each other."""
    level, depth = [content], 0
    while level:
        depth += 1
        inner = [list(item.values()) if isinstance(item, dict) else item for item in level]
        level = [value for values in inner for value in values if isinstance(value, (dict, list))]
    return depth


def _fits(entry: Any, room: int) -> bool:
    """Whether a tensor's type, shape and place agree, and lie within ``room`` bytes."""
    if not isinstance(entry, dict) or entry.get("dtype") not in list(_SIZES):
        return False
    shape, place = entry.get("shape"), entry.get("data_offsets")
    for values in (shape, place):
        if not isinstance(values, list) or not all(type(value) is int and 0 <= value <= 2**48 for value in values):
            return False
    return (
        len(shape) <= 16
        and len(place) == 2
        and place[0] <= place[1] <= room
        and (place[1] - place[0] == math.prod(shape) * _SIZES[entry["dtype"]])
    )


def _content(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    import safetensors.torch

    stored = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    # A file holds each tensor by itself, also those that share memory here.
    places = {tensor.untyped_storage().data_ptr() for tensor in stored.values()}
    if len(places) < len(stored):
        stored = {name: tensor.clone() for name, tensor in stored.items()}
    return safetensors.torch.save(stored, metadata=metadata)


def _write(path: Path, content: bytes, what: str) -> str:
    if not path.parent.is_dir():
        raise FileNotFoundError(2, f"the folder of {what} does not exist: make it first", str(path))
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()
