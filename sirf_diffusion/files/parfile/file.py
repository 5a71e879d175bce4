r"""STIR parameter files: a tree of keys with line numbers, by the rules by which STIR itself reads them.

A file is lines ``key := value`` between a first key such as ``OSMAPOSLParameters :=`` and ``END :=``. Keys and the
names of registered classes ignore case, and take blanks, tabs, ``_`` and ``!`` as one blank. A line that begins with
``;`` is a comment; ``;`` after a value is not. A backslash at the very end of a line joins the next line, ``${NAME}``
is a variable of the environment. ``prior type := Quadratic`` makes an object, whose block ``Quadratic Prior Parameters
:=`` ... ``END Quadratic Prior Parameters :=`` has to begin on the *next* line: after an empty line or a comment STIR
drops the object (version 6.5 does, in STIR's own sample files too).

STIR drops what it does not understand and goes on, sometimes with a reconstruction of something else; this parser
stops, or, asked not to be strict, lists such places in :attr:`ParFile.problems`.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..documents import printable
from .reader import TreeReader
from .tree import ParBlock, ParFileError, ParKey, ParProblem, fold

logger = logging.getLogger(__name__)

_MAX_BYTES = 1 << 20


@dataclass
class ParFile:
    r"""A parameter file: its text as read, its tree (all keys from the first to ``END :=``), and its ``problems``: what
    STIR would read otherwise than it looks.

    Examples
    --------
    >>> par = ParFile.parse("OSSPSParameters :=\n  Number_of subsets := 4\nEND :=\n")
    >>> par.root.integer("number of subsets")
    4
    """

    path: str
    text: str
    root: ParBlock
    problems: list[ParProblem] = field(default_factory=list)

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], *, environment: Mapping[str, str] | None = None, strict: bool = True
    ) -> ParFile:
        """Read a file of at most 1 MiB; see :meth:`parse`."""
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe may wait for ever
                raise ParFileError(f"{os.fspath(path)}: not a parameter file: it is no regular file")
            with Path(path).open("rb") as file:
                raw = file.read(_MAX_BYTES + 1)
        except OSError as problem:
            raise ParFileError(f"cannot read the parameter file {os.fspath(path)}: {problem.strerror}") from problem
        if b"\0" in raw or len(raw) > _MAX_BYTES:
            raise ParFileError(f"{os.fspath(path)}: not a parameter file: it is binary or longer than 1 MiB")
        return cls.parse(raw.decode("utf-8", "surrogateescape"), path, environment=environment, strict=strict)

    @classmethod
    def parse(
        cls,
        text: str,
        path: str | os.PathLike[str] = "parameter file",
        *,
        environment: Mapping[str, str] | None = None,
        strict: bool = True,
    ) -> ParFile:
        """Parse a text; ``path`` is what messages name, ``environment`` (the process's) what ``${NAME}`` stands for.

        Raises ParFileError if the text is no parameter file. Being strict, it also raises on the first problem that is
        not harmless, where STIR would read it otherwise than it looks, and logs the harmless ones, instead of only
        listing them.
        """
        reader = TreeReader(text, os.fspath(path), os.environ if environment is None else environment)
        root = reader.read()
        for problem in reader.problems if strict else ():
            message = f"{root.path}:{problem.line}: {problem.text}"
            if not problem.harmless:
                raise ParFileError(message)
            logger.warning(printable(message))
        return cls(root.path, text, root, reader.problems)

    def objective(self) -> ParBlock:
        """Block of the ``objective function type``; ParFileError without one."""
        key = self.root.key("objective function type")
        if key is None or key.block is None:
            raise ParFileError(
                f"{self.path}:{self.root.line}: '{self.root.name}' has no block of an 'objective function type'; "
                "expected a parameter file of OSMAPOSL or OSSPS"
            )
        return key.block

    def prior(self) -> ParKey | None:
        """The ``prior type`` of the objective function; None without one."""
        key = self.objective().key("prior type")
        return None if key is None or fold(key.value) == "none" else key

    def with_prior(self, block: str | None) -> str:
        """The text with another prior, the lines from ``prior type := ...`` to the end of its block; None for none."""
        objective = self.objective()
        edits = [(key.line, key.last_line, "") for key in objective.keys if key.name == "prior type"]
        if block is not None:
            first, last, _ = edits.pop() if edits else (objective.last_line, objective.last_line - 1, "")
            edits.append((first, last, block.rstrip("\n") + "\n"))
        return self.edited(edits)

    def lines_of(self, key: ParKey) -> str:
        """The text of a key and its block as it stands in the file."""
        return "".join(self.text.splitlines(keepends=True)[key.line - 1 : key.last_line])

    def edited(self, edits: Sequence[tuple[int, int, str]]) -> str:
        """The text with lines ``first`` to ``last`` replaced, or added before ``first``, if ``last`` is less."""
        lines = self.text.split("\n")
        for first, last, text in sorted(edits, key=lambda edit: edit[:2], reverse=True):
            lines[first - 1 : last] = text.split("\n")[:-1]
        return "\n".join(lines)
