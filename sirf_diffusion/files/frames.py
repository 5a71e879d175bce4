"""One time frame of a file that has several: ``NAME#2``, wherever a file is named."""

from __future__ import annotations

import os
import re
from pathlib import Path


def split_frame(path: str | os.PathLike[str]) -> tuple[Path, int | None]:
    """The file, and the number of the frame, from 1, that its name asks for; a file of that very name comes first.

    Examples
    --------
    >>> split_frame("dynamic.hs#2")
    (PosixPath('dynamic.hs'), 2)
    >>> split_frame("static.hs")
    (PosixPath('static.hs'), None)
    """
    name, sign, number = os.fspath(path).rpartition("#")
    if not (sign and name and re.fullmatch("[0-9]{1,6}", number)) or os.path.exists(path):
        return Path(path), None
    return Path(name), int(number)


def choose_frame(frame: int | None, number: int) -> int:
    """The number of the frame to read, of ``number`` that there are.

    Raises ValueError if none was chosen of several, or one that there is not.
    """
    if frame is None and number == 1:
        return 1
    if frame is None:
        raise ValueError(f"it has {number} time frames: choose one by NAME#1 to NAME#{number}")
    if not 1 <= frame <= number:
        raise ValueError(f"frame #{frame} was asked for, of {number}: they count from 1")
    return frame
