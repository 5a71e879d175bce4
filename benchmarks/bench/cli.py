"""``python -m benchmarks run``: every method against every other, on simulated data, with the evidence."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from sirf_diffusion.cli.command_line import add_precision
from sirf_diffusion.patient.image import optional

MODEL = "brain-fdg"
CONDITIONAL_MODEL = "brain-fdg-mr"
_NOT_OF_SPEED = ("methods", "compare", "subjects", "realisations", "truth", "mu", "mr", "template", "counts",
                 "conditional_model")  # fmt: skip
_SUITES = ("quick", "2d", "3d", "ood", "mismatch", "mismatch-stir", "speed")

_DESCRIPTION = """\
Measure the methods against each other on simulated subjects that no bundled model was trained on. Every method's
parameters are first tuned by the same search, on other subjects. Writes report.html (one page, opens from disk),
report.md, summary.csv, results.csv (a row per run), results.h5 (tables and images) and search.json into --out.

A benchmark that was stopped goes on where it was when the same command is given again: at most one run per worker is
lost. Exit code 1 says that runs failed, which the report lists. Sizes of the suites, and what each number means:
docs/benchmarks.md.

suites:
  quick   one slice at one count level, few methods: under 10 minutes on two cores
  2d      slices of three subjects at three count levels, all methods: about a day on two cores
  3d      23 planes with oblique segments: half a day on two cores
  ood     slices that differ from the training images: half a day on two cores
  mismatch, mismatch-stir
          slices with an error of the system model that no method is told of: hours on two cores
  speed   what each layer costs, and how it grows: a few minutes
"""


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser = subparsers.add_parser(
        "run",
        parents=[common],
        help="measure all methods against each other",
        description=_DESCRIPTION,
        epilog="example: python -m benchmarks run --suite quick --out bench-quick",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--suite", choices=_SUITES, default="quick", help="default: %(default)s")
    parser.add_argument("--truth", metavar="IMAGE|nema-iq", help="an image (Interfile, NIfTI, ...) as the truth")
    parser.add_argument("--mu", metavar="IMAGE", help="with --truth: its attenuation in 1/cm; else water inside it")
    parser.add_argument("--mr", metavar="IMAGE", help="with --truth: an MR image, for the guided methods")
    parser.add_argument("--template", metavar="T.hs", help="with --truth: the scanner, as projection data of STIR")
    parser.add_argument("--counts", nargs="+", type=float, metavar="N", help="with --truth: prompts per plane")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these of the suite, or 'all' there are")
    parser.add_argument("--subjects", type=int, metavar="N", help="only the first N subjects, and tuning subjects")
    parser.add_argument("--realisations", type=int, metavar="N", help="fewer noise realisations than the suite has")
    parser.add_argument("--list-methods", action="store_true", help="list all methods and end")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: sirf-diffusion-bench-SUITE")
    parser.add_argument("--model", default=MODEL, metavar="NAME|FILE", help="score model; default: %(default)s")
    parser.add_argument(
        "--conditional-model", metavar="NAME|FILE", help=f"of the MR-guided methods; default: {CONDITIONAL_MODEL}"
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes of this machine; default: 1")
    parser.add_argument("--cluster", metavar="ADDRESS", help="Dask scheduler instead, such as tcp://host:8786")
    parser.add_argument("--compare", type=Path, metavar="OLD.h5", help="show what changed since an earlier results.h5")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda", help="default: auto")
    add_precision(parser, "float32")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads; default: PyTorch's choice")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Tune, run, report."""
    from benchmarks.bench import LINES
    from sirf_diffusion.environment import select_device

    if arguments.list_methods:
        for line in LINES.values():
            print(f"{line.name:<15} {line.title}")
        return 0
    out = arguments.out or Path(f"sirf-diffusion-bench-{Path(arguments.truth or arguments.suite).stem}")
    device = str(select_device(arguments.device))
    command = shlex.join(["python", "-m", "benchmarks", *_without_folders(sys.argv[1:])])
    for package in ("pandas", "jinja2"):
        optional(package, "the report", "bench")
    if arguments.suite == "speed":
        return _speed(arguments, out, device, command)
    return _compare(arguments, out, device, command)


