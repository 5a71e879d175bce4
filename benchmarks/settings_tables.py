"""The settings of methods and adaptations as the tables of the documentation; `tests/test_methods.py` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field
from typing import Any

from sirf_diffusion.reconstructors.base import Reconstructor
from sirf_diffusion.reconstructors.diffusion.sampling import Sampling
from sirf_diffusion.reconstructors.methods import ADAPTATIONS, METHODS
from sirf_diffusion.reconstructors.settings import SPEEDS, Settings, defaults, kinds_of_default, listed


def settings_table(method: type[Reconstructor]) -> str:
    """Settings of a method with their defaults, without those that all samplers share."""
    shared = _shared()
    own = [e for part in method.parts() for e in listed(part)]
    return _table(method.parts(), without=[e.name for e in own if shared.get(e.name) == _said(e)])


def speed_table() -> str:
    """What the speeds of samplers change, in slices and in volumes."""
    rows = ["| setting | " + " | ".join(f"`{speed}`" for speed in SPEEDS) + " |", "| --- " * (1 + len(SPEEDS)) + "|"]
    kinds = [kinds_of_default(speed, volume=volume) for speed in SPEEDS for volume in (False, True)]
    for name in ("dds", "hqs", "lisch"):
        columns = [METHODS[name].defaults(*kind) for kind in kinds]
        for entry in (entry for part in METHODS[name].parts() for entry in listed(part)):
            values = [str(column[entry.name]) for column in columns]
            if len({*values[::2]}) == len({*values[1::2]}) == 1:
                continue
            pairs = zip(values[::2], values[1::2], strict=True)
            told = " | ".join(a if a == b else f"{a}; {b}" for a, b in pairs)
            row = f"| `{entry.name}` | {told} |"
            if entry.name not in _shared():
                row = row.replace(f"`{entry.name}`", f"`{entry.name}` of `{name}`")
            if row not in rows:
                rows.append(row)
    return "\n".join(rows)


def shared_table() -> str:
    """Settings that all samplers share, with their defaults."""
    shared, parts = _shared(), METHODS["lisch"].parts()
    return _table(parts, without=[name for name in defaults(parts) if name not in shared])


def adaptation_table() -> str:
    """Settings of the adaptations with their defaults."""
    kinds = ADAPTATIONS.values()
    rows = [f"| setting | {' | '.join(f'`{name}`' for name in ADAPTATIONS)} | |", "| --- " * (len(kinds) + 2) + "|"]
    for entry in listed(next(iter(kinds)).group):
        values = " | ".join(str(kind.defaults()[entry.name]) for kind in kinds)
        rows.append(f"| `{entry.name}` | {values} | {entry.metadata['about']} |")
    return "\n".join(rows)


def _shared() -> dict[str, Any]:
    """The settings that every sampler has, with default and meaning; a method may have others of the same name."""
    return {entry.name: _said(entry) for entry in listed(Sampling)}


def _said(entry: Field[Any]) -> Any:
    return entry.default, entry.metadata["about"]


def _table(parts: Sequence[type[Settings]], without: Sequence[str]) -> str:
    entries = [entry for part in parts for entry in listed(part) if entry.name not in without]
    published = any("published" in entry.metadata for entry in entries)
    rows = ["| setting | default | published | |" if published else "| setting | default | |"]
    rows.append("| --- " * (3 + published) + "|")
    for entry in entries:
        in_volumes = f"; {entry.metadata['volumes']}" if "volumes" in entry.metadata else ""
        as_published = f" {entry.metadata.get('published', entry.default)} |" if published else ""
        rows.append(f"| `{entry.name}` | {entry.default}{in_volumes} |{as_published} {entry.metadata['about']} |")
    return "\n".join(rows)
