"""The binary file that an Interfile header describes."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

import numpy as np

from .header import Header

_logger = logging.getLogger(__name__)

_NUMBER_TYPES = {
    ("signed integer", 1): "i1",
    ("signed integer", 2): "i2",
    ("signed integer", 4): "i4",
    ("signed integer", 8): "i8",
    ("unsigned integer", 1): "u1",
    ("unsigned integer", 2): "u2",
    ("unsigned integer", 4): "u4",
    ("unsigned integer", 8): "u8",
    ("float", 4): "f4",
    ("float", 8): "f8",
}
_NUMBER_FORMATS = ("bit", "ascii", "signed integer", "unsigned integer", "float")


def read_values(header: Header, num_values: int) -> np.ndarray:
    """The stored numbers before scaling, in native byte order; the file's size is checked before allocating.

    Raises
    ------
    InterfileError
        If the type of numbers is unknown, or the data file is missing, unreadable or too short.
    """
    # The defaults are STIR's.
    number_format = header.choice("number format", _NUMBER_FORMATS, "unsigned integer")
    size = header.integer("number of bytes per pixel", minimum=1)
    if (number_format, size) not in _NUMBER_TYPES:
        raise header.unsupported(f"'number format := {number_format}' with {size} bytes per pixel")
    order = header.choice("imagedata byte order", ("LITTLEENDIAN", "BIGENDIAN"), "BIGENDIAN")
    dtype = np.dtype(_NUMBER_TYPES[number_format, size]).newbyteorder("<" if order == "LITTLEENDIAN" else ">")
    offset = header.integer("data offset in bytes", 0, minimum=0)
    path = _data_path(header)
    expected = offset + num_values * dtype.itemsize
    if not os.path.isfile(path):  # unlike Path.is_file, false for names that the system rejects
        raise header.error(
            f"its data file {path} does not exist (expected {expected} bytes, found none); "
            "correct the key 'name of data file' or put the file there"
        )
    found = path.stat().st_size
    if found < expected:
        raise header.error(
            f"its data file {path} is too short: expected {expected} bytes ({num_values} values of "
            f"{dtype.itemsize} bytes after an offset of {offset}), found {found}"
        )
    if found > expected and path.resolve() != header.path.resolve():
        _logger.warning("%s: its data file %s has %d bytes more than needed", header.path, path, found - expected)
    try:
        values = np.fromfile(path, dtype=dtype, count=num_values, offset=offset)
    except OSError as problem:
        raise header.error(f"its data file {path} cannot be read: {problem}") from problem
    if values.size != num_values:
        raise header.error(f"its data file {path} gave {values.size} values, expected {num_values}")
    return values.astype(dtype.newbyteorder("="), copy=False)


def scale_factors(header: Header, num: int) -> list[float]:
    """``num`` scale factors: 'image scaling factor' (one or a list), or else 'quantification units'."""
    units = header.number("quantification units", 1.0)
    factors = header.numbers("image scaling factor") if "image scaling factor" in header else [units]
    if len(factors) not in (1, num):
        raise header.error(f"key 'image scaling factor' needs 1 or {num} values, found {len(factors)}")
    if any(factor == 0 for factor in factors):
        raise header.error("key 'image scaling factor' must not be 0")
    if units != 1.0 and any(not math.isclose(factor, units, rel_tol=1e-5) for factor in factors):
        raise header.error(f"keys 'image scaling factor' ({factors[0]}) and 'quantification units' ({units}) differ")
    return factors * num if len(factors) == 1 else factors


def check_finite(header: Header, values: np.ndarray) -> None:
    """Raise if any value is not finite."""
    finite = np.isfinite(values)
    if not finite.all():
        first = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise header.error(
            f"its data file {_data_path(header)} holds {int((~finite).sum())} values that are not finite (NaN or "
            f"infinite as 32-bit floats), the first at index {first}"
        )


def _data_path(header: Header) -> Path:
    """Relative names are relative to the header's folder."""
    return header.path.parent / header.text("name of data file")
