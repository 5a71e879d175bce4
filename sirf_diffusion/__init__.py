"""PET reconstruction with diffusion-model priors, for STIR and SIRF data.

The names below are loaded when first used, so that ``import sirf_diffusion`` costs no more than ``import torch``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data import load_example as load_example
    from .engines import as_objective as as_objective
    from .engines.embedded.acquisition import Acquisition as Acquisition
    from .engines.objective import Objective as Objective
    from .geometry.images import ImageGeometry as ImageGeometry
    from .interop import get_engine as get_engine
    from .models import ScoreModel as ScoreModel
    from .priors import AnchorPenalty as AnchorPenalty
    from .priors import BowsherPenalty as BowsherPenalty
    from .priors import ParallelLevelSetsPenalty as ParallelLevelSetsPenalty
    from .priors import Penalty as Penalty
    from .priors import QuadraticPenalty as QuadraticPenalty
    from .priors import RelativeDifferencePenalty as RelativeDifferencePenalty
    from .priors import ScorePenalty as ScorePenalty
    from .priors import kappa_image as kappa_image
    from .reconstructors import MAPEM as MAPEM
    from .reconstructors import MLEM as MLEM
    from .reconstructors import OSEM as OSEM
    from .reconstructors import DDIPAdaptation as DDIPAdaptation
    from .reconstructors import DDIPReconstructor as DDIPReconstructor
    from .reconstructors import DDSReconstructor as DDSReconstructor
    from .reconstructors import HQSReconstructor as HQSReconstructor
    from .reconstructors import LikelihoodScheduledReconstructor as LikelihoodScheduledReconstructor
    from .reconstructors import RelativeDifferenceMAP as RelativeDifferenceMAP
    from .reconstructors import ScoreMAP as ScoreMAP
    from .reconstructors import SteerableAdaptation as SteerableAdaptation
    from .reconstructors import SteerableReconstructor as SteerableReconstructor
    from .study.reconstruction import reconstruct as reconstruct

__version__ = "0.1.0"

_EXPORTS = {
    name: module
    for module, names in {
        ".data": ["load_example"],
        ".engines": ["as_objective"],
        ".engines.embedded.acquisition": ["Acquisition"],
        ".engines.objective": ["Objective"],
        ".geometry.images": ["ImageGeometry"],
        ".interop": ["get_engine"],
        ".models": ["ScoreModel"],
        ".priors": [
            "AnchorPenalty", "BowsherPenalty", "ParallelLevelSetsPenalty", "Penalty", "QuadraticPenalty",
            "RelativeDifferencePenalty", "ScorePenalty", "kappa_image",
        ],
        ".reconstructors": [
            "MAPEM", "MLEM", "OSEM", "DDIPAdaptation", "DDIPReconstructor", "DDSReconstructor", "HQSReconstructor",
            "LikelihoodScheduledReconstructor", "RelativeDifferenceMAP", "ScoreMAP", "SteerableAdaptation",
            "SteerableReconstructor",
        ],
        ".study.reconstruction": ["reconstruct"],
    }.items()
    for name in names
}  # fmt: skip

__all__ = ["__version__", *_EXPORTS]


if not TYPE_CHECKING:  # for a type checker, the names above are all there are

    def __getattr__(name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_EXPORTS[name], __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
