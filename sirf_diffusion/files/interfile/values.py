"""The binary file beside a header: read with the header's number format and factors, written as a pair."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..atomic import atomic_path
from .header import Header, InterfileError

_NUMBER_TYPES = {
    **{("signed integer", n): f"i{n}" for n in (1, 2, 4, 8)},
    **{("unsigned integer", n): f"u{n}" for n in (1, 2, 4, 8)},
    **{("float", n): f"f{n}" for n in (4, 8)},
}
_NUMBER_FORMATS = ("bit", "ascii", "signed integer", "unsigned integer", "float")
_RESCALING = {"rescale slope": 1.0, "rescale intercept": 0.0, "rescale offset": 0.0}


def read_values(header: Header, num_values: int, in_turn: bool = False) -> np.ndarray:
    """The stored numbers of a time frame before scaling, in native byte order; the file's size is checked first."""
    # The defaults are STIR's.
    number_format = header.choice("number format", _NUMBER_FORMATS, "unsigned integer")
    size = header.integer("number of bytes per pixel", minimum=1)
    if (number_format, size) not in _NUMBER_TYPES:
        raise header.unsupported(f"'number format := {number_format}' with {size} bytes per pixel")
    order = header.choice("imagedata byte order", ("LITTLEENDIAN", "BIGENDIAN"), "BIGENDIAN")
    dtype = np.dtype(_NUMBER_TYPES[number_format, size]).newbyteorder("<" if order == "LITTLEENDIAN" else ">")
    offset, path = _offset(header, num_values * dtype.itemsize, in_turn), _data_path(header)
    expected = offset + num_values * dtype.itemsize
    if not os.path.isfile(path):  # unlike Path.is_file, false for names that the system rejects
        advice = "correct the key 'name of data file' or put the file there"
        raise header.error(f"its data file {path} does not exist (expected {expected} bytes, found none); {advice}")
    found = path.stat().st_size
    if found < expected:
        raise header.error(
            f"its data file {path} is too short: expected {expected} bytes ({num_values} values of "
            f"{dtype.itemsize} bytes after an offset of {offset}), found {found}"
        )
    if found > expected and header.num_frames == 1 and path.resolve() != header.path.resolve():
        header.warn(f"its data file {path} has {found - expected} bytes more than needed")
    try:
        values = np.fromfile(path, dtype=dtype, count=num_values, offset=offset)
    except OSError as problem:
        raise header.error(f"its data file {path} cannot be read: {problem}") from problem
    if values.size != num_values:
        raise header.error(f"its data file {path} gave {values.size} values, expected {num_values}")
    return values.astype(dtype.newbyteorder("="), copy=False)


def _offset(header: Header, size: int, in_turn: bool) -> int:
    """Where the chosen time frame begins: as told, or ``in_turn`` after the one before, as STIR has both."""
    key, offset = "data offset in bytes", 0
    for frame in range(1 if in_turn else header.frame, header.frame + 1):
        told = header.integer(key, 0, minimum=0, index=frame)
        if frame > 1 and not in_turn and not header.text(key, "", index=frame):
            raise header.error(f"key '{key} [{frame}]' is missing: where the time frame begins is not known")
        if frame > 1 and in_turn and 0 < told < offset + size:
            raise header.error(f"key '{key} [{frame}]' must be at least {offset + size}, found {told}")
        offset = offset + size if in_turn and frame > 1 and told == 0 else told
    return offset


