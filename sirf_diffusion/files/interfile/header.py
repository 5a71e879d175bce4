"""Interfile headers as STIR understands them: keys and values.

A header is a text of lines ``key := value``. Keys ignore case, ``!``, blanks and underscores; ``key [n] := value`` is
the n-th element of a vectorised key; values in braces are lists; a line that begins with ``;`` is a comment.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path

from ...geometry.scanners import standardise

_logger = logging.getLogger(__name__)

_MAX_HEADER_BYTES = 1 << 20  # the longest real headers, with several hundred segments, are a few kilobytes


class InterfileError(ValueError):
    """A header or its data file is missing, unreadable, contradictory or cannot be written."""


class UnsupportedError(InterfileError):
    """A valid file that the embedded engine cannot read; the message names the key and the engine that can."""


class Header:
    """Parsed Interfile header.

    Parameters
    ----------
    path
        Header file.

    Raises
    ------
    InterfileError
        If the file cannot be read, does not begin with ``!INTERFILE :=``, or a key's index is malformed.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._entries: dict[str, dict[int, str]] = {}
        self._asked: set[str] = set()
        self._parse(_header_text(self.path))

    def _parse(self, text: str) -> None:
        lines = (line for line in _logical_lines(text) if line and not line.startswith(";"))
        if standardise(next(lines, "").split(":=")[0]) != "interfile":
            raise InterfileError(f"{self.path}: not an Interfile header (the first line must be '!INTERFILE :=')")
        for line in lines:
            found = re.match(r"(.*?)(?:\[([^\]]*)\]\s*)?:=(.*)$", line, re.DOTALL)
            if found is None:
                _logger.warning("%s: ignored a line without ':=': %.60r", self.path, line)
                continue
            key, index, value = standardise(found[1]), found[2], found[3].strip()
            if key == "end of interfile":
                return
            if index is not None and not re.fullmatch(r"\s*[0-9]{1,6}\s*", index):
                raise InterfileError(f"{self.path}: index of key '{key}' must be a whole number, found [{index}]")
            self._entries.setdefault(key, {})[int(index) if index else 1] = self._expand(value)

    def _expand(self, value: str) -> str:
        def replace(found: re.Match) -> str:
            if found[1] not in os.environ:
                raise InterfileError(f"{self.path}: environment variable '{found[1]}' in '{value}' is not set")
            return os.environ[found[1]]

        return re.sub(r"\$\{([^}]*)\}", replace, value)

    def error(self, text: str) -> InterfileError:
        """Exception whose message begins with the header's path."""
        return InterfileError(f"{self.path}: {text}")

    def unsupported(self, text: str, engine: str = "STIR") -> UnsupportedError:
        """Exception that names an engine that can read the file."""
        return UnsupportedError(f"{self.path}: {text}, which the embedded engine does not support; use {engine}")

    def __contains__(self, key: str) -> bool:
        self._asked.add(standardise(key))
        return bool(self._entries.get(standardise(key), {}))

    def text(self, key: str, default: str | None = None, index: int = 1) -> str:
        """Value of a key; an error if it is absent and has no default. An empty value counts as absent."""
        name = standardise(key)
        self._asked.add(name)
        value = self._entries.get(name, {}).get(index, "")
        if value:
            return value
        if default is None:
            raise self.error(f"key '{_shown(key, index)}' is missing")
        return default

    def choice(self, key: str, options: Iterable[str], default: str | None = None) -> str:
        """Value that must be one of some words, in the case of ``options``."""
        value = self.text(key, default)
        by_name = {standardise(option): option for option in options}
        if standardise(value) not in by_name:
            raise self.error(f"key '{key}' must be one of {', '.join(by_name.values())}; found '{value}'")
        return by_name[standardise(value)]

    def integer(self, key: str, default: int | None = None, index: int = 1, minimum: int | None = None) -> int:
        """Whole number."""
        text = self.text(key, None if default is None else str(default), index)
        return self._integer(_without_comment(text), _shown(key, index), minimum)

    def number(self, key: str, default: float | None = None, index: int = 1) -> float:
        """Finite number."""
        text = self.text(key, None if default is None else repr(default), index)
        return self._number(_without_comment(text), _shown(key, index))

    def integers(self, key: str, index: int = 1, minimum: int | None = None) -> list[int]:
        """List of whole numbers in braces; a bare number is a list of one."""
        return [self._integer(t, _shown(key, index), minimum) for t in self._items(key, index)]

    def numbers(self, key: str, index: int = 1) -> list[float]:
        """List of finite numbers in braces; a bare number is a list of one."""
        return [self._number(t, _shown(key, index)) for t in self._items(key, index)]

    def words(self, key: str) -> list[str]:
        """List of words in braces, standardised."""
        return [standardise(t) for t in self._items(key, 1) if t]

    def _items(self, key: str, index: int) -> list[str]:
        text = _without_comment(self.text(key, index=index))
        if text.startswith("{"):
            if not text.endswith("}"):
                raise self.error(f"key '{_shown(key, index)}': the list has no closing brace")
            text = text[1:-1]
        return [item.strip() for item in text.split(",")]

    def _integer(self, text: str, key: str, minimum: int | None) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            raise self.error(f"key '{key}' must be a whole number, found '{text:.40}'")
        if minimum is not None and int(text) < minimum:
            raise self.error(f"key '{key}' must be at least {minimum}, found {text}")
        return int(text)

    def _number(self, text: str, key: str) -> float:
        plain = re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text)
        value = float(text) if plain else math.nan
        if not math.isfinite(value):
            raise self.error(f"key '{key}' must be a number, found '{text:.40}'")
        return value

    def warn_of_unread_keys(self) -> None:
        """Say once which keys were neither used nor known to be without meaning for a reconstruction."""
        ignored = sorted(key for key in self._entries if key not in self._asked and key not in _HARMLESS)
        if ignored:
            _logger.warning("%s: ignored unknown keys: %s", self.path, ", ".join(f"'{key}'" for key in ignored))

    def size(self, key: str, index: int = 1) -> int:
        """One positive whole number, with or without braces."""
        values = self.integers(key, index, minimum=1)
        if len(values) != 1:
            raise self.error(f"key '{_shown(key, index)}' must be one number, found {len(values)}")
        return values[0]


