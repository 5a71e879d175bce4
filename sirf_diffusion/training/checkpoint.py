"""Checkpoints of a training that survive being killed at any moment: checked when read, and two generations of them."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import secrets
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

NAME = "checkpoint.safetensors"
PREVIOUS = "checkpoint.previous.safetensors"


class CheckpointError(ValueError):
    """A checkpoint cannot be resumed; the message names the file and the reason."""


def write_checkpoint(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write a checkpoint; the one before stays as ``checkpoint.previous.safetensors``.

    It is written under a temporary name, brought to the disk and renamed, so that a process killed at any moment
    leaves a complete checkpoint behind. Its SHA-256 is in its header.

    Raises
    ------
    OSError
        If it cannot be written, for example for a full disk; the one before stays.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path, previous = folder / NAME, folder / PREVIOUS
    partial = folder / f".{NAME}.{secrets.token_hex(4)}.partial"
    stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    try:
        save_file(stored, partial, header | {"sha256": digest(stored, header)})
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        if path.exists():
            # A second name for the same file, then one rename: at no moment is there no checkpoint.
            link = folder / f".{PREVIOUS}.{secrets.token_hex(4)}.partial"
            _link_or_copy(path, link)
            os.replace(link, previous)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        kept = "the checkpoint before is kept: " if path.exists() else ""
        number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            number, f"cannot be written ({reason}); {kept}free some space and give the same command again", str(path)
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Tensors and metadata of the newest checkpoint that is whole; None if there is none at all.

    Raises
    ------
    CheckpointError
        If there are checkpoints and none of them is whole.
    """
    for leftover in folder.glob(".checkpoint*.partial"):
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
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error
    found = metadata.pop("sha256", None)
    if found != digest(tensors, metadata):
        raise CheckpointError(f"{path} cannot be read (its contents are damaged: the SHA-256 differs)")
    return tensors, metadata


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # file systems without hard links
        target.write_bytes(source.read_bytes())
