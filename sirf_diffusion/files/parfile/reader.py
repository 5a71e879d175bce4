"""Lines of a STIR parameter file to a tree: where blocks begin and end, as STIR's own parser takes them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .tree import ParBlock, ParFileError, ParKey, ParProblem, fold

_MAX_VARIABLES = 100  # in one line; more are variables that contain themselves


class TreeReader:
    """Reads one text; see :meth:`sirf_diffusion.files.parfile.ParFile.parse`.

    Parameters
    ----------
    text
        The text.
    path
        File, for messages.
    environment
        What ``${NAME}`` stands for.
    """

    def __init__(self, text: str, path: str, environment: Mapping[str, str]) -> None:
        self.path, self.environment = path, environment
        self.problems: list[ParProblem] = []
        self.lines = list(_joined(text))
        self.at = 0

    def read(self) -> ParBlock:
        """The tree; what STIR would read otherwise than it looks is left in ``problems``."""
        # STIR passes over lines of blanks here, but neither over empty lines nor over comments.
        first = next((line for line in self.lines if not line.blank and not line.comment), None)
        if first is None or ":=" not in first.text:
            raise ParFileError(f"{self.path}:1: not a parameter file: expected '<Name>Parameters :=' in the first line")
        if any(line.comment or not line.text for line in self.lines[: self.lines.index(first)]):
            self._problem(first, "STIR wants the first key in the first line, before any comment or empty line")
        self.at = self.lines.index(first) + 1
        block = ParBlock(self._parts(first)[0], self.path, first.number)
        self._fill(block, _stops(block.name) | {"end"})
        if not block.last_line:
            block.last_line = self.lines[-1].last
            last = [line for line in self.lines if not line.blank][-1]
            self._problem(last, "the file ends without 'END :='; is it complete?", harmless=True)
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
                text = f"no ':=' in {line.text.strip()!r}; STIR leaves such a line out"
                self._problem(line, text, harmless="=" not in line.text)
            elif _makes_object(name) and value:
                self._read_object(key)
            elif not value and (name.startswith("end ") or self._is_block(name)):
                self._problem(line, f"'{name}' belongs to no object that a key such as 'prior type' made")
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
        if follows is None or value or not self._is_block(name):
            if fold(key.value) != "none":
                self._problem_at(
                    key.line, f"no block '<Name> Parameters :=' ... 'END' after '{key.name} := {key.value}'"
                )
            self.at = start
            return
        if fold(key.value) == "none":
            self.at = start
            return
        if self.at != between:
            self._problem_at(
                key.line,
                f"the block '{name}' must begin on the line after '{key.name} := {key.value}': STIR drops the object "
                "if an empty line or a comment comes between",
            )
        self.at += 1
        key.block = ParBlock(name, self.path, follows.number)
        self._fill(key.block, _stops(name))
        key.last_line = key.block.last_line

    def _is_block(self, name: str) -> bool:
        """Whether an ``END`` of that name follows."""
        return any(_key_of(line.text)[0] in _stops(name) for line in self.lines[self.at :])

    def _parts(self, line: _Line) -> tuple[str, int | None, str]:
        return _key_of(self._expanded(line))

    def _expanded(self, line: _Line) -> str:
        text, replaced = line.text, 0
        while match := re.search(r"\$\{([^}]*)\}", text):
            value = self.environment.get(match[1])
            if value is None:
                self._problem(line, f"the environment has no variable {match[1]}; STIR puts nothing in its place")
            replaced += 1
            if replaced > _MAX_VARIABLES:
                raise ParFileError(f"{self.path}:{line.number}: the variable {match[1]} contains itself")
            text = text[: match.start()] + (value or "") + text[match.end() :]
        line.text = text  # what is looked at twice is reported once
        return text

    def _problem(self, line: _Line, text: str, harmless: bool = False) -> None:
        self.problems.append(ParProblem(line.number, text, harmless))

    def _problem_at(self, number: int, text: str) -> None:
        self.problems.append(ParProblem(number, text))


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
        return self.text.strip(" \t_!").startswith(";")


def _joined(text: str) -> Iterator[_Line]:
    pending, first = "", 0
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        joined = pending + line.removesuffix("\r")
        first = first or number
        if joined.endswith("\\") and number < len(lines):
            pending = joined[:-1]
            continue
        yield _Line(first, number, joined)
        pending, first = "", 0


def _key_of(text: str) -> tuple[str, int | None, str]:
    """Folded key, index and value: the key ends at ``:=`` or ``[``, the value begins after the first ``=``."""
    end = re.search(r":=|\[|:$", text)
    name = fold(text[: end.start()] if end else text)
    index = None
    if end is not None and end[0] == "[" and (match := re.match(r"\[\s*(\d+)\s*\]", text[end.start() :])):
        index = int(match[1])
    return name, index, text.partition("=")[2].strip(" \t")


def _stops(name: str) -> frozenset[str]:
    return frozenset((f"end {name}", *_OTHER_STOPS.get(name, ())))


def _makes_object(name: str) -> bool:
    return name in _OBJECT_KEYS or bool(re.fullmatch(r"(bin normalisation|transformation) type for gate \d+", name))


# Keys whose value names a registered class, which reads the block that follows.
_OBJECT_KEYS = frozenset(
    (
        "objective function type", "prior type", "projector pair type", "forward projector type", "back projector type",
        "original forward projector type", "original back projector type", "matrix type", "bin normalisation type",
        "bin normalisation to apply first", "bin normalisation to apply second", "normalisation type", "filter type",
        "bin normalisation type for pre-normalisation", "bin normalisation type for post-normalisation",
        "image filter type", "post-filter type", "postfilter type", "inter-iteration filter type",
        "inter-update filter type", "map a la mrp filter type", "pre data processor", "post data processor",
        "data processor to apply first", "data processor to apply second", "output file format type",
        "output file format", "individual output file format type", "reconstruction method", "reconstruction type",
        "scatter simulation type", "rebinning type", "transformation type", "rigid object 3d motion type",
        "shape type", "roi shape type", "singles rates", "time interval for reference position type",
        "symmetries type", "type", "matrix type to use after positron range blurring", "gate scanner type",
        "forward projector for mask type",
    )
)  # fmt: skip

# Blocks that may end otherwise than with 'END' and their first key.
_OTHER_STOPS = {
    "ellipsoidal cylinder parameters": ("end",),
    "ellipsoid parameters": ("end",),
    "box parameters": ("end",),
    "discretised shape3d parameters": ("end",),
    "rigid object 3d motion from polaris parameters": ("end rigid object 3d motion from polaris",),
    "postfilteringparameters": ("end postfiltering parameters",),
}
