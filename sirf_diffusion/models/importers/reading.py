"""Weights and configurations of foreign files, read without running anything that is in them."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...files.documents import read_json
from ...files.weights import MAX_FILE_BYTES, WeightsFormat
from ..storage import ModelFileError

#: Keys under which training programs keep the weights among other things, the averaged ones first.
_INSIDE = ("ema", "ema_state_dict", "model_ema", "state_dict", "model_state_dict", "model", "unet_state_dict", "unet")
_PREFIXES = ("module.", "_orig_mod.", "unet.", "model.", "diffusion_model.", "denoise_fn.")


class UnsupportedNetworkError(ModelFileError):
    """A foreign network cannot be imported; the message names what does not fit."""


_FILE = WeightsFormat("weights", error=UnsupportedNetworkError)


def read_weights(path: Path) -> dict[str, Tensor]:
    """State dictionary in a ``.safetensors`` file, or one of ``torch.save``, as float32.

    Files of ``torch.save`` are read with ``weights_only=True``, which builds tensors and plain containers and nothing
    else. Raises UnsupportedNetworkError if the file is damaged, needs unpickling, is larger than 4 GiB, or holds no
    state dictionary.
    """
    if not path.is_file():  # a pipe would be waited for
        raise UnsupportedNetworkError(f"{path} is no regular file")
    if path.suffix == ".safetensors":
        content: Any = _FILE.read_any(path)[0]
    else:
        _check_archive(path)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            # What torch.load raises for a hostile or broken file has many types.
            raise UnsupportedNetworkError(
                f"{path} cannot be read as plain weights: it is damaged, or holds other objects than tensors, which "
                "are never loaded. Save the network's state_dict() alone, with torch.save or safetensors"
            ) from error
    weights = _clean(_inside(content, path))
    _check_sizes(path, weights)
    return {name: value.to(torch.float32) if value.is_floating_point() else value for name, value in weights.items()}


def read_config(path: Path) -> dict[str, Any]:
    """A JSON file that holds a dictionary."""
    try:
        return read_json(path)
    except ValueError as error:
        raise UnsupportedNetworkError(str(error)) from error


def plain_arguments(section: dict[str, Any], config: dict[str, Any], what: str) -> dict[str, Any]:
    """Arguments in a section of a bundle's configuration; references to plain values in it are followed.

    Raises UnsupportedNetworkError if an argument refers to something else, or is an expression: nothing is evaluated.
    """
    arguments = {}
    for key, value in section.items():
        if key.startswith("_"):
            continue
        found = value
        if isinstance(value, str) and value.startswith("@"):
            found = config
            for part in re.split("#|::", value[1:]):
                found = found.get(part, value) if isinstance(found, dict) else value
        if isinstance(found, dict) or (isinstance(found, str) and found[:1] in ("@", "$", "%")):
            raise UnsupportedNetworkError(f"{what}: {key} = {value!r} refers to something else: write its value")
        arguments[key] = found
    return arguments


def renamed(weights: dict[str, Tensor], names: Iterable[tuple[str, Any]]) -> dict[str, Tensor]:
    """Weights under other names: regular expressions and what replaces them, tried in this order."""
    converted = {}
    for name, value in weights.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        converted[name] = value
    return converted


def head_channels(channels: Sequence[int], attention: Sequence[bool], num_heads: int, what: str) -> int:
    """Channels of an attention head where each level, and the last one always, has this number of heads."""
    widths = {width // num_heads for width, has in zip(channels, (*attention[:-1], True), strict=True) if has}
    if len(widths) != 1:
        raise UnsupportedNetworkError(f"{what} with attention at several widths is not supported")
    return widths.pop()


def require(config: dict[str, Any], fitting: dict[str, tuple[Any, ...]], what: str) -> None:
    """Refuse a configuration where an entry is given and not among the values that fit."""
    for key, values in fitting.items():
        if key in config and config[key] not in values:
            allowed = " or ".join(repr(value) for value in values)
            raise UnsupportedNetworkError(f"{what}: {key} = {config[key]!r} is not supported, only {allowed}")


def _check_archive(path: Path) -> None:
    """Refuse an archive that would unpack to more than it seems, or holds a program."""
    size = path.stat().st_size
    items = None
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                items = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UnsupportedNetworkError(f"{path} is a damaged archive: {error}") from error
    if items is None:
        if size > MAX_FILE_BYTES:
            raise UnsupportedNetworkError(f"{path} has {size} bytes, more than the {MAX_FILE_BYTES} that one may have")
        return
    if max(size, sum(item.file_size for item in items)) > MAX_FILE_BYTES:
        raise UnsupportedNetworkError(f"{path} unpacks to more than the {MAX_FILE_BYTES} bytes that one may have")
    names = [item.filename.split("/", 1)[-1] for item in items]
    if any(name == "constants.pkl" or name.startswith(("code/", "models/", "serialized_exported")) for name in names):
        raise UnsupportedNetworkError(
            f"{path} is a TorchScript or torch.export program, which is never loaded: save the state_dict() of the "
            "network that it was made from, with torch.save or safetensors"
        )


def _check_sizes(path: Path, weights: dict[str, Tensor]) -> None:
    """Refuse tensors that say to be more than the numbers that they have."""
    for name, value in weights.items():
        stored = value.layout == torch.strided and not value.is_quantized and value.device.type == "cpu"
        if not stored or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UnsupportedNetworkError(f"{path}: weight {name!r} is not a plain array of numbers")
    if sum(4 * value.numel() for value in weights.values()) > MAX_FILE_BYTES:
        raise UnsupportedNetworkError(f"{path} holds more than the {MAX_FILE_BYTES} bytes that one may have")


def _inside(content: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(3):
        if isinstance(content, dict) and any(isinstance(value, Tensor) for value in content.values()):
            return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        inner = next((content[key] for key in _INSIDE if isinstance(content, dict) and key in content), None)
        if inner is None:
            break
        content = inner
    raise UnsupportedNetworkError(f"{path} holds no state dictionary (names and tensors)")


def _clean(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes of wrappers (DataParallel, torch.compile, Lightning)."""
    while prefix := next((p for p in _PREFIXES if weights and all(name.startswith(p) for name in weights)), None):
        weights = {name[len(prefix) :]: value for name, value in weights.items()}
    return weights
