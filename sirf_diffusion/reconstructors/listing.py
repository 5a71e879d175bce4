"""The settings of methods and adaptations as text, for the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .base import Reconstructor
from .methods import ADAPTATIONS, METHODS
from .settings import DEFAULT_SPEED, SPEEDS, Settings, defaults, listed

_LINK = re.compile(r"[,;]? see \[[^]]*\]\([^)]*\)")


def settings_list(name: str) -> str:
    """What a method or an adaptation is, and each of its settings with default, range and meaning.

    A method's own adaptation is listed with it.
    """
    lines = []
    if name in METHODS:
        method = METHODS[name]
        lines += [f"{name}: {method.about}", *_items("--set", method.parts(), _others(method))]
    own = METHODS[name].own_adaptation if name in METHODS else None
    if adaptation := ADAPTATIONS.get(name, own):
        group = (adaptation.group,)
        lines += [f"adaptation {adaptation.name}: {adaptation.about}"]
        lines += _items("--adapt-set", group, {"": defaults(group)})
    return "\n".join(lines)


def _others(method: type[Reconstructor]) -> dict[str, dict[str, Any]]:
    """Defaults by the words for when they hold; without words those of slices."""
    found = {"": method.with_settings({}), "in volumes": method.with_settings({}, volume=True)}
    for speed in SPEEDS if method.has_speeds else ():
        if speed != DEFAULT_SPEED:
            found[speed] = method.with_settings({}, speed=speed)
            found[f"{speed} in volumes"] = method.with_settings({}, speed=speed, volume=True)
    return found | {"quick": method.with_settings({}, quick=True), "published": method.defaults("published")}


def _items(option: str, parts: Sequence[type[Settings]], values: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What does not differ from the default, in volumes from that of slices, is not said again."""
    for entry in (entry for part in parts for entry in listed(part)):
        about, told = entry.metadata, f"  {option} {entry.name}={values[''][entry.name]}"
        for words, own in values.items():
            like = words.removesuffix("in volumes").rstrip() if words.endswith("in volumes") else ""
            if own[entry.name] != values[like][entry.name]:
                told += f", {words} {own[entry.name]}"
        allowed = about["allowed"] + (" or None" if about["optional"] else "")
        yield f"{told} ({allowed})"
        yield f"      {_LINK.sub('', about['about']).replace('`', '')}"
