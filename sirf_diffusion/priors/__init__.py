"""Priors: penalties on an image, written once on tensors."""

from __future__ import annotations

from .anchor import AnchorPenalty
from .base import Penalty
from .bowsher import BowsherPenalty
from .late_score import LateScorePenalty
from .pls import ParallelLevelSetsPenalty
from .quadratic import QuadraticPenalty
from .rdp import RelativeDifferencePenalty, kappa_image
from .score import ResidualModel, ScorePenalty

__all__ = [
    "AnchorPenalty",
    "BowsherPenalty",
    "LateScorePenalty",
    "ParallelLevelSetsPenalty",
    "Penalty",
    "QuadraticPenalty",
    "RelativeDifferencePenalty",
    "ResidualModel",
    "ScorePenalty",
    "kappa_image",
]
