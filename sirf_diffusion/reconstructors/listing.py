"""The settings of methods and adaptations as text, for the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from .methods import ADAPTATIONS, METHODS
from .settings import SPEEDS, Settings, listed

_LINK = re.compile(r"[,;]? see \[[^]]*\]\([^)]*\)")
_OTHER_DEFAULTS = {
    "volumes": "in volumes",
    **{speed: speed for speed in SPEEDS},
    **{f"{speed}_volumes": f"{speed} in volumes" for speed in SPEEDS},
    "quick": "quick",
    "published": "published",
}


def settings_list(name: str) -> str:
    """What a method or an adaptation is, and each of its settings with default, range and meaning.

    A method's own adaptation is listed with it.
    """
    lines = []
    if name in METHODS:
        lines += [f"{name}: {METHODS[name].about}", *_items("--set", METHODS[name].parts())]
    own = METHODS[name].own_adaptation if name in METHODS else None
    if adaptation := ADAPTATIONS.get(name, own):
        lines += [f"adaptation {adaptation.name}: {adaptation.about}", *_items("--adapt-set", (adaptation.group,))]
    return "\n".join(lines)


def _items(option: str, parts: Sequence[type[Settings]]) -> Iterator[str]:
    for entry in (entry for part in parts for entry in listed(part)):
        about = entry.metadata
        others = [f", {words} {about[kind]}" for kind, words in _OTHER_DEFAULTS.items() if kind in about]
        allowed = about["allowed"] + (" or None" if about["optional"] else "")
        yield f"  {option} {entry.name}={entry.default}{''.join(others)} ({allowed})"
        yield f"      {_LINK.sub('', about['about']).replace('`', '')}"
