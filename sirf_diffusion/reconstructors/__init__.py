"""Reconstructors: OSEM and MAP-EM, and the reverse-diffusion methods."""

from __future__ import annotations

from .base import Reconstructor
from .ddip import DDIPAdaptation, DDIPReconstructor
from .dds import DDSReconstructor
from .hqs import HQSReconstructor
from .lisch import LikelihoodScheduledReconstructor
from .mapem import MAPEM
from .osem import MLEM, OSEM
from .records import StepRecord
from .steerable import SteerableAdaptation, SteerableReconstructor

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
    "SteerableAdaptation",
    "SteerableReconstructor",
    "StepRecord",
]
