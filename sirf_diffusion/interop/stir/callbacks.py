"""What the compiled shim calls: keys of our blocks, and the Python object behind each block of a parameter file.

Keys arrive as text, as in the file. `hold` lets a program put an object of its own behind a block.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Mapping
from typing import Any

from ...geometry.images import ImageGeometry
from .blocks import block_of
from .python_blocks import held, hold, make

__all__ = ["defaults", "geometry", "held", "hold", "make_prior", "make_processor", "set_up_logging"]

# Loaded when first used: a prior that needs no PyTorch shall not wait for it.
_LATER = {
    "DenoiserCallback": "filters",
    "SamplerCallback": "filters",
    "ScorePriorCallback": "score_callback",
    "TensorPrior": "views",
    "as_tensor": "views",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LATER[name]}", __package__), name)


def defaults(kind: str, name: str) -> dict[str, str]:
    """Keys and defaults of a block of ours, by kind (``"prior"``, ``"data processor"``) and registered name."""
    return block_of(kind, name).defaults


def make_prior(name: str, options: Mapping[str, str], context: Mapping[str, str]) -> Any:
    """The object behind ``prior type := name``; ``context`` are all keys of the surrounding file."""
    values = block_of("prior", name).values(options)
    if name == "Diffusion Score":
        return __getattr__("ScorePriorCallback")(values, context)
    obj = make("prior type := Python", values["module"], values["class"], values["arguments"])
    priors = sys.modules.get("sirf_diffusion.priors")  # not loaded: then it cannot be one of those
    if priors is not None and isinstance(obj, priors.Penalty):
        return __getattr__("TensorPrior")(obj)
    if not callable(getattr(obj, "gradient", None)):
        raise TypeError(f"{type(obj).__name__} cannot be a prior: it has no method gradient(x, out)")
    return obj


def make_processor(name: str, options: Mapping[str, str], context: Mapping[str, str]) -> Any:
    """The object behind a filter's block."""
    values = block_of("data processor", name).values(options)
    if name == "Diffusion Denoiser":
        return __getattr__("DenoiserCallback").of(values)
    if name == "Diffusion Sampler":
        return __getattr__("SamplerCallback")(values, context)
    obj = make("filter type := Python", values["module"], values["class"], values["arguments"])
    if not callable(getattr(obj, "apply", None)):
        raise TypeError(f"{type(obj).__name__} cannot be a filter: it has no method apply(x)")
    return obj


def geometry(
    shape: tuple[int, int, int], voxel_size: tuple[float, float, float], origin: tuple[float, float, float]
) -> ImageGeometry:
    """The grid of a STIR image; numbers that went through ``float`` on their way are rounded to seven digits."""
    return ImageGeometry(shape, *(tuple(float(f"{v:.7g}") for v in numbers) for numbers in (voxel_size, origin)))


def set_up_logging() -> None:
    """Messages of this project to stderr, in an executable that started Python itself."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(name)s: %(message)s"))
    for name in ("stir_priors", "sirf_diffusion"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
