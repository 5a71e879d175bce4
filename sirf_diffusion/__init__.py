"""PET reconstruction with diffusion-model priors, for STIR and SIRF data.

The names below are loaded when first used, so that ``import sirf_diffusion`` costs no more than ``import torch``.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "ImageGeometry": "sirf_diffusion.geometry.images",
    "Objective": "sirf_diffusion.engines.objective",
    "get_engine": "sirf_diffusion.interop",
    "as_objective": "sirf_diffusion.engines",
    "ScoreModel": "sirf_diffusion.models",
    "OSEM": "sirf_diffusion.reconstructors",
    "MLEM": "sirf_diffusion.reconstructors",
    "MAPEM": "sirf_diffusion.reconstructors",
    "DDSReconstructor": "sirf_diffusion.reconstructors",
    "DDIPReconstructor": "sirf_diffusion.reconstructors",
    "SteerableReconstructor": "sirf_diffusion.reconstructors",
    "DDIPAdaptation": "sirf_diffusion.reconstructors",
    "SteerableAdaptation": "sirf_diffusion.reconstructors",
    "HQSReconstructor": "sirf_diffusion.reconstructors",
    "LikelihoodScheduledReconstructor": "sirf_diffusion.reconstructors",
    "RelativeDifferencePenalty": "sirf_diffusion.priors",
    "AnchorPenalty": "sirf_diffusion.priors",
    "ScorePenalty": "sirf_diffusion.priors",
    "load_example": "sirf_diffusion.data",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
