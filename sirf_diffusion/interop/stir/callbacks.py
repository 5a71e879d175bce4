"""What the compiled shim calls: it makes the Python object behind each block of a parameter file.

Keys arrive as text, as in the file. `hold` lets a program put an object of its own behind a block.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import secrets
import sys
from collections.abc import Mapping
from typing import Any

from ...geometry.images import ImageGeometry

# Loaded when first used: a prior that needs no PyTorch shall not wait for it.
_LATER = {
    "DenoiserCallback": "denoiser_callback",
    "SamplerCallback": "sampler_callback",
    "ScorePriorCallback": "score_callback",
    "TensorPrior": "views",
    "as_tensor": "views",
}

_held: dict[str, Any] = {}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LATER[name]}", __package__), name)


def hold(obj: Any) -> str:
    """Keep an object until STIR parses a block that names the token returned here.

    The block is ``module := sirf_diffusion.interop.stir.callbacks``, ``class := held``, ``arguments := {"token":
    "<token>"}``; the prior that STIR makes of it owns the object from then on.
    """
    token = secrets.token_hex(8)
    _held[token] = obj
    return token


def held(token: str) -> Any:
    """The object that `hold` kept, which is given away.

    Raises
    ------
    KeyError
        If the token is unknown or was used before.
    """
    if token not in _held:
        raise KeyError(f"no object is held under {token!r}: a token of hold() serves once")
    return _held.pop(token)


def make_prior(name: str, options: Mapping[str, str], context: Mapping[str, str]) -> Any:
    """The object behind ``prior type := name``; ``context`` are all keys of the surrounding file."""
    if name == "Diffusion Score":
        return __getattr__("ScorePriorCallback").from_text(options)
    return _callable_by_stir(_make("prior type := Python", options))


def make_processor(name: str, options: Mapping[str, str], context: Mapping[str, str]) -> Any:
    """The object behind a filter's block."""
    if name == "Diffusion Denoiser":
        return __getattr__("DenoiserCallback").from_text(options)
    if name == "Diffusion Sampler":
        return __getattr__("SamplerCallback").from_text(options, context)
    obj = _make("filter type := Python", options)
    if not callable(getattr(obj, "apply", None)):
        raise TypeError(f"{type(obj).__name__} cannot be a filter: it has no method apply(x)")
    return obj


def geometry(
    shape: tuple[int, int, int], voxel_size: tuple[float, float, float], origin: tuple[float, float, float]
) -> ImageGeometry:
    """The grid of a STIR image; numbers that went through ``float`` on their way are rounded to seven digits."""
    return ImageGeometry(shape, tuple(_seven_digits(v) for v in voxel_size), tuple(_seven_digits(v) for v in origin))


def set_up_logging() -> None:
    """Messages of this project to stderr, in an executable that started Python itself."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(name)s: %(message)s"))
    for name in ("stir_priors", "sirf_diffusion"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _callable_by_stir(obj: Any) -> Any:
    """The object itself, or a `TensorPrior` around one of this package's priors."""
    priors = sys.modules.get("sirf_diffusion.priors")  # not loaded: then it cannot be one of those
    if priors is not None and isinstance(obj, priors.Penalty):
        return __getattr__("TensorPrior")(obj)
    if not callable(getattr(obj, "gradient", None)):
        raise TypeError(f"{type(obj).__name__} cannot be a prior: it has no method gradient(x, out)")
    return obj


def _make(what: str, options: Mapping[str, str]) -> Any:
    for key in ("module", "class"):
        if not options[key]:
            raise ValueError(f"{what}: the key '{key}' is missing")
    try:
        arguments = json.loads(options["arguments"] or "{}")
    except json.JSONDecodeError as problem:
        raise ValueError(f"{what}: arguments := {options['arguments']} is not JSON: {problem}") from problem
    if not isinstance(arguments, dict):
        raise ValueError(f'{what}: arguments must be a JSON object such as {{"a": 3}}, found {options["arguments"]}')
    module = _import(options["module"])
    if not hasattr(module, options["class"]):
        raise AttributeError(f"{what}: {module.__file__ or module.__name__} has no class {options['class']}")
    return getattr(module, options["class"])(**arguments)


def _import(name: str) -> Any:
    """A module that is installed, or lies in the current folder."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as problem:
        if problem.name != name.split(".")[0] or os.getcwd() in sys.path:
            raise
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(os.getcwd())


def _seven_digits(value: float) -> float:
    return float(f"{value:.7g}")
