"""Settings, each written once: default, range and meaning stand at a dataclass field; help and tables are read off it.

A default may be another one in volumes (``volumes``), at a speed (`SPEEDS`; ``balanced_volumes`` and so on in volumes),
for a quick look (``quick``) and in the method as its paper has it (``published``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import partial
from typing import Any

from ..geometry.checks import check_choice, check_count, check_flag, check_real, interval

#: What samplers are set for. The first has the settings' plain defaults, as have methods without speeds.
SPEEDS = ("accurate", "balanced", "fast")
DEFAULT_SPEED = "balanced"


@dataclass(frozen=True)
class Settings:
    """A group of settings. Fields made by `setting` and its kin are checked; others are no settings."""

    def __post_init__(self) -> None:
        for entry in listed(type(self)):
            value = getattr(self, entry.name)
            if value is not None or not entry.metadata["optional"]:
                vars(self)[entry.name] = entry.metadata["check"](entry.name, value)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings, ready for JSON."""
        return {entry.name: getattr(self, entry.name) for entry in listed(type(self))}


def setting(default: Any, about: str, check: Callable[[str, Any], Any], allowed: str, **kinds: Any) -> Any:
    """Field with a check, a function of name and value that returns the value, and words for what that lets pass."""
    kinds.setdefault("optional", default is None)
    return field(default=default, metadata={"about": about, "check": check, "allowed": allowed, **kinds})


def count(default: int, about: str, *, minimum: int = 1, **kinds: Any) -> Any:
    """Field of a whole number."""
    return setting(default, about, partial(check_count, minimum=minimum), f"integer of at least {minimum}", **kinds)


def real(
    default: float | None,
    about: str,
    *,
    minimum: float = 0.0,
    maximum: float = math.inf,
    open_below: bool = False,
    open_above: bool = False,
    **kinds: Any,
) -> Any:
    """Field of a number; it may be None if the default is, or with ``optional``."""
    ends = {"minimum": minimum, "maximum": maximum, "open_below": open_below, "open_above": open_above}
    return setting(default, about, partial(check_real, **ends), f"number in {interval(**ends)}", **kinds)


def choice(default: str | None, about: str, options: Sequence[str], **kinds: Any) -> Any:
    """Field of one of several words."""
    return setting(default, about, partial(check_choice, options=tuple(options)), ", ".join(options), **kinds)


def flag(default: bool, about: str, **kinds: Any) -> Any:
    """Field of True or False."""
    return setting(default, about, check_flag, "True, False", **kinds)


def listed(part: type[Settings]) -> list[Field[Any]]:
    """The fields of a group that are settings."""
    return [entry for entry in fields(part) if "about" in entry.metadata]


def defaults(parts: Sequence[type[Settings]], *kinds: str) -> dict[str, Any]:
    """Defaults of all settings of the groups; where a setting has another one of these kinds, the last such."""
    found = {}
    for part in parts:
        for entry in listed(part):
            others = [entry.metadata[kind] for kind in kinds if kind in entry.metadata]
            found[entry.name] = others[-1] if others else entry.default
    return found


def kinds_of_default(speed: str, *, volume: bool = False, quick: bool = False) -> tuple[str, ...]:
    """The kinds of defaults that hold, for `defaults`."""
    in_volumes = ("volumes", speed, f"{speed}_volumes") if volume else (speed,)
    return (*in_volumes, "quick") if quick else in_volumes


def make(parts: Sequence[type[Settings]], given: Mapping[str, Any], who: str, *kinds: str) -> list[Any]:
    """The groups, with their defaults but for what is given; fields that are no settings may be given too."""
    values = {**defaults(parts, *kinds), **given}
    names = [{entry.name for entry in fields(part) if entry.init and entry.default is not MISSING} for part in parts]
    if unknown := sorted(set(given).difference(*names)):
        known = ", ".join(f"{name}={value}" for name, value in defaults(parts, *kinds).items())
        raise ValueError(f"{who} has no setting {unknown[0]!r}; it has {known}")
    return [
        part(**{name: value for name, value in values.items() if name in own})
        for part, own in zip(parts, names, strict=True)
    ]
