"""Versions of what files hold, and the one rule for reading them.

Older versions stay readable; a file without a version is of the first, from before there was a number; a newer one is
refused, because what it says may mean something else.
"""

from __future__ import annotations

import os
from numbers import Integral
from typing import Any

from .documents import read_json

KEY = "schema_version"


def check_version(found: Any, newest: int = 1, key: str = KEY) -> None:
    """Raise ValueError unless ``found`` is a version from 1 to ``newest``.

    Examples
    --------
    >>> check_version(2)
    Traceback (most recent call last):
    ValueError: made by a newer version of sirf-diffusion (schema_version 2, this one reads up to 1): update it
    """
    if not isinstance(found, Integral) or isinstance(found, bool) or found < 1:
        raise ValueError(f"{key} must be a whole number from 1, found {str(found)[:40]!r}")
    if found > newest:
        name = f"{key} {found}, this one reads up to {newest}"
        raise ValueError(f"made by a newer version of sirf-diffusion ({name}): update it")


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `write_json` wrote, without its version.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no JSON object, or made by a newer version; the message names the file.
    """
    content = read_json(path)
    try:
        check_version(content.pop(KEY, 1))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return content
