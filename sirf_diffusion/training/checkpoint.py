"""Checkpoints of a training that survive being killed at any moment: checked when read, and two generations of them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files.atomic import atomic_path
from ..files.versions import KEY, check_version
from ..files.weights import WeightsFileError, WeightsFormat, write_tensors

logger = logging.getLogger(__name__)

NAME = "checkpoint.safetensors"
PREVIOUS = "checkpoint.previous.safetensors"


class CheckpointError(WeightsFileError):
    """A checkpoint cannot be resumed; the message names the file and the reason."""


_FORMAT = WeightsFormat("a checkpoint", error=CheckpointError)


def write_checkpoint(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write a checkpoint with its SHA-256; the one before stays as ``checkpoint.previous.safetensors``.

    Raises
    ------
    OSError
        If it cannot be written, for example for a full disk; the one before stays.
    """
    path = folder / NAME
    stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    header[KEY] = "1"
    try:
        with atomic_path(path) as temporary:
            write_tensors(temporary, stored, header | {"sha256": digest(stored, header)})
            if path.exists():
                os.replace(path, folder / PREVIOUS)
    except OSError as error:
        problem = os.strerror(error.errno) if error.errno else str(error)
        kept = "the checkpoint before is kept: " if path.exists() else ""
        reason = f"{problem}; {kept}free some space and give the same command again"
        raise OSError(error.errno, reason, str(path)) from error


def forget_checkpoints(folder: Path) -> None:
    """Remove both, so that a training that begins anew can never go on from them."""
    for name in (NAME, PREVIOUS):
        (folder / name).unlink(missing_ok=True)


def has_checkpoint(folder: Path) -> bool:
    """Whether there is one, whole or not."""
    return any((folder / name).exists() for name in (NAME, PREVIOUS))


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Tensors and metadata of the newest checkpoint that is whole; None if there is none at all.

    Raises
    ------
    CheckpointError
        If there are checkpoints and none of them is whole.
    """
    problems = []
    for path in (folder / NAME, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            tensors, metadata = _FORMAT.read_any(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if metadata.pop("sha256", None) != digest(tensors, metadata):
            problems.append(f"{path} cannot be read: its contents are damaged (the SHA-256 differs)")
            continue
        try:
            check_version(json.loads(metadata.pop(KEY, "1")))
        except ValueError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        for problem in problems:
            logger.warning("%s; going on from %s", problem, path)
        return tensors, metadata
    if problems:
        raise CheckpointError("; ".join(problems) + ": remove it to start again")
    return None


def digest(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """SHA-256 of the metadata, and of names, types, shapes and values of the tensors."""
    total = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()
