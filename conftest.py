"""Keeps doctests away from modules that cannot be imported here, and from scripts."""

from __future__ import annotations

import importlib.util

collect_ignore_glob = ["tests/reference/*", "tests/public_names.py"]
if not importlib.util.find_spec("sirf"):
    collect_ignore_glob += ["sirf_diffusion/interop/sirf/*", "sirf_diffusion/engines/sirf/*"]
