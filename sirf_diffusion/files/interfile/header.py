"""Interfile headers by STIR's rules: which line sets which key, and to what.

Lines ``key := value`` count in their order. A key ends at ``:=`` or ``[`` and ignores case, ``!``, blanks and
underscores; its value is what follows the first ``=``. ``key [n]`` is element n of a key that has several; values in
braces are lists; a line that begins with ``;`` is a comment. The last value of a key counts, an empty one never. A key
that tells how many elements others have must stand before them.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...geometry.scanners import standardise
from ..documents import expanded, printable
from ..frames import choose_frame, split_frame
from .keys import (
    ALIASES,
    COUNTS,
    DATA_KINDS,
    ELEMENTS,
    KNOWN,
    LAYOUT,
    NUMBER_OR_WORDS,
    ONLY_PET,
    RING_DIFFERENCES,
    SIEMENS_POSITION,
    WITHOUT_VALUE,
)

_logger = logging.getLogger(__name__)

_MAX_HEADER_BYTES = 1 << 20  # the longest real headers, with several hundred segments, are a few kilobytes
# What a stream of C++ reads as a number, and a remainder that leaves no doubt of it.
_INTEGER = re.compile(r"([+-]?[0-9]{1,18})(?![0-9.,eExX+-])")
_NUMBER = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)(?:[+-]0+)?(?![0-9.,eExX+-])")


class InterfileError(ValueError):
    """A header or its data file is missing, unreadable, contradictory or cannot be written."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class UnsupportedError(InterfileError):
    """A valid file that the embedded engine cannot read; the message names the key and the engine that can."""