def _compare(arguments: argparse.Namespace, out: Path, device: str, command: str) -> int:
    from dataclasses import replace

    from benchmarks.bench import SUITES, Campaign
    from benchmarks.bench.page import write_report
    from benchmarks.bench.store import read_results
    from benchmarks.bench.table import LINES, get_line
    from benchmarks.bench.tables import QUALITY, as_text, markdown
    from sirf_diffusion.study.execution import Execution

    start = time.perf_counter()
    suite = SUITES[arguments.suite]
    if arguments.methods:
        names = tuple(LINES) if arguments.methods == ["all"] else tuple(get_line(n).name for n in arguments.methods)
        suite = replace(suite, methods=names)
    own = {name: getattr(arguments, name) for name in ("mu", "mr", "template", "counts")}
    if arguments.truth is not None:
        from benchmarks.bench.truth import Given

        suite = suite.of_truth(Given.of(arguments.truth, own["mu"], own["mr"], own["template"]), own["counts"])
    elif any(value is not None for value in own.values()):
        raise ValueError("--mu, --mr, --template and --counts belong to --truth IMAGE")
    suite = suite.smaller(arguments.subjects, arguments.realisations)
    earlier = None if arguments.compare is None else read_results(arguments.compare)[1]
    execution = Execution(arguments.workers, arguments.cluster)
    campaign = Campaign(suite, out, _models(arguments), execution, device, command, arguments.precision)
    outcome = campaign.run()
    write_report(outcome, out, earlier)
    for kind, prompts in dict.fromkeys((r["case"], r["prompts"]) for r in outcome.summary):
        rows = [r for r in outcome.summary if (r["case"], r["prompts"], r["variant"]) == (kind, prompts, 1.0)]
        print(f"\n{kind}, {prompts:.3g} prompts per plane")
        print(markdown(as_text(QUALITY[:6], sorted(rows, key=lambda r: r.get("nrmse", math.inf)))))
    for name, reason in outcome.unavailable.items():
        print(f"not run: {name}: {reason}")
    failed = [result for result in outcome.results if result.failure]
    for result in failed:
        print(f"failed: {result.spec.name}: {result.failure}", file=sys.stderr)
    print(f"\n{out / 'report.html'}, after {time.perf_counter() - start:.0f} s")
    return 1 if failed else 0


def _speed(arguments: argparse.Namespace, out: Path, device: str, command: str) -> int:
    from benchmarks.bench.speed import COLUMNS, measure_speed, write_speed
    from benchmarks.bench.tables import as_text, markdown

    given = [getattr(arguments, name) for name in _NOT_OF_SPEED]
    changed = arguments.workers != 1 or arguments.precision != "float32"
    if arguments.cluster is not None or changed or any(given):
        raise ValueError(
            "--suite speed measures this machine alone, in both precisions: leave out --workers, --cluster, "
            f"--precision, {', '.join('--' + name.replace('_', '-') for name in _NOT_OF_SPEED)}"
        )
    rows = measure_speed(arguments.model, device)
    write_speed(rows, out, command, device)
    print(markdown(as_text(COLUMNS, rows)))
    print(f"\n{out / 'report.md'}")
    return 0


def _models(arguments: argparse.Namespace) -> dict[str, str]:
    """The score models by role; the conditional one only if it is given or bundled."""
    from sirf_diffusion.models import list_models

    models = {"score": arguments.model}
    if arguments.conditional_model is not None:
        models["conditional"] = arguments.conditional_model
    elif CONDITIONAL_MODEL in list_models():
        models["conditional"] = CONDITIONAL_MODEL
    return models


def _without_folders(arguments: list[str]) -> list[str]:
    """The command as others would give it: where results go is their choice."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument != "--out" and not argument.startswith("--out="):
            kept.append(argument)
        skip = argument == "--out"
    return kept
