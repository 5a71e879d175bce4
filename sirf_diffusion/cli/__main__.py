"""``python -m sirf_diffusion.cli``, where the installed command is not on the path."""

from __future__ import annotations

from . import command

command()
