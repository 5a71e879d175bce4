"""The ``sirf-diffusion`` command: parse, call the library, print.

Sub-commands are modules of this package with two functions, ``add_parser(subparsers, common)`` and ``run(arguments)``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .. import __version__
from . import data, demo, doctor, models, recon, recon_many, train
from .command_line import USER_ERRORS, common_options, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command("sirf-diffusion", arguments, ("sirf_diffusion",), USER_ERRORS)


def build_parser() -> argparse.ArgumentParser:
    """The parser with all sub-commands."""
    common = common_options()
    parser = argparse.ArgumentParser(
        prog="sirf-diffusion",
        description="PET reconstruction with diffusion-model priors, for STIR and SIRF data.",
        epilog="example: sirf-diffusion demo --quick",
    )
    parser.add_argument("--version", action="version", version=f"sirf-diffusion {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (demo, recon, recon_many, data, train, doctor, models):
        module.add_parser(subparsers, common)
    return parser
