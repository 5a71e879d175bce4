"""Python that a parameter file names: what of it may run, and where it is looked for."""

from __future__ import annotations

import importlib
import os
import secrets
import sys
from collections.abc import Mapping
from typing import Any

#: ``1`` lets a parameter file run any Python module; names with commas between, only these.
ALLOW = "SIRF_DIFFUSION_ALLOW_PYTHON"
#: Folders that are searched after all others, with ``os.pathsep`` between; the current one by default.
FOLDERS = "SIRF_DIFFUSION_PYTHON_FOLDERS"

_HELD = ("sirf_diffusion.interop.stir.callbacks", "held")
_PENALTIES = "sirf_diffusion.priors"

_held: dict[str, Any] = {}


def refusal(module: str, cls: str) -> str:
    """Why a block may not run ``module``; empty if it may.

    This package's penalties and what `hold` keeps may always: they run no code of the file's choice.
    """
    if (module, cls) == _HELD or module == _PENALTIES:
        return ""
    allowed = os.environ.get(ALLOW, "").strip()
    if allowed == "1" or module in [name.strip() for name in allowed.split(",")]:
        return ""
    return (
        f"the file runs the Python module {module!r}, which can do anything that you can. If you trust it, give "
        f"--allow-python or --python-module {module} to stir-diffusion, or set {ALLOW}={module}"
    )


def make(what: str, module: str, cls: str, arguments: Mapping[str, Any]) -> Any:
    """An object of a block's class."""
    for key, value in (("module", module), ("class", cls)):
        if not value:
            raise ValueError(f"{what}: the key '{key}' is missing")
    if problem := refusal(module, cls):
        raise ValueError(f"{what}: {problem}")
    if (module, cls) == _HELD:
        return held(**arguments)
    if module != _PENALTIES:
        # Last, so that a file in these folders takes the place of no installed module.
        sys.path += [f for f in os.environ.get(FOLDERS, os.getcwd()).split(os.pathsep) if f and f not in sys.path]
    found = importlib.import_module(module)
    kind = getattr(found, cls, None)
    if kind is None:
        raise ValueError(f"{what}: {getattr(found, '__file__', module)} has no class {cls}")
    if module == _PENALTIES and not (isinstance(kind, type) and issubclass(kind, found.Penalty)):
        raise ValueError(f"{what}: {cls} is no penalty of {module}")
    return kind(**arguments)


def hold(obj: Any) -> str:
    """Keep an object until STIR parses a block that names the token returned here.

    The block is ``module := sirf_diffusion.interop.stir.callbacks``, ``class := held``, ``arguments := {"token":
    "<token>"}``; the prior that STIR makes of it owns the object from then on.
    """
    token = secrets.token_hex(8)
    _held[token] = obj
    return token


def held(token: str) -> Any:
    """The object that `hold` kept, which is given away; KeyError if the token is unknown or was used before."""
    if token not in _held:
        raise KeyError(f"no object is held under {token!r}: a token of hold() serves once")
    return _held.pop(token)
