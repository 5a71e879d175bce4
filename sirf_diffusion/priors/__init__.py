"""Penalties: what is subtracted from the log-likelihood, functions of an image written once on tensors."""

from __future__ import annotations

from .anchor import AnchorPenalty
from .base import Penalty
from .bowsher import BowsherPenalty
from .pls import ParallelLevelSetsPenalty
from .quadratic import QuadraticPenalty
from .rdp import RelativeDifferencePenalty, kappa_image
from .score import MEMORY, NOISE_LEVEL, PENALISATION_FACTOR, ScorePenalty

__all__ = [
    "MEMORY",
    "NOISE_LEVEL",
    "PENALISATION_FACTOR",
    "AnchorPenalty",
    "BowsherPenalty",
    "ParallelLevelSetsPenalty",
    "Penalty",
    "QuadraticPenalty",
    "RelativeDifferencePenalty",
    "ScorePenalty",
    "kappa_image",
]
