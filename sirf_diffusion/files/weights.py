"""Weights files: tensors, and one JSON document about them, in a ``.safetensors`` file.

Models, adapters and checkpoints are such files. A file is hostile until checked: nothing is unpickled, the header is
bounded before it is parsed, and every tensor must lie in the file before memory is taken for it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from torch import Tensor, nn

from ..geometry.checks import check_choice
from .atomic import atomic_path
from .documents import parse_json
from .versions import check_version

Network = TypeVar("Network", bound=nn.Module)
MAX_FILE_BYTES = 4 * 1024**3
_MAX_HEADER_BYTES = 4 * 1024**2
#: What files are that are given in place of others, by the key of their document.
_KINDS = {
    "sirf_diffusion": "a score model, for reconstruction",
    "sirf_diffusion_enhancement": "an enhancement model, for sirf-diffusion enhance and image filters",
    "sirf_diffusion_h_transform": "an h-transform, for recon --method deft (--set h_transform=FILE)",
}


class WeightsFileError(ValueError):
    """A weights file cannot be used; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class WeightsFormat:
    """One kind of weights file.

    ``what`` names it in messages, with its article; its JSON document stands in the metadata of the header under
    ``key``; ``remedy`` is what to do about a file of another ``version``, which the document has under ``version_key``;
    ``error`` is raised for a file that cannot be used.
    """

    what: str
    key: str = ""
    remedy: str = ""
    error: type[WeightsFileError] = WeightsFileError
    version: int = 1
    version_key: str = "version"

    def document(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """The JSON document of a file but for its version, read without the tensors; raises as `read` does."""
        with self._opened(Path(path)) as file:
            return self._document(Path(path), self._header(Path(path), file))

    def read(self, path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor], str]:
        """JSON document, tensors on the CPU as they are stored, and SHA-256 of a file.

        Raises FileNotFoundError if there is no such file, and `error` if it is not such a file, or is damaged.
        """
        path = Path(path)
        with self._opened(path) as file:
            return self._document(path, self._header(path, file)), *self._tensors(path, file)

    def read_any(self, path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and metadata of a safetensors file without a document; raises as `read` does."""
        path = Path(path)
        with self._opened(path) as file:
            metadata = self._header(path, file)
            return self._tensors(path, file)[0], metadata

    def content(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> bytes:
        """Bytes of a file, the same for the same tensors and document."""
        from safetensors.torch import save

        text = json.dumps({self.version_key: self.version, **document}, sort_keys=True, allow_nan=False)
        return save(_storable(tensors), metadata={self.key: text})

    def write(self, path: str | os.PathLike[str], tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> str:
        """Write a file, whole or not at all, and return its SHA-256; an existing one is replaced.

        Raises FileNotFoundError if its folder does not exist.
        """
        path, content = Path(path), self.content(tensors, document)
        if not path.parent.is_dir():
            raise FileNotFoundError(2, f"the folder of {self.what} does not exist: make it first", str(path))
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
        return hashlib.sha256(content).hexdigest()

    @contextmanager
    def guarded(self, path: str | os.PathLike[str]) -> Iterator[None]:
        """What is found wrong with a value here is wrong with the file's document."""
        try:
            yield
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
            raise self._refusal(path, f"its {self.key!r} configuration is not valid: {error}") from error

    def _refusal(self, path: str | os.PathLike[str], problem: str) -> WeightsFileError:
        return self.error(f"{path} cannot be read as {self.what}: {problem}")

    def _opened(self, path: Path) -> BinaryIO:
        if not path.is_file():
            raise FileNotFoundError(2, f"no such file ({self.what})", str(path))
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise self._refusal(path, f"it has {size} bytes, more than the {MAX_FILE_BYTES} that one may have")
        return path.open("rb")

    def _header(self, path: Path, file: BinaryIO) -> dict[str, str]:
        """Metadata of the header."""
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or not 2 <= length <= _MAX_HEADER_BYTES:
            raise self._refusal(
                path, f"it is not a safetensors file, or its header of {length} bytes exceeds {_MAX_HEADER_BYTES}"
            )
        text = file.read(length)
        if len(text) < length:
            raise self._refusal(path, f"it is truncated: the header needs {length} bytes, the file has {len(text)}")
        try:
            metadata = parse_json(text.decode("utf-8")).pop("__metadata__", {})
        except ValueError as error:
            raise self._refusal(path, f"it is not a safetensors file: its header is not valid ({error})") from error
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise self._refusal(
                path, "it is not a safetensors file: its header, or the metadata in it, is of another kind"
            )
        return metadata

    def _document(self, path: Path, metadata: dict[str, str]) -> dict[str, Any]:
        if self.key not in metadata:
            is_one = next((f"; it is {kind}" for key, kind in _KINDS.items() if key in metadata), "")
            raise self.error(f"{path} is not {self.what}: its header has no {self.key!r} configuration{is_one}")
        with self.guarded(path):
            content = parse_json(metadata[self.key])
        try:
            check_version(content.get(self.version_key), self.version, self.version_key)
        except ValueError as error:
            raise self._refusal(path, f"{error}, or {self.remedy}") from None
        return {key: value for key, value in content.items() if key != self.version_key}

    def _tensors(self, path: Path, file: BinaryIO) -> tuple[dict[str, Tensor], str]:
        """All tensors, and the SHA-256 of the file; the library refuses those that do not lie in it."""
        import safetensors
        import safetensors.torch

        file.seek(0)
        content = file.read()
        try:
            return safetensors.torch.load(content), hashlib.sha256(content).hexdigest()
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            why = str(error).partition("\n")[0]
            problem = f"it is not a complete safetensors file ({why}): copy or download it again"
            raise self._refusal(path, problem) from error


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file without a document, whole or not at all, and without a copy of it in memory."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file(_storable(tensors), temporary, metadata)


def filled(network: Network, weights: Mapping[str, Tensor]) -> Network:
    """The network, which may be on the meta device, with these weights in float32: frozen, for evaluation.

    Raises ValueError unless they fit, as `check_tensors` does.
    """
    weights = {name: tensor.float() for name, tensor in weights.items()}
    check_tensors(weights, network.state_dict())
    network.load_state_dict(weights, assign=True)
    return network.requires_grad_(False).eval()


def in_dtype(weights: Mapping[str, Tensor], network: nn.Module, weights_dtype: str) -> dict[str, Tensor]:
    """A network's weights on the CPU as they are stored, "float32" or "float16"; ValueError unless they fit it."""
    dtype = getattr(torch, check_choice("weights_dtype", weights_dtype, ("float32", "float16")))
    stored = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in weights.items()}
    check_tensors(stored, network.state_dict())
    return stored


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """A ValueError unless names and shapes are as expected, and all values finite."""
    for names, what in ((expected.keys() - found.keys(), "missing"), (found.keys() - expected.keys(), "unexpected")):
        if names:
            raise ValueError(f"{', '.join(map(repr, sorted(names)[:3]))} {what}, {len(names)} in all")
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(f"tensor {name!r} has shape {[*tensor.shape]}, expected {[*expected[name].shape]}")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"tensor {name!r} has values that are not finite as {tensor.dtype}".replace("torch.", ""))


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    stored = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    # A file holds each tensor by itself, also those that share memory here.
    if len({tensor.untyped_storage().data_ptr() for tensor in stored.values()}) < len(stored):
        stored = {name: tensor.clone() for name, tensor in stored.items()}
    return stored
