"""Objective functions of STIR's Python module."""

from .objective import StirObjective

__all__ = ["StirObjective"]
