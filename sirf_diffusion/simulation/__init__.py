"""Simulated subjects: heads with realistic tissue layers, built from the MNI152 average brain."""

from .head import HeadAnatomy, simulate_anatomy
from .tracer import TracerContrast, simulate_activity

#: Subjects from here on are kept for examples, tests and benchmarks: no recipe may train or validate on them.
FIRST_HELD_OUT_SUBJECT = 9000

__all__ = ["FIRST_HELD_OUT_SUBJECT", "HeadAnatomy", "TracerContrast", "simulate_activity", "simulate_anatomy"]
