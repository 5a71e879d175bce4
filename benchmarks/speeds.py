"""What the speeds of the samplers cost in error and calibration, and what they save.

::

    OMP_NUM_THREADS=1 python -m benchmarks.speeds --cases slice:800:5e4 slice:801:2e5 slice:802:1e6

Each case is reconstructed at each speed, one after the other, from the same counts; `accurate` in float32, which is the
reference of all ratios. Seconds are those of the processor, which other programs disturb little. Hot lesions: recovered
contrast, summed over the lesions of all cases. Subjects 800 to 899 are those of tuning.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import torch

from benchmarks.bench.cases import CaseSpec, make_case
from benchmarks.bench.measures import image_measures, posterior_measures
from benchmarks.bench.problem import Problem
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.reconstructors.methods import METHODS
from sirf_diffusion.reconstructors.settings import SPEEDS

HEADER = "| method | speed | processor | NRMSE | SSIM | hot lesions | coverage [points] | SD / error |"


def measured(spec: CaseSpec, method: str, speed: str, options: argparse.Namespace) -> dict[str, float]:
    """Processor seconds and quality of one reconstruction."""
    case = make_case(spec)
    objective = Problem(case, options.realisation, {}, torch.device("cpu")).objective(METHODS[method].num_subsets)
    model = ScoreModel.load(options.model, precision="float32" if speed == SPEEDS[0] else "auto")
    objective.sensitivity()
    began = time.process_time()
    made: Any = METHODS[method](
        objective, model, num_samples=options.samples, seed=options.realisation, speed=speed
    ).process()
    row = {"seconds": time.process_time() - began, **image_measures(made.get_output(), case)}
    row["hot"] = sum(value for name, value in row.items() if name.startswith("crc hot"))
    return row | posterior_measures(made.get_samples(), case, made.noise)[0]


def table_row(method: str, speed: str, pairs: list[tuple[dict[str, float], dict[str, float]]]) -> str:
    """Means over cases of one speed against the reference."""
    count = len(pairs)

    def of_sums(name: str) -> float:
        return sum(one[name] for one, _ in pairs) / sum(other[name] for _, other in pairs)

    def mean(name: str) -> float:
        return sum(one[name] / other[name] for one, other in pairs) / count

    ratios = (of_sums("seconds"), mean("nrmse"), mean("ssim"), of_sums("hot"))
    coverage = 100 * sum(one["coverage"] - other["coverage"] for one, other in pairs) / count
    spread = [sum(row["spread"] for row in rows) / count for rows in zip(*pairs, strict=True)]
    cells = (*(f"{ratio:.3f}" for ratio in ratios), f"{coverage:+.1f}", f"{spread[0]:.2f} ({spread[1]:.2f})")
    return f"| {method} | {speed} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["slice:800:5e4"], metavar="slice|volume:SUBJECT:PROMPTS")
    parser.add_argument("--methods", nargs="+", default=["lisch", "hqs"], choices=("dds", "hqs", "lisch"))
    parser.add_argument("--speeds", nargs="+", default=SPEEDS[1:], choices=SPEEDS[1:])
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--realisation", type=int, default=1)
    parser.add_argument("--model", default="brain")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pairs: dict[tuple[str, str], list[Any]] = {}
    for text in options.cases:
        kind, subject, prompts = text.split(":")
        spec = CaseSpec(kind, int(subject), float(prompts))
        for method in options.methods:
            reference = measured(spec, method, SPEEDS[0], options)
            for speed in options.speeds:
                pairs.setdefault((method, speed), []).append((measured(spec, method, speed, options), reference))
            print(f"{text}, {method}", file=sys.stderr, flush=True)
    print(HEADER + "\n" + "| --- " * 8 + "|")
    for (method, speed), found in pairs.items():
        print(table_row(method, speed, found))


if __name__ == "__main__":
    main()
