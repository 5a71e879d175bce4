"""What the speeds of the samplers cost in error and calibration, and what they save.

::

    OMP_NUM_THREADS=1 python -m benchmarks.speeds --cases slice:800:5e4 slice:801:2e5 slice:802:1e6
    ... --models brain small.safetensors                                # a distilled model beside its teacher
    ... --speeds balanced --set coarse_above=1.0                        # what a setting does

Each case is reconstructed at each speed, one after the other, from the same counts; `accurate` with the first model in
float32 is the reference of all ratios. A model that takes an MR is shown the case's. Seconds are those of the
processor, which other programs disturb little. Hot lesions: recovered contrast, summed over the lesions of all cases.
Subjects 800 to 899 are those of tuning.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench.cases import Case, CaseSpec, make_case
from benchmarks.bench.measures import image_measures, posterior_measures
from benchmarks.bench.problem import Problem
from sirf_diffusion.cli.recon_options import parse_settings
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.reconstructors.methods import METHODS
from sirf_diffusion.reconstructors.settings import SPEEDS

HEADER = "| method | model | speed | processor | NRMSE | SSIM | hot lesions | coverage [points] | SD / error |"


def measured(case: Case, method: str, name: str, speed: str, options: argparse.Namespace) -> dict[str, float]:
    """Processor seconds and quality of one reconstruction."""
    problem = Problem(case, options.realisation, {}, torch.device("cpu"))
    objective = problem.objective(METHODS[method].num_subsets)
    model = ScoreModel.load(name, precision="float32" if speed == SPEEDS[0] else "auto")
    if model.in_channels > 1:
        model = model.guided_by(problem.mr)
    objective.sensitivity()
    began = time.process_time()
    made: Any = METHODS[method](
        objective, model, num_samples=options.samples, seed=options.realisation, speed=speed,
        **({} if speed == SPEEDS[0] else parse_settings(options.settings)),
    ).process()  # fmt: skip
    row = {"seconds": time.process_time() - began, **image_measures(made.get_output(), case)}
    row["hot"] = sum(value for name, value in row.items() if name.startswith("crc hot"))
    return row | posterior_measures(made.get_samples(), case, made.noise)[0]


def table_row(names: Sequence[str], pairs: list[tuple[dict[str, float], dict[str, float]]]) -> str:
    """Means over cases of one method, model and speed against the reference."""
    count = len(pairs)

    def of_sums(name: str) -> float:
        return sum(one[name] for one, _ in pairs) / sum(other[name] for _, other in pairs)

    def mean(name: str) -> float:
        return sum(one[name] / other[name] for one, other in pairs) / count

    ratios = (of_sums("seconds"), mean("nrmse"), mean("ssim"), of_sums("hot"))
    coverage = 100 * sum(one["coverage"] - other["coverage"] for one, other in pairs) / count
    spread = [sum(row["spread"] for row in rows) / count for rows in zip(*pairs, strict=True)]
    cells = (*(f"{ratio:.3f}" for ratio in ratios), f"{coverage:+.1f}", f"{spread[0]:.2f} ({spread[1]:.2f})")
    return f"| {' | '.join((*names, *cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["slice:800:5e4"], metavar="slice|volume:SUBJECT:PROMPTS")
    parser.add_argument("--methods", nargs="+", default=["lisch", "hqs"], choices=("dds", "hqs", "lisch"))
    parser.add_argument("--speeds", nargs="+", default=SPEEDS[1:], choices=SPEEDS[1:])
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--realisation", type=int, default=1)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE",
                        help="of all but the reference")  # fmt: skip
    parser.add_argument("--models", nargs="+", default=["brain"], metavar="NAME|FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pairs: dict[tuple[str, ...], list[Any]] = {}
    for text in options.cases:
        kind, subject, prompts = text.split(":")
        case = make_case(CaseSpec(kind, int(subject), float(prompts)))
        for method in options.methods:
            reference = measured(case, method, options.models[0], SPEEDS[0], options)
            for name, speed in product(options.models, options.speeds):
                made = measured(case, method, name, speed, options)
                names = method, Path(name).stem, speed
                pairs.setdefault(names, []).append((made, reference))
                print(text, table_row(names, pairs[names][-1:]), file=sys.stderr, flush=True)
    print(HEADER + "\n" + "| --- " * 9 + "|")
    for names, found in pairs.items():
        print(table_row(names, found))


if __name__ == "__main__":
    main()
