"""The documentation site: ``python -m sphinx -W -b html docs site``."""

from __future__ import annotations

from pathlib import Path

import sirf_diffusion

project = "sirf-diffusion"
author = "The sirf-diffusion contributors"
version = release = sirf_diffusion.__version__
extensions = ["myst_parser", *(f"sphinx.ext.{name}" for name in ("autodoc", "autosummary", "napoleon", "mathjax"))]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
autosummary_generate = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_custom_sections = [("Settings", "params_style")]
# Optional packages, which the pages do not need: STIR and SIRF are compiled, CIL comes with SIRF.
autodoc_mock_imports = ["stir", "sirf", "cil"]
html_theme = "furo"
html_title = "sirf-diffusion"
exclude_patterns = ["site"]

listed = Path(__file__).with_name("api.md").read_text(encoding="utf-8").split()
if missing := sorted(set(sirf_diffusion.__all__) - {"__version__", *listed}):
    raise ValueError(f"docs/api.md does not list {', '.join(missing)}")
