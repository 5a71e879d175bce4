"""The ``sirf-diffusion`` command: parse, call the library, print.

Sub-commands are modules of this package with a function ``add_parsers(commands, common)``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from .. import __version__
from . import atlas, data, demo, doctor, enhance, models, personalise, recon, train
from .command_line import USER_ERRORS, Parser, common_options, leave, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run_command(build_parser(), argv, ("sirf_diffusion",), USER_ERRORS)


def command() -> NoReturn:
    """What the installed ``sirf-diffusion`` runs."""
    leave(main())


def build_parser() -> argparse.ArgumentParser:
    """The parser with all sub-commands."""
    common = common_options()
    parser = Parser(
        prog="sirf-diffusion",
        description="PET reconstruction with diffusion-model priors, for STIR and SIRF data.",
        epilog="example: sirf-diffusion demo --quick",
    )
    parser.add_argument("--version", action="version", version=f"sirf-diffusion {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (demo, recon, enhance, data, train, personalise, atlas, doctor, models):
        module.add_parsers(commands, common)
    return parser
