"""Keys and blocks of a STIR parameter file, and their values as numbers, lists and names of classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from ...geometry.scanners import standardise as fold
from ..documents import printable

_Number = TypeVar("_Number", int, float)
_HUGE = 1e300


class ParFileError(ValueError):
    """A parameter file that cannot be read, or not as it was meant; the message begins with ``file:line:``."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


@dataclass(frozen=True)
class ParProblem:
    """A line that STIR would read otherwise than it looks; ``harmless`` if STIR's own samples have such lines."""

    line: int
    text: str
    harmless: bool = False


@dataclass
class ParKey:
    """One ``key := value``: folded name without index, value as STIR takes it for a text (variables replaced), first
    and last line of the file from 1 (a block included), ``n`` of ``key[n] := value``, and the block of the object that
    the value names, if the key makes one.
    """

    name: str
    value: str
    line: int
    last_line: int
    index: int | None = None
    block: ParBlock | None = None


@dataclass
class ParBlock:
    """Keys between ``name :=`` (folded) and ``END name :=``; the last of two equal keys counts, as in STIR."""

    name: str
    path: str
    line: int
    last_line: int = 0
    keys: list[ParKey] = field(default_factory=list)

    def key(self, name: str) -> ParKey | None:
        """The key of that name that counts; None if absent or given without a value."""
        folded = fold(name)
        return next((key for key in reversed(self.keys) if key.name == folded and key.value), None)

    def __contains__(self, name: str) -> bool:
        return self.key(name) is not None

    def text(self, name: str, default: str = "") -> str:
        """Value as a text."""
        key = self.key(name)
        return default if key is None else key.value

    def integer(self, name: str, default: int = 0) -> int:
        """Value as a whole number."""
        return self._number(name, default, int, "a whole number")

    def real(self, name: str, default: float = 0.0) -> float:
        """Value as a number."""
        return self._number(name, default, float, "a number")

    def boolean(self, name: str, default: bool = False) -> bool:
        """Value 0 or 1."""
        number = self._number(name, int(default), int, "0 or 1")
        if number not in (0, 1):
            raise self.error(name, f"must be 0 or 1, found {number}")
        return bool(number)

    def items(self, name: str) -> list[str]:
        """Elements of a list ``{a, b}``; a value without braces is a list of one; empty if absent."""
        value = self.text(name)
        if not value.startswith("{"):
            return [value] if value else []
        end = value.find("}")
        if end < 0 or not _is_rest(value[end + 1 :]):
            raise self.error(name, f"is a list that does not end with '}}': {value}")
        return [item.strip() for item in value[1:end].split(",") if item.strip()]

    def object(self, name: str) -> tuple[str, ParBlock | None]:
        """Folded name of the class and the block of a key that makes an object; ``""`` if absent or ``None``."""
        key = self.key(name)
        if key is None or fold(key.value) == "none":
            return "", None
        return fold(key.value), key.block

    def walk(self) -> Iterator[tuple[ParBlock, ParKey]]:
        """All keys with the blocks they stand in, in the order of the file."""
        for key in self.keys:
            yield self, key
            if key.block is not None:
                yield from key.block.walk()

    def error(self, name: str, text: str) -> ParFileError:
        """An error about a key, with file and line (of the block, if the key is absent)."""
        key = self.key(name)
        return ParFileError(f"{self.path}:{self.line if key is None else key.line}: '{fold(name)}' {text}")

    def _number(self, name: str, default: _Number, kind: type[_Number], expected: str) -> _Number:
        key = self.key(name)
        if key is None:
            return default
        first, _, rest = key.value.partition(" ")
        try:
            number = None if "_" in first else kind(first)  # Python would take 1_000 for a number
        except ValueError:
            number = None
        if number is None or not -_HUGE < number < _HUGE or not _is_rest(rest):
            raise self.error(name, f"must be {expected}, found {key.value!r}")
        return number


def _is_rest(text: str) -> bool:
    """Whether what follows a number is nothing or a remark."""
    return not text.strip() or text.strip().startswith(";")


def check_keys(block: ParBlock, known: Iterable[str], complaint: str) -> None:
    """Refuse keys that are not known, by name and line; keys without a value count as absent, as for STIR."""
    known = frozenset(known)
    for key in block.keys:
        if key.value and key.name not in known:
            raise ParFileError(f"{block.path}:{key.line}: {complaint} '{key.name} := {key.value}'")
