"""The benchmark: every method tuned by the same search, on the same data, judged by the same numbers."""

from __future__ import annotations

from benchmarks.bench.campaign import Campaign, Outcome
from benchmarks.bench.suites import SUITES, Suite
from benchmarks.bench.table import LINES, Line

__all__ = ["LINES", "SUITES", "Campaign", "Line", "Outcome", "Suite"]
