"""Says what a STIR parameter file asks for, and what is wrong with it, before STIR reads it.

STIR drops what it does not know: an unregistered ``prior type`` becomes a reconstruction without a prior that ends with
exit code 0. Here such a file has errors.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...files.parfile import ParBlock, ParFile, ParFileError, ParKey, fold
from ...files.parfile import keys as stir_keys
from . import check_values
from .blocks import OwnBlock, own_block
from .check_values import COMMENT, Finding, Findings
from .registry import Names, known_names


@dataclass(frozen=True)
class Report:
    """What `check` found, in the order of lines.

    ``file`` is None if it could not be read as a parameter file; ``program`` is ``"OSMAPOSL"``, ``"OSSPS"``,
    ``"KOSMAPOSL"``, ``"postfilter"``, or empty if the first line names another; ``names`` were compared with.
    """

    file: ParFile | None
    path: Path
    program: str
    findings: tuple[Finding, ...]
    names: Names

    @property
    def errors(self) -> list[Finding]:
        """The findings with which the file must not be run."""
        return [f for f in self.findings if f.level == "error"]

    def format(self) -> str:
        """The report as text."""
        lines = [f"{self.path}: {self.program or 'no reconstruction that is known here'}"]
        if self.file is not None:
            listing = _listing(self.file)
            width = max((len(what) for what, _ in listing), default=0)
            lines += [f"  {what:<{width}}  {text}" for what, text in listing]
        lines.append(f"  names are compared with {self.names.source}")
        lines += [f"{self.path}: {finding}" for finding in self.findings]
        return "\n".join(lines)


def check(
    path: str | os.PathLike[str],
    *,
    program: str | None = None,
    variables: Mapping[str, str] | None = None,
    names: Names | None = None,
) -> Report:
    """Examine a parameter file of OSMAPOSL, OSSPS or postfilter.

    File names in it are relative to the current folder, as in STIR. OSError if there is no such file.

    Parameters
    ----------
    program
        The program that is to run it; None takes the one that its first line names.
    variables
        Values for ``${VAR}`` in the file, added to the environment.
    names
        Registered names to compare with; None asks `sirf_diffusion.interop.stir.registry.known_names`.
    """
    path = Path(path)
    names = names or known_names()
    findings = Findings()
    os.stat(path)
    try:
        file = ParFile.read(path, environment={**os.environ, **(variables or {})}, strict=False)
    except ParFileError as error:
        findings.error(0, str(error).removeprefix(f"{path}:"))
        return Report(None, path, "", findings.sorted(), names)
    found, known = stir_keys.PROGRAMS.get(file.root.name, ("", None))
    for problem in file.problems:
        findings.add("warning" if problem.harmless else "error", problem.line, problem.text)
    if not found:
        expected = ", ".join(f"'{first} :='" for first in stir_keys.FIRST_LINES)
        findings.error(file.root.line, f"begins with '{file.root.name}'; expected one of {expected}")
    elif program is not None and program != found:
        findings.error(file.root.line, f"this is a file for {found}, not for {program}")
    _check_block(file.root, f"{found or file.root.name}'s own keys", known, None, names, findings)
    check_values.check(file, found, findings)
    return Report(file, path, found, findings.sorted(), names)


def _check_block(
    block: ParBlock, where: str, known: Iterable[str] | None, ours: OwnBlock | None, names: Names, findings: Findings
) -> None:
    """Compare the keys of a block with those that it may have, and the objects that they make with the registry."""
    known = None if known is None else tuple(known)
    for key in block.keys:
        if findings.full:
            return
        misplaced = known is not None and key.name not in known
        makes_object = key.name in stir_keys.SLOTS and key.value != "" and fold(key.value) != "none"
        if misplaced:
            # An object in the wrong place is dropped as silently as an unknown one.
            text = f"'{key.name}' is not among {where}: STIR ignores it"
            text += f", and goes on without {key.value}" if makes_object else ""
            level = "error" if ours is not None or makes_object else "warning"
            findings.add(level, key.line, text + _suggestion(key.name, known or ()))
        elif makes_object:
            _check_name(key, names, findings)
        if key.block is None:
            continue
        own = own_block(key)
        if own is not None:
            _check_block(key.block, f"the keys of {own.name}", own.defaults, own, names, findings)
        else:
            keys = stir_keys.BLOCKS.get(fold(key.value))
            _check_block(key.block, f"the keys of {key.value}", keys, None, names, findings)
        if own is not None and key.block.name != fold(f"{own.name} Parameters"):
            findings.error(key.block.line, f"'{key.block.name}': expected '{own.name} Parameters :='")


def _check_name(key: ParKey, names: Names, findings: Findings) -> None:
    kind = stir_keys.SLOTS[key.name]
    known = names.by_kind.get(kind)
    if known is None or any(fold(name) == fold(key.value) for name in known):
        return
    text = f"'{key.name} := {key.value}': {names.source} has no such {kind}. STIR would go on WITHOUT it"
    findings.error(key.line, text + (COMMENT if ";" in key.value else "") + _suggestion(key.value, known))


def _suggestion(found: str, known: Iterable[str]) -> str:
    by_form = {fold(name): name for name in known}
    near = difflib.get_close_matches(fold(found[:80]), by_form, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{by_form[near[0]]}'?"
    return f"; there are {', '.join(sorted(by_form.values(), key=str.lower))}" if len(by_form) <= 24 else ""


def _listing(file: ParFile) -> list[tuple[str, str]]:
    """What the file asks for: objects with their main settings, then files."""
    objects, files = [], []
    for _, key in file.root.walk():
        if key.name in stir_keys.SLOTS and key.value:
            shown = [] if key.block is None else [f"{k} {key.block.text(k)}" for k in _SHOWN if k in key.block]
            title = key.name.removesuffix(" type")
            objects.append((title, key.value + (f" ({', '.join(shown)})" if shown else "")))
        elif key.name in _FILES_AND_COUNTS and key.value:
            files.append((key.name, key.value))
    if file.root.name in ("osmaposlparameters", "osspsparameters") and not any(what == "prior" for what, _ in objects):
        objects.append(("prior", "none"))
    return objects + files


_SHOWN = ("penalisation factor", "model filename", "noise level", "module", "class")
_FILES_AND_COUNTS = stir_keys.INPUT_FILES | {
    "number of subsets",
    "number of subiterations",
    "inter-iteration filter subiteration interval",
    "output filename prefix",
}
