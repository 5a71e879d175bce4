"""What a run costs: projections, network evaluations and seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..engines.objective import Objective

if TYPE_CHECKING:
    from ..models.score_model import ScoreModel


@dataclass
class Cost:
    """Projections, network evaluations and seconds."""

    forward: float = 0.0
    back: float = 0.0
    evaluations: int = 0
    projector: float = 0.0
    network: float = 0.0
    callbacks: float = 0.0
    total: float = 0.0

    @classmethod
    def now(cls, objective: Objective, model: ScoreModel) -> Cost:
        """What the counters show."""
        p, n = objective.counter, model.counter
        return cls(p.forward, p.back, n.evaluations, p.seconds, n.seconds)

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(a - b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))
