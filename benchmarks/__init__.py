"""Benchmarks of all methods on simulated subjects, and timings: ``python -m benchmarks --help``."""