class Header:
    """Parsed Interfile header.

    Raises InterfileError if the file cannot be read, does not begin with ``!INTERFILE :=``, or STIR could not read a
    line.

    Parameters
    ----------
    path
        Header file; ``NAME#2`` for its second time frame.
    stir
        By STIR's rules; otherwise every key is kept, whatever its index and place, as for headers of other programs.
    """

    def __init__(self, path: str | os.PathLike[str], stir: bool = True) -> None:
        self.path, self._asked = split_frame(path)
        self._stir = stir
        self._values: dict[str, dict[int, str]] = {}
        self._unknown: dict[str, None] = {}
        self._elements = dict(ELEMENTS)
        self._counts = {"dimensions": 2, "offsets": 0, "data sets": 1, "frames": 0, "windows": 1, "types": 1}
        self._settled = self._is_pet = False
        for key, index, value in self._lines():
            if stir and key == "%sms-mi version number":
                raise self.unsupported(f"a Siemens header ('{key}')", "STIR or SIRF to convert it")
            if not stir or key not in KNOWN:
                if stir and key != SIEMENS_POSITION:
                    self._unknown[key] = None
                self._values.setdefault(key, {})[max(1, index)] = value
            elif key not in ONLY_PET or self._is_pet:
                self._set(key, index, value)
            elif key == "data offset in bytes" and value not in ("", "0"):
                raise self.error(f"key '{key}' must follow 'type of data := PET'; elsewhere STIR ignores it")

    def _lines(self) -> Iterator[tuple[str, int, str]]:
        """Key, index (0 if there is none) and value of each line up to the stop key."""
        for number, raw in enumerate(_logical_lines(_header_text(self.path))):
            line = self._expanded(raw) if number and not raw.startswith(";") else raw
            key, index = _key_and_index(line)
            if number == 0 and (":" not in line or standardise(line.partition(":")[0]) != "interfile"):
                several = "; it lists several files (Multi): give one of them" if line.startswith("Multi") else ""
                raise self.error(f"not an Interfile header (the first line must be '!INTERFILE :='){several}")
            if key == "end of interfile":
                return
            if number > 0 and key and not key.startswith(";"):
                yield ALIASES.get(key, key), index, line.partition("=")[2].strip(" \t")

    def _expanded(self, line: str) -> str:
        try:
            return expanded(line)
        except KeyError as missing:
            raise self.error(f"environment variable {missing} is not set; it stands in '{line:.80}'") from missing

    def _set(self, key: str, index: int, value: str) -> None:
        if key in RING_DIFFERENCES:
            if self._counts["dimensions"] not in (4, 5):
                raise self.error(f"key '{key}' must follow 'number of dimensions', which must be 4")
            self._settled = True
        if self._settled and key == "tof mashing factor" and value not in ("", "0"):
            raise self.unsupported(f"time-of-flight data ('TOF mashing factor := {value:.40}')", "STIR or SIRF")
        if self._settled and key in LAYOUT:
            raise self.error(f"key '{key}' must stand before the ring differences per segment")
        if not value:
            if key in COUNTS:  # without a value the number stays, but STIR makes room for as many anew
                self._resize(key)
            return
        if key in WITHOUT_VALUE:
            index = 0
        elif key in self._elements:
            most = self._counts.get(self._elements[key], 1)
            if not 1 <= index <= most:
                raise self.error(
                    f"key '{key}' has {most} elements here and needs an index, found [{index}]; keys such as "
                    "'number of dimensions' stand before what they count"
                )
        elif index:
            raise self.error(f"key '{key}' takes no index, found [{index}]")
        values = self._values.setdefault(key, {})
        if key in NUMBER_OR_WORDS and values.get(index or 1) and value[0] not in "+-.0123456789":
            return
        values[index or 1] = value
        if key in COUNTS:
            self._resize(key)
        elif key == "type of data":
            self._is_pet = self.choice(key, DATA_KINDS) == "PET" or self._is_pet
        elif key == "version of keys" and value == "STIR3.0":
            self._elements = {key: group for key, group in ELEMENTS.items() if group != "windows"}

    def _resize(self, key: str) -> None:
        number = self.integer(key, 2 if key == "number of dimensions" else 1, minimum=1)
        self._counts[COUNTS[key]] = number
        if key == "number of dimensions":
            self._counts["offsets"] = number
            self._values.pop("first pixel offset (mm)", None)
        self._counts["data sets"] = max(1, self._counts["frames"]) * self._counts["types"]
        lists = [text for text in self._values.get("image scaling factor", {}).values() if "," in text]
        if lists and COUNTS[key] in ("frames", "types"):
            raise self.error(f"key '{key}' must stand before a list of image scaling factors; STIR forgets all but one")
        for name in self._elements.keys() & self._values.keys():
            most = self._counts.get(self._elements[name], 1)
            self._values[name] = {k: text for k, text in self._values[name].items() if k <= most}

    @property
    def num_frames(self) -> int:
        """Number of time frames."""
        return self.integer("number of time frames", 1, minimum=1)

    @property
    def frame_chosen(self) -> bool:
        """Whether the name asked for a time frame."""
        return self._asked is not None

    @property
    def frame(self) -> int:
        """The time frame that is read, from 1."""
        try:
            return choose_frame(self._asked, self.num_frames)
        except InterfileError:
            raise
        except ValueError as problem:
            found = f"('number of time frames := {self.num_frames}')"
            raise UnsupportedError(f"{self.path}: {problem} {found}") from problem

    def error(self, text: str) -> InterfileError:
        """Exception whose message begins with the header's path."""
        return InterfileError(f"{self.path}: {text}")

    def warn(self, text: str) -> None:
        """Log a warning that begins with the header's path."""
        _logger.warning("%s: %s", self.path, printable(text))

    def unsupported(self, text: str, engine: str = "STIR") -> UnsupportedError:
        """Exception that names an engine that can read the file."""
        return UnsupportedError(f"{self.path}: {text}, which the embedded engine does not support; use {engine}")

    def __contains__(self, key: str) -> bool:
        return any(self._values.get(standardise(key), {}).values())

    def put(self, key: str, value: str, index: int = 1) -> None:
        """Set a value."""
        self._values.setdefault(key, {})[index] = value

    def rename(self, key: str, new: str) -> None:
        """Give the values of a key, if there are any, to another one."""
        if key in self._values:
            self._values[new] = self._values.pop(key)

    def keys_ending(self, ending: str) -> list[tuple[str, int]]:
        """Keys of the header that end so, and their indices."""
        return [(key, index) for key, values in self._values.items() if key.endswith(ending) for index in values]

    def text(self, key: str, default: str | None = None, index: int = 1) -> str:
        """Value of a key; an error if it is absent or empty and has no default."""
        value = self._values.get(standardise(key), {}).get(index) or default
        if value is None:
            raise self.error(f"key '{_shown(key, index)}' is missing")
        return value

    def choice(self, key: str, options: Iterable[str], default: str | None = None) -> str:
        """Value that must be one of some words, in the case of ``options``."""
        value = self.text(key, default)
        by_name = {standardise(option): option for option in options}
        if standardise(value) not in by_name:
            raise self.error(f"key '{key}' must be one of {', '.join(by_name.values())}; found '{value:.40}'")
        return by_name[standardise(value)]

    def integer(self, key: str, default: int | None = None, minimum: int | None = None, index: int = 1) -> int:
        """Whole number; what follows it is a comment."""
        text = self.text(key, None if default is None else str(default), index)
        return self._integer(text, _shown(key, index), minimum)

    def number(self, key: str, default: float | None = None, index: int = 1) -> float:
        """Finite number; what follows it is a comment."""
        return self._number(self.text(key, None if default is None else repr(default), index), _shown(key, index))

    def number_unless_words(self, key: str, default: float, index: int = 1) -> float:
        """Number, or the default where there are words instead, as in STIR."""
        text = self.text(key, repr(default), index)
        if text[0] in "+-.0123456789":
            return self._number(text, _shown(key, index))
        self.warn(f"'{key} := {text:.40}' is no number; taken as not given, as in STIR")
        return default

    def integers(self, key: str, index: int = 1, minimum: int | None = None) -> list[int]:
        """List of whole numbers in braces; a bare number is a list of one."""
        return [self._integer(text, _shown(key, index), minimum) for text in self.items(key, index)]

    def numbers(self, key: str, index: int = 1) -> list[float]:
        """List of finite numbers in braces; a bare number is a list of one."""
        return [self._number(text, _shown(key, index)) for text in self.items(key, index)]

    def size(self, key: str, index: int = 1) -> int:
        """One positive whole number, with or without braces."""
        values = self.integers(key, index, minimum=1)
        if len(values) != 1:
            raise self.error(f"key '{_shown(key, index)}' must be one number, found {len(values)}")
        return values[0]

    def items(self, key: str, index: int = 1) -> list[str]:
        """Texts of a list in braces; without braces there is one."""
        text = self.text(key, index=index)
        if not text.startswith("{"):
            return [text]
        inner, brace, _ = text[1:].partition("}")
        if not brace:
            raise self.error(f"key '{_shown(key, index)}': the list has no closing brace")
        return [item.strip() for item in inner.split(",")]

    def _integer(self, text: str, key: str, minimum: int | None) -> int:
        found = _INTEGER.match(self._first(text, key))
        if found is None:
            raise self.error(f"key '{key}' must be a whole number, found '{text:.40}'")
        if minimum is not None and int(found[1]) < minimum:
            raise self.error(f"key '{key}' must be at least {minimum}, found {found[1]}")
        return int(found[1])

    def _number(self, text: str, key: str) -> float:
        if not self._stir:
            text = re.sub(r"^([+-]?[0-9.]+)([+-][0-9]+)", r"\1e\2", text)  # as Fortran may write an exponent
        found = _NUMBER.match(self._first(text, key))
        value = float(found[1]) if found else math.nan
        if not math.isfinite(value):
            raise self.error(f"key '{key}' must be a number, found '{text:.40}'")
        return value

    def _first(self, text: str, key: str) -> str:
        """The first of a list without braces, as STIR reads it; two numbers may be one with a decimal comma."""
        if not self._stir or "," not in text or re.fullmatch(r"[+-]?[0-9]+,[0-9]+(?:[eE][+-]?[0-9]+)?", text):
            return text
        self.warn(f"'{key} := {text:.40}' is a list without braces: its first value counts")
        return text.partition(",")[0]

    def warn_of_unread_keys(self) -> None:
        """Say once which keys STIR would not know either."""
        if self._unknown:
            names = ", ".join(f"'{key:.60}'" for key in sorted(self._unknown)[:50])
            self.warn(f"ignored unknown keys: {names}")


