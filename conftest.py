"""Keeps doctests away from modules that cannot be imported here."""

from __future__ import annotations

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("sirf") else [
    "sirf_diffusion/interop/sirf/*",
    "sirf_diffusion/engines/sirf/*",
]
