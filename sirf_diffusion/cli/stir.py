"""The ``stir-diffusion`` command: build what STIR needs, check, run and scan STIR parameter files.

Exit codes: that of STIR's program for ``run``; 2 for whatever a user can put right, with one message, and in particular
wherever STIR would silently drop a prior or filter; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from .. import __version__
from .command_line import USER_ERROR, Parser, add_command, common_options, leave, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    user_errors = (ValueError, OSError, ImportError, RuntimeError)
    return run_command(build_parser(), argv, ("stir_priors", "sirf_diffusion"), user_errors)


def command() -> NoReturn:
    """What the installed ``stir-diffusion`` runs."""
    leave(main())


def build_parser() -> argparse.ArgumentParser:
    """The parser with all sub-commands."""
    common = common_options()
    parser = Parser(
        prog="stir-diffusion",
        description="Diffusion-model priors and filters for STIR's own programs and parameter files.",
        epilog="example: stir-diffusion build && stir-diffusion run OSMAPOSL my.par",
    )
    parser.add_argument("--version", action="version", version=f"stir-diffusion {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    build = add_command(
        commands,
        common,
        "build",
        _build,
        summary="compile the priors and filters against an installed STIR",
        about="Compile the priors and filters, and OSMAPOSL, OSSPS and postfilter with them, against an installed STIR "
        "(6.2 or newer), into a cache ($SIRF_DIFFUSION_CACHE, or ~/.cache). STIR itself stays as it is.",
        example="stir-diffusion build --stir-dir /usr/local",
    )
    build.add_argument(
        "--stir-dir",
        type=Path,
        metavar="DIR",
        help="where STIR is installed; default: STIR_DIR, the stir and sirf modules, the conda environment, /usr/local",
    )
    build.add_argument("--force", action="store_true", help="compile again even if nothing changed")
    run = add_command(
        commands,
        common,
        "run",
        _run,
        summary="run a parameter file by OSMAPOSL, OSSPS or postfilter with our priors and filters",
        about="Check a parameter file as `stir-diffusion check` does, then run it by STIR's program with our priors "
        "and filters built in. File names in it are relative to the current folder, as in STIR. KEY=VALUE sets "
        "the variable ${KEY} of the file.",
        example="  stir-diffusion run OSMAPOSL my.par SEED=2\n"
        "  stir-diffusion run postfilter denoised.hv image.hv filter.par",
    )
    run.add_argument("program", metavar="OSMAPOSL|OSSPS|postfilter")
    run.add_argument("words", nargs="+", metavar="[OUTPUT INPUT] FILE.par [KEY=VALUE ...]")
    check = add_command(
        commands,
        common,
        "check",
        _check,
        summary="say what a parameter file asks for and what is wrong with it",
        about="List the prior, filters, projector and data files of a parameter file, and what is wrong with it: names "
        "that STIR does not know, keys that it would ignore, files that are not there, numbers that do not fit each "
        "other. Exit code 2 if there is an error.",
        example="stir-diffusion check my.par",
    )
    check.add_argument("words", nargs="+", metavar="FILE.par [KEY=VALUE ...]")
    scan = add_command(
        commands,
        common,
        "scan",
        _scan,
        summary="run a parameter file for a list of penalisation factors",
        about="Run a parameter file of OSMAPOSL or OSSPS once for each penalisation factor, whatever its prior is, and "
        "write the images, a table (scan.csv) and a figure (scan.png). Finished factors are not run again.",
        example="stir-diffusion scan my.par --factors 0.05,0.1,0.2,0.5 --reference truth.hv",
    )
    scan.add_argument("words", nargs="+", metavar="FILE.par [KEY=VALUE ...]")
    scan.add_argument("--factors", required=True, metavar="A,B,C", help="penalisation factors; 0 is no prior")
    scan.add_argument("--reference", type=Path, metavar="X.hv", help="image to measure the distance to")
    scan.add_argument("--out", type=Path, metavar="DIR", help="folder for the results; default: scan_<file's name>")
    for command in (run, check, scan):
        command.add_argument(
            "--allow-python",
            action="store_true",
            help="let the file run Python modules of its choice (prior type := Python): only for files that you trust",
        )
        command.add_argument(
            "--python-module", action="append", default=[], metavar="NAME", help="let it run this one; may be repeated"
        )
    return parser


def _build(arguments: argparse.Namespace) -> int:
    from stir_priors.build import PROGRAMS, SOURCES, build

    folder = build(arguments.stir_dir, force=arguments.force)
    print(f"{folder}:")
    for path in sorted(folder.iterdir()):
        what = f"stir-diffusion run {path.name} FILE.par" if path.name in PROGRAMS else ""
        what = "stir_priors.load(), in Python with stir or sirf.STIR" if path.name.startswith("_shim") else what
        if what:
            print(f"  {path.name:<40} {what}")
    print(f"sample parameter files: {SOURCES / 'par'}")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from ..interop.stir.run import Call

    _allow_python(arguments)
    call = Call.parse(arguments.program, arguments.words)
    report = call.check()
    for finding in report.findings:
        print(f"{call.par}: {finding}", file=sys.stderr)
    if report.errors:
        print(f"stir-diffusion run: not run: {call.par} has {_errors(len(report.errors))}", file=sys.stderr)
        return USER_ERROR
    call.replace_process()
    raise AssertionError("the process was to be replaced")


def _check(arguments: argparse.Namespace) -> int:
    from ..interop.stir.check import check
    from ..interop.stir.run import Call

    _allow_python(arguments)
    call = Call.parse("OSMAPOSL", arguments.words)
    report = check(call.par, variables=call.variables)
    print(report.format())
    num_warnings = len(report.findings) - len(report.errors)
    if report.errors or num_warnings:
        print(f"{_errors(len(report.errors))}, {num_warnings} warning{'' if num_warnings == 1 else 's'}")
    else:
        print("nothing is wrong that can be seen without running it")
    return USER_ERROR if report.errors else 0


def _scan(arguments: argparse.Namespace) -> int:
    from ..interop.stir.run import Call
    from .stir_scan import Point, Scan, best, parse_factors

    _allow_python(arguments)
    factors = parse_factors(arguments.factors)
    call = Call.parse("OSMAPOSL", arguments.words)
    out = arguments.out or Path(f"scan_{call.par.stem}")
    if arguments.reference is not None and not arguments.reference.is_file():
        raise FileNotFoundError(2, "no such image", str(arguments.reference))
    scan = Scan(call.par, out, arguments.reference, call.variables)
    print(f"{'factor':>10} {'NRMSE':>8} {'log-likelihood':>16} {'roughness':>10} {'seconds':>8}")

    def show(point: Point) -> None:
        nrmse = "-" if point.nrmse is None else f"{point.nrmse:.4f}"
        likelihood = "-" if point.log_likelihood is None else f"{point.log_likelihood:.1f}"
        numbers = f"{point.roughness:>10.3f} {point.seconds:>8.1f}"
        print(f"{point.factor:>10g} {nrmse:>8} {likelihood:>16} {numbers}", flush=True)

    points = scan.run(factors, show)
    found = best(points)
    if found is not None:
        print(f"nearest to {arguments.reference}: penalisation factor {found[0].factor:g}")
        if found[1]:
            print(found[1])
    print(f"{out}: scan.csv, scan.png and the images")
    return 0


def _allow_python(arguments: argparse.Namespace) -> None:
    from ..interop.stir.python_blocks import ALLOW

    if arguments.allow_python:
        os.environ[ALLOW] = "1"
    elif arguments.python_module and os.environ.get(ALLOW) != "1":
        os.environ[ALLOW] = ",".join([*filter(None, [os.environ.get(ALLOW)]), *arguments.python_module])


def _errors(number: int) -> str:
    return "1 error" if number == 1 else f"{number} errors"


if __name__ == "__main__":
    command()
