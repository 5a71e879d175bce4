"""Priors: penalties on an image, written once on tensors."""

from __future__ import annotations

from .anchor import QuadraticAnchorPrior
from .base import Prior
from .bowsher import BowsherPrior
from .late_score import LateScorePrior
from .pls import ParallelLevelSetsPrior
from .quadratic import QuadraticPrior
from .rdp import RelativeDifferencePrior, kappa_image
from .score import ResidualModel, ScorePrior

__all__ = [
    "BowsherPrior",
    "LateScorePrior",
    "ParallelLevelSetsPrior",
    "Prior",
    "QuadraticAnchorPrior",
    "QuadraticPrior",
    "RelativeDifferencePrior",
    "ResidualModel",
    "ScorePrior",
    "kappa_image",
]
