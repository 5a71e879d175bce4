"""Lines of a STIR parameter file to a tree: where blocks begin and end, as STIR's own parser takes them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .keys import OBJECT_KEYS
from .tree import ParBlock, ParFileError, ParKey, ParProblem, fold

MAX_LINES = 20_000
MAX_LINE = 1 << 16  # characters of a line, continuations and variables included
MAX_NAME = 256  # characters of a key
MAX_DEPTH = 40  # blocks within blocks; STIR's own samples have 7
_MAX_VARIABLES = 100  # in one line; more are variables that contain themselves


class TreeReader:
    """Reads one text; see :meth:`sirf_diffusion.files.parfile.ParFile.parse`.

    Takes time and memory in proportion to the text, and refuses one with more lines, longer lines or deeper blocks than
    a file for STIR has use for.
    """

    def __init__(self, text: str, path: str, environment: Mapping[str, str]) -> None:
        self.path, self.environment = path, environment
        self.problems: list[ParProblem] = []
        self.lines = list(self._joined(text))
        self.at = self.depth = 0
        # Where a block of each name ends at the latest.
        self._ends = {_key_of(line.text)[0]: k for k, line in enumerate(self.lines) if _may_end(line.text)}

    def read(self) -> ParBlock:
        """The tree; what STIR would read otherwise than it looks is left in ``problems``."""
        # STIR passes over lines of blanks here, but neither over empty lines nor over comments.
        found = next(((k, line) for k, line in enumerate(self.lines) if not line.blank and not line.comment), None)
        if found is None or ":=" not in found[1].text:
            raise ParFileError(f"{self.path}:1: not a parameter file: expected '<Name>Parameters :=' in the first line")
        first = found[1]
        if any(line.comment or not line.text for line in self.lines[: found[0]]):
            self._problem(first.number, "STIR wants the first key in the first line, before any comment or empty line")
        self.at = found[0] + 1
        block = ParBlock(self._parts(first)[0], self.path, first.number)
        self._fill(block, _stops(block.name) | {"end"})
        if not block.last_line:
            block.last_line = self.lines[-1].last
            last = next(line for line in reversed(self.lines) if not line.blank)
            self._problem(last.number, "the file ends without 'END :='; is it complete?", harmless=True)
        return block

    def _fill(self, block: ParBlock, stops: frozenset[str]) -> None:
        while self.at < len(self.lines):
            line = self.lines[self.at]
            self.at += 1
            if line.blank or line.comment:
                continue
            name, index, value = self._parts(line)
            if name in stops:
                block.last_line = line.last
                return
            key = ParKey(name, value, line.number, line.last, index)
            if ":=" not in line.text:
                text = f"no ':=' in {line.text.strip()[:80]!r}; STIR leaves such a line out"
                self._problem(line.number, text, harmless="=" not in line.text)
            elif _makes_object(name) and value:
                self._read_object(key)
            elif not value and (name.startswith("end ") or self._is_block(name)):
                self._problem(line.number, f"'{name}' belongs to no object that a key such as 'prior type' made")
            block.keys.append(key)

    def _read_object(self, key: ParKey) -> None:
        """The block must begin on the next line; only lines of blanks may come between."""
        start = self.at
        while self.at < len(self.lines) and self.lines[self.at].blank and self.lines[self.at].text:
            self.at += 1
        between = self.at
        while self.at < len(self.lines) and (self.lines[self.at].blank or self.lines[self.at].comment):
            self.at += 1
        follows = self.lines[self.at] if self.at < len(self.lines) else None
        name, _, value = self._parts(follows) if follows is not None else ("", None, "")
        none = fold(key.value) == "none"
        if none or follows is None or value or not self._is_block(name):
            if not none:
                self._problem(key.line, f"no block '<Name> Parameters :=' ... 'END' after '{key.name} := {key.value}'")
            self.at = start
            return
        if self.at != between:
            self._problem(
                key.line,
                f"the block '{name}' must begin on the line after '{key.name} := {key.value}': STIR drops the object "
                "if an empty line or a comment comes between",
            )
        if self.depth == MAX_DEPTH:
            raise ParFileError(f"{self.path}:{key.line}: more than {MAX_DEPTH} blocks within each other")
        self.at += 1
        self.depth += 1
        key.block = ParBlock(name, self.path, follows.number)
        self._fill(key.block, _stops(name))
        self.depth -= 1
        key.last_line = key.block.last_line

    def _is_block(self, name: str) -> bool:
        """Whether an ``END`` of that name follows."""
        return any(self._ends.get(stop, -1) >= self.at for stop in _stops(name))

    def _parts(self, line: _Line) -> tuple[str, int | None, str]:
        parts = _key_of(self._expanded(line))
        if len(parts[0]) > MAX_NAME:
            raise ParFileError(f"{self.path}:{line.number}: a key of more than {MAX_NAME} characters")
        return parts

    def _expanded(self, line: _Line) -> str:
        for _ in range(_MAX_VARIABLES):
            start = line.text.find("${")
            end = line.text.find("}", start)
            if start < 0 or end < 0:
                return line.text
            name = line.text[start + 2 : end]
            value = self.environment.get(name)
            if value is None:
                text = f"the environment has no variable {name}; STIR puts nothing in its place"
                self._problem(line.number, text)
            # Kept, so that what is looked at twice is reported once.
            line.text = line.text[:start] + (value or "") + line.text[end + 1 :]
            self._check_length(line.text, line.number)
        raise ParFileError(f"{self.path}:{line.number}: the variable {name} contains itself")

    def _joined(self, text: str) -> Iterator[_Line]:
        lines = text.split("\n")
        if len(lines) > MAX_LINES:
            raise ParFileError(f"{self.path}: not a parameter file: it has {len(lines)} lines, more than {MAX_LINES}")
        pending: list[str] = []
        for number, line in enumerate(lines, 1):
            pending.append(line.removesuffix("\r"))
            if pending[-1].endswith("\\") and number < len(lines):
                pending[-1] = pending[-1][:-1]
                continue
            joined = "".join(pending)
            self._check_length(joined, number)
            yield _Line(number - len(pending) + 1, number, joined)
            pending = []

    def _check_length(self, text: str, number: int) -> None:
        if len(text) > MAX_LINE:
            raise ParFileError(f"{self.path}:{number}: a line of {len(text)} characters; at most {MAX_LINE} are read")

    def _problem(self, number: int, text: str, harmless: bool = False) -> None:
        self.problems.append(ParProblem(number, text, harmless))


@dataclass
class _Line:
    number: int
    last: int
    text: str

    @property
    def blank(self) -> bool:
        return not self.text.strip()

    @property
    def comment(self) -> bool:
        return self.text.lstrip(" \t_!").startswith(";")


def _key_of(text: str) -> tuple[str, int | None, str]:
    """Folded key, index and value: the key ends at ``:=`` or ``[``, the value begins after the first ``=``."""
    end = re.search(r":=|\[|:$", text)
    name = fold(text[: end.start()] if end else text)
    index = None
    if end is not None and end[0] == "[" and (match := re.match(r"\[\s*(\d{1,9})\s*\]", text[end.start() :])):
        index = int(match[1])
    return name, index, text.partition("=")[2].strip(" \t")


def _may_end(text: str) -> bool:
    return text.lstrip(" \t_!")[:3].lower() == "end"


def _stops(name: str) -> frozenset[str]:
    return frozenset((f"end {name}", *_OTHER_STOPS.get(name, ())))


def _makes_object(name: str) -> bool:
    return name in OBJECT_KEYS or bool(re.fullmatch(r"(bin normalisation|transformation) type for gate \d+", name))


# Blocks that may end otherwise than with 'END' and their first key.
_OTHER_STOPS = {
    "ellipsoidal cylinder parameters": ("end",),
    "ellipsoid parameters": ("end",),
    "box parameters": ("end",),
    "discretised shape3d parameters": ("end",),
    "rigid object 3d motion from polaris parameters": ("end rigid object 3d motion from polaris",),
    "postfilteringparameters": ("end postfiltering parameters",),
}