def _without_comment(text: str) -> str:
    # STIR reads a number and does not look at what follows; headers with a comment there are in use.
    return text.split(";")[0].strip()


def _shown(key: str, index: int) -> str:
    return key if index == 1 else f"{key} [{index}]"


def _header_text(path: Path) -> str:
    if path.suffix.lower() in (".v", ".s"):
        raise InterfileError(f"{path} is named like a data file; give its header (.h{path.suffix[1:].lower()})")
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_HEADER_BYTES)
    except (OSError, ValueError) as problem:  # ValueError: a name with a null byte
        raise InterfileError(f"cannot read header {path}: {getattr(problem, 'strerror', None) or problem}") from problem
    # Undecodable bytes survive in file names; binary data may follow the stop key in the same file.
    return raw.decode("utf-8", "surrogateescape")


def _logical_lines(text: str) -> Iterable[str]:
    pending = ""
    for line in text.split("\n"):
        line = pending + line.rstrip("\r")
        if line.endswith("\\"):
            pending = line[:-1]
            continue
        pending = ""
        yield line.strip()
    if pending:
        yield pending.strip()


_HARMLESS = frozenset(
    standardise(key)
    for key in (
        "general data", "general image data", "pet study (emission data)", "pet study (image data)",
        "pet study (general)", "image data description", "spect study (general)", "version of keys",
        "imaging modality", "type of data", "originating system", "patient orientation", "patient rotation",
        "patient name", "patient id", "patient dob", "patient sex", "study id", "study date", "study time",
        "calibration factor", "isotope name", "number of radionuclides", "radionuclide name",
        "radionuclide halflife (sec)", "radionuclide branching factor", "process status", "data format",
        "image relative start time (sec)", "image duration (sec)", "maximum pixel count", "minimum pixel count",
        "number of energy windows", "energy window lower level", "energy window upper level",
        "start horizontal bed position (mm)", "start vertical bed position (mm)", "index nesting level",
        "image data type description", "scanner parameters", "end scanner parameters", "scanner type",
        "energy resolution", "reference energy (in kev)", "transaxial fov diameter (cm)", "applied corrections",
        "effective central bin size (cm)", "slice thickness (pixels)", "total number of images",
        "maximum number of (unmashed) tof time bins", "number of tof time bins", "size of unmashed tof time bins (ps)",
        "size of timing bin (ps)", "tof timing resolution (ps)", "timing resolution (ps)", "name of crystal map",
        "scanner geometry (blocksoncylindrical/cylindrical/generic)",
        "distance between crystals in axial direction (cm)", "distance between crystals in transaxial direction (cm)",
        "distance between blocks in axial direction (cm)", "distance between blocks in transaxial direction (cm)",
    )
)  # fmt: skip
