"""The benchmark: every method tuned by the same search, on the same data, judged by the same numbers."""

from __future__ import annotations

from .campaign import Campaign, Outcome
from .suites import SUITES, Suite
from .table import LINES, Line

__all__ = ["LINES", "SUITES", "Campaign", "Line", "Outcome", "Suite"]
