"""Reconstructors: OSEM and MAP-EM, and the reverse-diffusion methods."""

from __future__ import annotations

from .adaptation.ddip import DDIPAdaptation, DDIPReconstructor, SteerableAdaptation, SteerableReconstructor
from .base import Reconstructor
from .diffusion.dds import DDSReconstructor
from .diffusion.hqs import HQSReconstructor
from .diffusion.lisch import LikelihoodScheduledReconstructor
from .em.map_methods import RelativeDifferenceMAP, ScoreMAP
from .em.mapem import MAPEM
from .em.osem import MLEM, OSEM
from .records import StepRecord

__all__ = [
    "MAPEM",
    "MLEM",
    "OSEM",
    "DDIPAdaptation",
    "DDIPReconstructor",
    "DDSReconstructor",
    "HQSReconstructor",
    "LikelihoodScheduledReconstructor",
    "Reconstructor",
    "RelativeDifferenceMAP",
    "ScoreMAP",
    "SteerableAdaptation",
    "SteerableReconstructor",
    "StepRecord",
]
