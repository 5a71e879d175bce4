"""Everything is declared in pyproject.toml; this file compiles what STIR loads, where a STIR is installed.

It looks for STIR in STIR_DIR, the conda environment and /usr/local (pip hides PYTHONPATH while it builds), and never
fails without one, or without a compiler: `stir-diffusion build` then says what is missing.
"""

import importlib.util
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithShim(build_py):
    """Copies the Python files, then compiles the module and the programs into the user's cache."""

    def run(self) -> None:
        super().run()
        path = Path(__file__).resolve().parent / "stir_priors" / "build.py"
        spec = importlib.util.spec_from_file_location("stir_priors_build", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        module.build_if_possible()


setup(cmdclass={"build_py": BuildWithShim})
