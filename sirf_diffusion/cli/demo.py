"""``sirf-diffusion demo``: all methods on bundled example data."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from .command_line import add_command, add_machine, seed, whole

MODEL = "brain-fdg"
#: What is best for the bundled slice, found on other noise realisations (benchmarks/low_count_slice.py): a fair rival.
TUNED = {"map-rdp": {"penalisation_factor": 1.0}}


def add_parsers(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser = add_command(
        commands,
        common,
        "demo",
        run,
        summary="reconstruct bundled example data by all methods",
        about="Reconstruct a bundled low-count brain slice by all methods, compare them with the truth, and "
        "reconstruct a few planes in 3D (not with --quick). Prints a table; writes metrics.json, comparison.png and "
        "the images. Two to six minutes on two cores, one or two with --quick.",
        example="sirf-diffusion demo --out my-demo --quick",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("sirf-diffusion-demo"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer steps and samples, no 3D: a look, not a measurement"
    )
    parser.add_argument("--model", default=MODEL, metavar="NAME|FILE", help="score model; default: %(default)s")
    parser.add_argument("--data", default="brain2d", metavar="NAME|DIR", help="example data; default: %(default)s")
    parser.add_argument("--samples", type=whole(), metavar="K", help="posterior samples; default: 5, or 2 with --quick")
    parser.add_argument("--seed", type=seed, default=0, metavar="S", help="default: 0")
    add_machine(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace another result in --out")


def run(arguments: argparse.Namespace) -> int:
    """Compare, print, write."""
    from ..data import list_examples, load_example
    from ..environment import select_device, software_versions
    from ..files.outputs import OutputFolder, write_json
    from ..models import ScoreModel
    from ..reconstructors.records import ProgressBar
    from ..study.comparison import compare

    start = time.perf_counter()
    device = select_device(arguments.device)
    model = ScoreModel.load(arguments.model, device=device)
    example = load_example(arguments.data)
    volume = "brain3d" if not arguments.quick and arguments.data == "brain2d" and "brain3d" in list_examples() else None
    folder = OutputFolder(
        arguments.out,
        {
            "data": [arguments.data, volume],
            "model": model.hash,
            "quick": arguments.quick,
            "samples": arguments.samples,
            "seed": arguments.seed,
            "version": software_versions()["sirf-diffusion"],
        },
        overwrite=arguments.overwrite,
    )
    options = {
        "model": model,
        "num_samples": arguments.samples,
        "seed": arguments.seed,
        "device": arguments.device,
        "quick": arguments.quick,
        "callbacks": [ProgressBar()],
    }
    spent = {"model and example": time.perf_counter() - start}
    with folder.held():
        comparison = compare(example, settings=TUNED if arguments.data == "brain2d" else None, **options)
        print(comparison.table())
        in_3d = {} if volume is None else _compare_planes(load_example(volume), options)
        for name, c in {"2D": comparison, **in_3d}.items():
            for kind, seconds in c.seconds().items():
                label = f"{kind} in {'2D' if name == '2D' else '3D'}"
                spent[label] = spent.get(label, 0.0) + seconds
        spent["comparing with the truth"] = time.perf_counter() - start - sum(spent.values())
        last = time.perf_counter()
        records = {name: result.record for name, result in comparison.results.items()}
        with folder.staged({"methods": records, "true_log_likelihood": comparison.true_log_likelihood}) as staging:
            write_json(staging / "metrics.json", comparison.metrics())
            comparison.figure(staging / "comparison.png")
            _write_images(staging, "", comparison)
            if in_3d:
                write_json(
                    staging / "metrics-3d.json", {name: c.metrics()[name.split()[0]] for name, c in in_3d.items()}
                )
                for name, c in in_3d.items():
                    _write_images(staging, f"3d-{name.replace(' ', '-')}-", c)
    spent["figure and files"] = time.perf_counter() - last
    print("\nseconds: " + ", ".join(f"{seconds:.1f} {name}" for name, seconds in spent.items()))
    print(f"\n{arguments.out}: comparison.png, metrics.json and the images, after {time.perf_counter() - start:.0f} s")
    return 0


def _compare_planes(example: Any, options: dict[str, Any]) -> dict[str, Any]:
    """OSEM, and likelihood-scheduled sampling in slices of one and of three orientations, on a volume; few levels.

    Three orientations take turns, each with as many levels as the one.
    """
    from ..reconstructors.methods import METHODS
    from ..study.comparison import COLUMNS, compare
    from ..study.report import format_table

    options = {**options, "quick": True}
    in_3d = {"osem": compare(example, ["osem"], **options)}
    num_steps = METHODS["lisch"].defaults("quick")["num_steps"]
    for planes, turns in (("transverse", 1), ("alternating", 3)):
        settings = {"planes": planes, "num_steps": turns * num_steps}
        in_3d[f"lisch {planes}"] = compare(example, ["lisch"], settings={"lisch": settings}, **options)
    print(f"\n3D, {example.truth.shape[0]} planes with oblique segments:")
    print(format_table([{**c.rows()[0], "method": name} for name, c in in_3d.items()], COLUMNS))
    return in_3d


def _write_images(folder: Path, prefix: str, comparison: Any) -> None:
    from ..files.interfile import write_image

    geometry = comparison.example.acquisition.geometry
    for stem, image in comparison.images().items():
        write_image(folder / f"{prefix}{stem}.hv", image, geometry)