def scale_factors(header: Header, num: int, frame: int) -> np.ndarray:
    """One factor of a time frame or ``num`` of them: 'image scaling factor', or else 'quantification units'."""
    for ending, neutral in _RESCALING.items():
        for key, index in header.keys_ending(ending):
            if header.number(key, neutral, index) != neutral:
                raise header.error(f"key '{key}' is not obeyed: scale the values and set it to {neutral:g}")
    key = "image scaling factor"
    factors = header.numbers(key, frame) if header.text(key, "", index=frame) else [1.0]
    if len(factors) not in (1, num):
        raise header.error(f"key 'image scaling factor' needs 1 or {num} values, found {len(factors)}")
    units = header.number_unless_words("quantification units", 1.0)
    if units != 1.0:
        if header.num_frames > 1:
            raise header.error("key 'quantification units' is not read with several time frames")
        if all(factor == 1.0 for factor in factors):
            factors = [units]
        elif any(factor != units for factor in factors):
            found = f"'image scaling factor' ({factors[0]}) and 'quantification units' ({units})"
            raise header.error(f"keys {found} differ")
    return np.asarray(factors, dtype=np.float32)


def check_finite(header: Header, values: np.ndarray) -> None:
    """Raise if any value is not finite."""
    finite = np.isfinite(values)
    if not finite.all():
        what = "not finite (NaN or infinite as 32-bit floats), the first at index"
        first = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise header.error(
            f"its data file {_data_path(header)} holds {int((~finite).sum())} values that are {what} {first}"
        )


def _data_path(header: Header) -> Path:
    """Relative names are relative to the header's folder."""
    return header.path.parent / header.text("name of data file")


def output_paths(path: str | os.PathLike[str], header_suffix: str) -> tuple[Path, Path]:
    """Header and data file of an output name with or without its suffix (``.hv``/``.v`` or ``.hs``/``.s``)."""
    header = Path(path)
    if header.suffix == "" and header.name:
        header = header.with_name(header.name + header_suffix)
    if header.suffix != header_suffix:
        raise InterfileError(f"cannot write {header}: the name of the header must end in '{header_suffix}'")
    return header, header.with_suffix("." + header_suffix[2:])


def write_pair(header: Path, data: Path, lines: Sequence[str], arrays: Sequence[np.ndarray], dtype: str) -> None:
    """Write arrays one after another as ``dtype`` and the header, data first, then rename both."""
    for line in lines:
        if "\n" in line or "\r" in line or line.endswith(("\\", " ")) or "${" in line:
            raise InterfileError(f"cannot write {header}: a header cannot hold the line {line!r}")
    if not header.parent.is_dir():
        raise InterfileError(f"cannot write {header}: folder {header.parent} does not exist; create it first")
    for target in (header, data):
        if target.is_dir():
            raise InterfileError(f"cannot write {target}: it is a folder")
    try:
        with atomic_path(header) as new_header, atomic_path(data) as new_data:
            with new_data.open("wb") as file:
                for array in arrays:
                    np.ascontiguousarray(array, dtype=dtype).tofile(file)
            with new_header.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
                file.write("\n".join(lines) + "\n")
    except OSError as problem:
        raise InterfileError(f"cannot write {header}: {problem.strerror or problem}") from problem


def encoded(values: np.ndarray, shape: tuple[int, ...], number_format: str) -> tuple[np.ndarray, str, list[str], float]:
    """Values as they are stored: the array, its type, the header lines that say so, and the scale factor.

    ``"float"``: ``float32``. ``"short"``: signed 16-bit integers, exact for whole numbers up to 32767, otherwise
    rounded to multiples of the 32767th part of the largest magnitude.
    """
    if tuple(values.shape) != tuple(shape):
        raise InterfileError(f"an array of shape {tuple(values.shape)} does not match its geometry's {tuple(shape)}")
    if not np.isfinite(values).all():
        raise InterfileError(f"{int((~np.isfinite(values)).sum())} values are not finite; not written")
    if number_format == "float":
        return values, "<f4", ["!number format := float", "!number of bytes per pixel := 4"], 1.0
    if number_format != "short":
        raise InterfileError(f"number_format must be 'float' or 'short', found {number_format!r}")
    largest = float(np.abs(values).max(initial=0.0))
    exact = largest <= 32767 and bool((values == np.rint(values)).all())
    scale = 1.0 if exact else largest / 32767
    stored = np.rint(values / scale)
    return stored, "<i2", ["!number format := signed integer", "!number of bytes per pixel := 2"], scale
