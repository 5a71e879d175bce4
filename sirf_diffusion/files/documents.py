"""Text and JSON files of users: kind of file, size and depth of nesting are checked first."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from .frames import split_frame

_MAX_DEPTH = 32
_MAX_BYTES = 4 * 1024**2


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raise ValueError for what is there and no regular file: a pipe would be waited for, a device never ends."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise ValueError(f"{os.fspath(path)} is {kind}: expected a file")


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is such a regular file; not for a name that none can have, too long or with a null byte."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


class BoundedFile(io.BufferedReader):
    """A regular file to read, for libraries that ask for as many bytes as a file says: never more than it has."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        check_regular(path)
        super().__init__(io.FileIO(path))
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """As any file."""
        return super().read(size if size is None else min(size, self._size))


def read_bytes(path: str | os.PathLike[str], most: int = _MAX_BYTES) -> bytes:
    """Content of a regular file of at most ``most`` bytes.

    Raises FileNotFoundError if there is none, and ValueError, which names it, for everything else.
    """
    path = Path(path)
    try:
        check_regular(path)
        with path.open("rb") as file:
            content = file.read(most + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > most:
        raise ValueError(f"{path} has more than the {most} bytes that are read of such a file")
    return content


def read_text(path: str | os.PathLike[str], most: int = _MAX_BYTES) -> str:
    """Text of a file, see `read_bytes`; a ValueError too if it is no UTF-8."""
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error.reason} at byte {error.start})") from error


def printable(text: str) -> str:
    r"""Text in which bytes that were no UTF-8 (kept as surrogates) are written out, such as ``\xff``: for messages."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_json(path: str | os.PathLike[str], most: int = _MAX_BYTES) -> Any:
    """A JSON file that holds a dictionary; see `read_text` and `parse_json`."""
    text = read_text(path, most)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def parse_json(text: str, kind: type = dict) -> Any:
    """A dictionary, or a list, in JSON: of at most 32 levels, all numbers finite, all texts of characters.

    Examples
    --------
    >>> parse_json('{"a": NaN}')
    Traceback (most recent call last):
        ...
    ValueError: NaN is no number of JSON
    """
    try:
        value = json.loads(text, parse_constant=_refused, parse_float=_finite)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
        deep = _is_deep(value)
    except RecursionError:
        deep = True
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if deep:
        raise ValueError(f"it is JSON of more than {_MAX_DEPTH} levels")
    if not isinstance(value, kind):
        expected = "a JSON dictionary" if kind is dict else "a JSON list"
        raise ValueError(f"expected {expected}, found {type(value).__name__}")
    return value


def digest(path: Path) -> str:
    """SHA-256 of all files in a folder, or of a file: an Interfile header with the data file that it names.

    Of ``NAME#2``, that of the whole file and the number of the frame.
    """
    frame = split_frame(path)[1]
    total = hashlib.sha256(b"" if frame is None else b"#%d" % frame)
    for each in files_of(path):
        with each.open("rb") as file:
            while block := file.read(2**20):
                total.update(block)
    return total.hexdigest()


def files_of(path: Path) -> list[Path]:
    """All files in a folder, sorted; or a file, and after an Interfile header the data file that it names."""
    path = split_frame(path)[0]
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.is_file())
    with path.open("rb") as file:
        named = re.search(rb"(?im)^[ \t!]*name of data file[ \t]*:=[ \t]*(\S.*)$", file.read(_MAX_BYTES))
    data = path
    if named:
        with suppress(KeyError):  # of a variable that is not set, which reading will explain
            data = path.parent / expanded(named[1].decode("utf-8", "replace").strip())
    return [path, data] if data != path and os.path.isfile(data) else [path]


def expanded(text: str) -> str:
    """Text with the values of environment variables ``${NAME}``, as STIR has them; KeyError of one that is not set."""
    return re.sub(r"\$\{([^{}]*)\}", lambda found: os.environ[found[1]], text)


def _refused(word: str) -> float:
    raise ValueError(f"{word} is no number of JSON")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text:.40} is too large for a number")
    return number


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_MAX_DEPTH):
        inner = [list(item.values()) if isinstance(item, dict) else item for item in level]
        level = [each for values in inner if isinstance(values, list) for each in values]
        if not level:
            return False
    return any(isinstance(item, (dict, list)) for item in level)
