"""Priors and filters that STIR loads: registered in STIR by a small compiled module, written in Python.

`load` puts them into a running process (STIR-Python or SIRF); the command ``stir-diffusion`` builds what is needed and
runs parameter files.
"""

from __future__ import annotations

from .loader import ShimError, load, watch

__all__ = ["ShimError", "load", "watch"]
