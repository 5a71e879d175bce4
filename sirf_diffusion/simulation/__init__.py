"""Simulated subjects: heads with realistic tissue layers, built from the MNI152 average brain."""

from .head import HeadAnatomy, simulate_anatomy
from .tracer import TracerContrast, simulate_activity

__all__ = ["HeadAnatomy", "TracerContrast", "simulate_activity", "simulate_anatomy"]
