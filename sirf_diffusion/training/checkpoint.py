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

from ..files.outputs import atomic_path
from ..files.weights import WeightsFileError, WeightsFormat, write_tensors

logger = logging.getLogger(__name__)

NAME = "checkpoint.safetensors"
PREVIOUS = "checkpoint.previous.safetensors"
_FIRST_ENTRIES = {"step", "description", "validation"}


class CheckpointError(WeightsFileError):
    """A checkpoint cannot be resumed; the message names the file and the reason."""


_FORMAT = WeightsFormat("a checkpoint", error=CheckpointError)


def write_checkpoint(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write a checkpoint; the one before stays as ``checkpoint.previous.safetensors``.

    It is written under a temporary name, brought to the disk and renamed, so that a process killed at any moment
    leaves a complete checkpoint behind. Its SHA-256 is in its header.
    """
    path, previous = folder / NAME, folder / PREVIOUS
    stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    if path.exists():
        # A second name for the same file, then one rename: at no moment is there no checkpoint.
        with atomic_path(previous) as link:
            _link_or_copy(path, link)
    write_tensors(path, stored, header | {"sha256": digest(stored, header)})


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Tensors and metadata of the newest checkpoint that is whole; None if there is none at all.

    Raises
    ------
    CheckpointError
        If there are checkpoints and none of them is whole.
    """
    for leftover in folder.glob(".checkpoint*.part.safetensors"):
        leftover.unlink(missing_ok=True)
    problems = []
    for name in (NAME, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            content = _read(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            logger.warning("%s; going on from %s", problem, path)
        return content
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


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, metadata = _FORMAT.read_any(path)
    found = metadata.pop("sha256", None)
    # Checkpoints of the first release had no digest, and just these entries.
    if found is None and set(metadata) == _FIRST_ENTRIES:
        return tensors, metadata
    if found != digest(tensors, metadata):
        raise CheckpointError(f"{path} cannot be read as a checkpoint: its contents are damaged (the SHA-256 differs)")
    return tensors, metadata


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # file systems without hard links
        target.write_bytes(source.read_bytes())
