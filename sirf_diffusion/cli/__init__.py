"""The ``sirf-diffusion`` command: parse, call the library, print.

Sub-commands are modules of this package with two functions, ``add_parser(subparsers, common)`` and ``run(arguments)``.
What a user can put right (a file, a value, a missing package) is one message on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence

from .. import __version__
from . import data, demo, doctor, models, recon, train

INTERRUPTED = 130
USER_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    _set_up_logging(arguments)
    try:
        if getattr(arguments, "threads", None):
            _set_threads(arguments.threads)
        with warnings.catch_warnings():
            warnings.showwarning = _log_warning
            return arguments.run(arguments)
    except KeyboardInterrupt:
        if arguments.debug:
            raise
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe (head, less) has gone; nothing is wrong.
        sys.stderr.close()
        return 0
    except (ValueError, OSError, ImportError, NotImplementedError, MemoryError) as error:
        if arguments.debug:
            raise
        print(f"sirf-diffusion {arguments.command}: error: {_one_message(error)}", file=sys.stderr)
        return USER_ERROR


def build_parser() -> argparse.ArgumentParser:
    """The parser with all sub-commands."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--verbose", action="store_true", help="say more of what is done")
    common.add_argument("--debug", action="store_true", help="say everything, and show a traceback on errors")
    parser = argparse.ArgumentParser(
        prog="sirf-diffusion",
        description="PET reconstruction with diffusion-model priors, for STIR and SIRF data.",
        epilog="example: sirf-diffusion demo --quick",
    )
    parser.add_argument("--version", action="version", version=f"sirf-diffusion {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (demo, recon, data, train, doctor, models):
        module.add_parser(subparsers, common)
    return parser


def _set_up_logging(arguments: argparse.Namespace) -> None:
    # Other libraries' debug messages would bury ours: only this package's logger is opened.
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    level = logging.DEBUG if arguments.debug else logging.INFO if arguments.verbose else logging.WARNING
    logging.getLogger("sirf_diffusion").setLevel(level)


def _log_warning(message: Warning | str, *where: object, **more: object) -> None:
    logging.getLogger("sirf_diffusion").warning("%s", message)


def _set_threads(number: int) -> None:
    import torch

    if number < 1:
        raise ValueError(f"--threads must be at least 1, found {number}")
    torch.set_num_threads(number)


def _one_message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or error}"
    return str(error) or type(error).__name__
