"""``python -m benchmarks``: measure the methods against each other, and what the code costs. Run in the repository."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sirf_diffusion.cli.command_line import USER_ERRORS, common_options, run_command

from . import kills, long_run, structure
from .bench import cli
from .fuzz import campaign


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run_command(build_parser(), argv, ("benchmarks", "sirf_diffusion"), USER_ERRORS)


def build_parser() -> argparse.ArgumentParser:
    """The parser with all sub-commands."""
    common = common_options()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, epilog="example: python -m benchmarks run --suite quick"
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (cli, structure, campaign, kills, long_run):
        module.add_parser(subparsers, common)
    return parser


if __name__ == "__main__":
    sys.exit(main())
