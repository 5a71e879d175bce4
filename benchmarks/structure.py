"""``python -m benchmarks structure``: the house, measured: rooms, imports that run up, circles, long modules, lines.

A room of the package imports only from rooms below it. Imports inside functions and under ``TYPE_CHECKING`` count too.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

#: The rooms of the package, from the ground up; rooms of one floor do not know each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("",),  # __init__.py
    ("environment",),
    ("geometry",),
    ("files",),
    ("patient",),
    ("models", "engines"),
    ("priors",),
    ("reconstructors",),
    ("interop", "data"),
    ("simulation",),
    ("study", "training"),
    ("personalise",),
    ("cli",),
)
LONGEST = 350


@dataclass(frozen=True)
class Import:
    """One import of the package's own: from which module and line, of which module."""

    module: str
    line: int
    target: str


def modules(*folders: str) -> dict[str, Path]:
    """Every Python module below the folders, by dotted name."""
    found = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(known: dict[str, Path]) -> Iterator[Import]:
    """All imports among known modules, wherever in a file they stand."""
    for module, path in known.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node in _statements(path):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                base = package.rsplit(".", node.level - 1)[0] if node.level else ""
                origin = ".".join(part for part in (base, node.module) if part)
                targets = [f"{origin}.{alias.name}" for alias in node.names]
            for target in targets:
                while target and target not in known:
                    target = target.rpartition(".")[0]
                if target and target != module:
                    yield Import(module, node.lineno, target)


@cache
def _statements(path: Path) -> tuple[ast.Import | ast.ImportFrom, ...]:
    """The imports of a file."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return tuple(node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom)))


def room(module: str) -> str:
    """The room of the package that a module lies in; ``""`` for the package's own ``__init__``."""
    return [*module.split("."), ""][1]


def upward(known: dict[str, Path]) -> list[Import]:
    """Imports of a room that is not below; the package's ``__init__`` loads its names lazily and is left out."""
    floor = {name: number for number, rooms in enumerate(FLOORS) for name in rooms}
    return [
        one
        for one in imports(known)
        if one.module != "sirf_diffusion"
        and room(one.module) != room(one.target)
        and not floor[room(one.target)] < floor[room(one.module)]
    ]


def circles(known: dict[str, Path]) -> list[list[str]]:
    """Groups of modules that import each other, at once or in turn."""
    below: dict[str, set[str]] = {name: set() for name in known}
    for one in imports(known):
        # a package's __init__ only hands on what its modules have
        if known[one.target].name != "__init__.py" and known[one.module].name != "__init__.py":
            below[one.module].add(one.target)
    reached = {name: _reach(name, below) for name in below}
    groups = {frozenset(other for other in reached[name] if name in reached[other]) for name in below}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def _reach(start: str, below: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for name in below[waiting.pop()] - seen:
            seen.add(name)
            waiting.append(name)
    return seen


def lines(path: Path) -> int:
    """Lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser = subparsers.add_parser(
        "structure",
        parents=[common],
        help="rooms, upward imports, circles, long modules, lines",
        description=__doc__,
        epilog="example: python -m benchmarks structure",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the figures; exit code 1 where an import runs up or in a circle, or a module is too long."""
    package = modules("sirf_diffusion")
    both = package | modules("stir_priors")
    rising, round_trips = upward(package), circles(both)
    rising += [one for one in imports(both) if room_of_shim(one)]
    long = {name: lines(path) for name, path in both.items() if lines(path) > LONGEST}
    top = {room(name) for name in package} - {""} | {"stir_priors", "benchmarks"}
    print(f"rooms at the top         {len(top)}")
    print(f"upward imports           {len(rising)}")
    for one in rising:
        print(f"    {one.module}:{one.line} imports {one.target}")
    print(f"circles                  {len(round_trips)}")
    for group in round_trips:
        print(f"    {', '.join(group)}")
    print(f"modules over {LONGEST} lines   {len(long)}")
    for name, count in sorted(long.items(), key=lambda item: -item[1]):
        print(f"    {name} {count}")
    print(f"lines, package and shim  {sum(map(lines, both.values())):,}")
    for name in sorted(top - {"benchmarks", "stir_priors"}):
        print(f"    {name:<16} {sum(lines(p) for m, p in package.items() if room(m) == name):,}")
    print(f"    {'stir_priors':<16} {sum(map(lines, modules('stir_priors').values())):,}")
    for folder in ("benchmarks", "tests"):
        print(f"lines, {folder:<17} {sum(map(lines, modules(folder).values())):,}")
    return 1 if rising or round_trips or long else 0


def room_of_shim(one: Import) -> bool:
    """Whether ``stir_priors``, which knows nothing of the package, imports it."""
    return one.module.startswith("stir_priors") and one.target.startswith("sirf_diffusion")
