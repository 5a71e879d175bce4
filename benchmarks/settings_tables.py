"""The settings of methods and adaptations as the tables of the documentation; `tests/test_methods.py` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field
from typing import Any

from sirf_diffusion.reconstructors.base import Reconstructor
from sirf_diffusion.reconstructors.diffusion.sampling import Sampling
from sirf_diffusion.reconstructors.methods import ADAPTATIONS, METHODS
from sirf_diffusion.reconstructors.settings import SPEEDS, kinds_of_default, listed


def settings_table(method: type[Reconstructor]) -> str:
    """Settings of a method with their defaults, without those that all samplers share."""
    shared = _shared()
    return _table(method, [entry for entry in _listed(method) if shared.get(entry.name) != _said(method, entry)])


def speed_table() -> str:
    """What the speeds of samplers change, in slices and in volumes."""
    rows = ["| setting | " + " | ".join(f"`{speed}`" for speed in SPEEDS) + " |", "| --- " * (1 + len(SPEEDS)) + "|"]
    kinds = [kinds_of_default(speed, volume=volume) for speed in SPEEDS for volume in (False, True)]
    for name in ("dds", "hqs", "lisch"):
        columns = [METHODS[name].defaults(*kind) for kind in kinds]
        for entry in _listed(METHODS[name]):
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
    return _table(METHODS["lisch"], listed(Sampling))


def adaptation_table() -> str:
    """Settings of the adaptations with their defaults."""
    kinds = ADAPTATIONS.values()
    rows = [f"| setting | {' | '.join(f'`{name}`' for name in ADAPTATIONS)} | |", "| --- " * (len(kinds) + 2) + "|"]
    for entry in listed(next(iter(kinds)).group):
        values = " | ".join(str(kind.defaults()[entry.name]) for kind in kinds)
        rows.append(f"| `{entry.name}` | {values} | {entry.metadata['about']} |")
    return "\n".join(rows)


def _listed(method: type[Reconstructor]) -> list[Field[Any]]:
    return [entry for part in method.parts() for entry in listed(part)]


def _shared() -> dict[str, Any]:
    """The settings that every sampler has, with default and meaning; a method may have others of the same name."""
    return {entry.name: _said(METHODS["lisch"], entry) for entry in listed(Sampling)}


def _said(method: type[Reconstructor], entry: Field[Any]) -> tuple[str, str]:
    """Default, in volumes too where that is another one, and meaning."""
    slices, volumes = (method.with_settings({}, volume=volume)[entry.name] for volume in (False, True))
    return f"{slices}" if slices == volumes else f"{slices}; {volumes}", entry.metadata["about"]


def _table(method: type[Reconstructor], entries: Sequence[Field[Any]]) -> str:
    published = any("published" in entry.metadata for entry in entries)
    rows = ["| setting | default | published | |" if published else "| setting | default | |"]
    rows.append("| --- " * (3 + published) + "|")
    for entry in entries:
        default, about = _said(method, entry)
        as_published = f" {method.defaults('published')[entry.name]} |" if published else ""
        rows.append(f"| `{entry.name}` | {default} |{as_published} {about} |")
    return "\n".join(rows)
