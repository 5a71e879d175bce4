"""Writing a header and its data file so that a failure never leaves half a pair behind."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .header import InterfileError


def output_paths(path: str | os.PathLike, header_suffix: str) -> tuple[Path, Path]:
    """Header and data file of an output name with or without its suffix (``.hv``/``.v`` or ``.hs``/``.s``)."""
    header = Path(path)
    if header.suffix == "" and header.name:
        header = header.with_name(header.name + header_suffix)
    if header.suffix != header_suffix:
        raise InterfileError(f"cannot write {header}: the name of the header must end in '{header_suffix}'")
    return header, header.with_suffix("." + header_suffix[2:])


def write_pair(header: Path, data: Path, lines: Sequence[str], arrays: Sequence[np.ndarray], dtype: str) -> None:
    """Write arrays one after another as ``dtype`` and the header, data first, then rename both.

    Raises
    ------
    InterfileError
        If the folder does not exist or a file cannot be written. Existing files are then as they were.
    """
    for line in lines:
        if "\n" in line or "\r" in line or line.endswith(("\\", " ")) or "${" in line:
            raise InterfileError(f"cannot write {header}: a header cannot hold the line {line!r}")
    if not header.parent.is_dir():
        raise InterfileError(f"cannot write {header}: folder {header.parent} does not exist; create it first")
    for target in (header, data):
        if target.is_dir():
            raise InterfileError(f"cannot write {target}: it is a folder")
    token = f".{os.getpid()}-{secrets.token_hex(4)}.tmp"
    temporary = {target: target.with_name(f".{target.name}{token}") for target in (data, header)}
    try:
        with temporary[data].open("xb") as file:
            for array in arrays:
                np.ascontiguousarray(array, dtype=dtype).tofile(file)
        with temporary[header].open("x", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            file.write("\n".join(lines) + "\n")
        for target in (data, header):
            os.replace(temporary[target], target)
    except OSError as problem:
        raise InterfileError(f"cannot write {header}: {problem.strerror or problem}") from problem
    finally:
        for leftover in temporary.values():
            leftover.unlink(missing_ok=True)


def encoded(values: np.ndarray, number_format: str) -> tuple[np.ndarray, str, list[str], float]:
    """Values as they are stored: the array, its type, the header lines that say so, and the scale factor.

    ``"float"``: ``float32``. ``"short"``: signed 16-bit integers, exact for whole numbers up to 32767, otherwise
    rounded to multiples of the 32767th part of the largest magnitude.
    """
    if number_format == "float":
        return values, "<f4", ["!number format := float", "!number of bytes per pixel := 4"], 1.0
    if number_format != "short":
        raise InterfileError(f"number_format must be 'float' or 'short', found {number_format!r}")
    largest = float(np.abs(values).max(initial=0.0))
    exact = largest <= 32767 and bool((values == np.rint(values)).all())
    scale = 1.0 if exact else largest / 32767
    stored = np.rint(values / scale)
    return stored, "<i2", ["!number format := signed integer", "!number of bytes per pixel := 2"], scale


def checked_array(values: np.ndarray, shape: tuple[int, ...], what: str) -> np.ndarray:
    """The array itself, if it has the shape of its geometry and only finite values."""
    if tuple(values.shape) != tuple(shape):
        raise InterfileError(f"{what} of shape {tuple(values.shape)} does not match its geometry's {tuple(shape)}")
    if not np.isfinite(values).all():
        raise InterfileError(f"{what} has {int((~np.isfinite(values)).sum())} values that are not finite; not written")
    return values


def first_lines(data: Path) -> list[str]:
    """First lines of every header, up to the number format."""
    return ["!INTERFILE  :=", f"name of data file := {data.name}"]