def _shown(key: str, index: int) -> str:
    return key if index == 1 else f"{key} [{index}]"


def _key_and_index(line: str) -> tuple[str, int]:
    bracket, ends = line.find("["), [place for place in (line.find("["), line.find(":=")) if place >= 0]
    key = standardise(line[: min(ends)] if ends else line.removesuffix(":"))
    if bracket < 0 or ":" in line[:bracket]:
        return key, 0
    found = re.match(r"\s*([+-]?[0-9]{1,9})", line[bracket + 1 : bracket + 20])
    return key, int(found[1]) if found and "]" in line[bracket:] else 0


def _header_text(path: Path) -> str:
    if path.suffix.lower() in (".v", ".s"):
        raise InterfileError(f"{path} is named like a data file; give its header (.h{path.suffix[1:].lower()})")
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise OSError("it is no regular file")
        with path.open("rb") as file:
            raw = file.read(_MAX_HEADER_BYTES)
        if len(raw) == _MAX_HEADER_BYTES and re.search(rb"(?i)end[ _]of[ _]interfile", raw) is None:
            raise OSError(f"its first {_MAX_HEADER_BYTES} bytes have no line '!END OF INTERFILE :='")
    except (OSError, ValueError) as problem:  # ValueError: a name with a null byte
        raise InterfileError(f"cannot read header {path}: {getattr(problem, 'strerror', None) or problem}") from problem
    # Undecodable bytes survive in file names; binary data may follow the stop key in the same file.
    return raw.decode("utf-8", "surrogateescape")


def _logical_lines(text: str) -> Iterator[str]:
    """Lines that are not blank, with those joined that end in a backslash."""
    parts: list[str] = []
    for line in text.split("\n"):
        line = line.removesuffix("\r")
        parts.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            yield "".join(parts).strip(" \t")
            parts = []
    if parts:
        yield "".join(parts).strip(" \t")
