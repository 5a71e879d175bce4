"""For people who write their own loops: scheduled and anchored objective functions, and functions for CIL."""

from .scheduled_objective import HQSObjective, LikelihoodScheduledObjective

__all__ = ["HQSObjective", "LikelihoodScheduledObjective"]
