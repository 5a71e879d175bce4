"""The settings of the methods as tables, for the documentation."""

from __future__ import annotations

from collections.abc import Sequence

from .methods import ADAPTATIONS, METHODS, Method
from .settings import Settings, defaults, listed


def settings_table(method: Method) -> str:
    """Settings of a method with their defaults, without those that all samplers share."""
    return _table(method.kind.parts(), without=_shared())


def shared_table() -> str:
    """Settings that all samplers share, with their defaults."""
    shared = _shared()
    parts = METHODS["lisch"].kind.parts()
    return _table(parts, without=[name for name in defaults(parts) if name not in shared])


def adaptation_table() -> str:
    """Settings of the adaptations with their defaults."""
    kinds = [choice.kind.group for choice in ADAPTATIONS.values()]
    rows = [f"| setting | {' | '.join(f'`{name}`' for name in ADAPTATIONS)} | |", "| --- " * (len(kinds) + 2) + "|"]
    for entry in listed(kinds[0]):
        values = " | ".join(str(defaults((kind,))[entry.name]) for kind in kinds)
        rows.append(f"| `{entry.name}` | {values} | {entry.metadata['about']} |")
    return "\n".join(rows)


def _shared() -> list[str]:
    """Names of the settings that every sampler has, with one default and one meaning."""
    of_samplers = [
        {e.name: (e.default, e.metadata["about"]) for part in method.kind.parts() for e in listed(part)}
        for method in METHODS.values()
        if method.samples
    ]
    return [name for name, said in of_samplers[0].items() if all(other.get(name) == said for other in of_samplers)]


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
