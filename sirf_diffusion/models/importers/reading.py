"""Weights and configurations of foreign files, read without running anything that is in them."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .archives import ArchiveError, read_archive

logger = logging.getLogger(__name__)

#: Keys under which training programs keep the weights among other things, the averaged ones first.
_INSIDE = ("ema", "ema_state_dict", "model_ema", "state_dict", "model_state_dict", "model", "unet_state_dict", "unet")
_PREFIXES = ("module.", "_orig_mod.", "unet.", "model.", "diffusion_model.", "denoise_fn.")
_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


class UnsupportedNetworkError(ValueError):
    """A foreign network cannot be imported; the message names what does not fit."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """State dictionary in a ``.safetensors`` file, one of ``torch.save``, TorchScript or ``torch.export``, as float32.

    Files of ``torch.save`` are read with ``weights_only=True``, which builds tensors and plain containers and nothing
    else. Of TorchScript and ``torch.export`` archives only the weights are read: their programs are not run.

    Raises
    ------
    UnsupportedNetworkError
        If the file is damaged, needs unpickling, or holds no state dictionary.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            content: Any = load_file(path)
        except (SafetensorError, ValueError) as error:
            raise UnsupportedNetworkError(f"{path} is not a complete safetensors file: {error}") from error
    elif (program := _program(path)) is not None:
        content = program
    else:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            # What torch.load raises for a hostile or broken file has many types.
            raise UnsupportedNetworkError(
                f"{path} cannot be read as plain weights: it is damaged, or holds other objects than tensors, which "
                "are never loaded. Save the network's state_dict() alone, with torch.save or safetensors"
            ) from error
    return _clean(_inside(content, path))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a dictionary."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnsupportedNetworkError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UnsupportedNetworkError(f"{path} must hold a JSON dictionary, found {type(content).__name__}")
    return content


def find_weights(folder: Path, names: tuple[str, ...]) -> Path:
    """The first of the files that the folder has."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UnsupportedNetworkError(f"{folder} has none of {', '.join(names)}")


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def require(config: dict[str, Any], fitting: dict[str, tuple[Any, ...]], what: str) -> None:
    """Refuse a configuration where an entry is given and not among the values that fit."""
    for key, values in fitting.items():
        if key in config and config[key] not in values:
            allowed = " or ".join(repr(value) for value in values)
            raise UnsupportedNetworkError(f"{what}: {key} = {config[key]!r} is not supported, only {allowed}")


def _digest(file: Any) -> str:
    total = hashlib.sha256()
    while block := file.read(1 << 20):
        total.update(block)
    return total.hexdigest()


def _program(path: Path) -> dict[str, Tensor] | None:
    """Weights of an archive that holds a program; None for other files."""
    try:
        found = read_archive(path)
    except ArchiveError as error:
        raise UnsupportedNetworkError(
            f"{path} holds a program, of which only the weights are taken, and {error}: save the state_dict() of the "
            "network that it was made from, with torch.save or safetensors"
        ) from error
    if found is None:
        return None
    logger.info("%s is a %s program: its weights are taken, the program is not run", path, found[0])
    return found[1]


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
    changed = True
    while changed:
        changed = False
        for prefix in _PREFIXES:
            if weights and all(name.startswith(prefix) for name in weights):
                weights = {name[len(prefix) :]: value for name, value in weights.items()}
                changed = True
    return {name: value.to(torch.float32) if value.is_floating_point() else value for name, value in weights.items()}
