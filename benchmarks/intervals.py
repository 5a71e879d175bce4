r"""Coverage of samples' intervals, and the factors that make it right: measured, shown, and kept with the model.

::

    OMP_NUM_THREADS=1 python -m benchmarks.intervals --out intervals            # the bundled model `brain`
    OMP_NUM_THREADS=1 python -m benchmarks.intervals --out intervals --model FILE.safetensors --write

Each case is reconstructed by `sirf_diffusion.reconstruct` at the defaults or at --speed, as user data are; a run is
kept in --out as soon as it is there, and not made again. Factors come from cases of tuning subjects (below 9000), at
least two images, all with the same weight: split conformal prediction (Vovk et al. 2005; Angelopoulos and Bates 2023,
doi:10.1561/2200000101) with the score ``|truth - mean| / SD``, inside the head. Coverage is printed *before* (of
``mean +- t SD``, Student's t) and *after* for all cases, so for subjects that had no part. --write keeps the factors as
FILE.intervals.json beside the model.

A case is KIND:SUBJECT or the name of a bundled example; kinds are ``slice``, ``volume``, those of the suites ``ood``
and ``mismatch``, and ``second-TRACER`` (heads of the second generator).
"""

from __future__ import annotations

import argparse
import logging
import time
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from math import exp, log
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench.cases import FIRST_REPORTED_SUBJECT, CaseSpec, make_case, short
from benchmarks.bench.problem import acquisition_of
from benchmarks.score_prior import SECOND, scan_of
from sirf_diffusion.data import list_examples, load_example
from sirf_diffusion.engines.em import trues_per_plane
from sirf_diffusion.engines.embedded.acquisition import Acquisition
from sirf_diffusion.files.lock import LOCK, locked
from sirf_diffusion.files.outputs import jsonable, write_json
from sirf_diffusion.files.versions import read_record
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.models.intervals import NOMINAL, Factors, IntervalTable, NotCalibrated, write_table
from sirf_diffusion.reconstructors.diffusion.chain import posterior_sd
from sirf_diffusion.reconstructors.methods import get_method
from sirf_diffusion.reconstructors.settings import DEFAULT_SPEED, SPEEDS
from sirf_diffusion.study.metrics import nrmse
from sirf_diffusion.study.reconstruction import reconstruct
from sirf_diffusion.study.vois import interval_factor

METHODS = ("lisch", "hqs", "dds")
PROMPTS = (5e4, 2e5, 1e6)
TUNING = ("slice:800", "amyloid-negative:804", "slice:801", "dpa714:805", "slice:802", "amyloid-positive:803")
REPORTED = ("slice:9002", "amyloid-negative:9004", "slice:9003", "dpa714:9005")
#: At 2e5 prompts alone.
CHANGED = ("second-fdg:9002", "second-any:9003", "wrong-psf:9002", "wrong-background:9002",
           "missing-views:9002", "high-resolution:9003", "brain2d")  # fmt: skip
#: Sides of the squares of voxels whose means are measured as VOIs, beside tissues and lesions.
SQUARES = (5, 10, 20)
TISSUES, SMALLEST_PART = ("grey", "white"), 30
#: A distribution is kept as so many quantiles.
NUM_QUANTILES = 2000

logger = logging.getLogger("benchmarks.intervals")


def scan(case: str, prompts: float) -> tuple[Acquisition, Tensor, Tensor, dict[str, Tensor]]:
    """Data, truth, what is inside the head, and regions."""
    if case in list_examples():
        example = load_example(case)
        return example.acquisition, example.truth, example.attenuation > 0.05, {}
    kind, _, subject = case.partition(":")
    if kind.startswith(SECOND):
        made = scan_of(kind, int(subject), prompts)
        return made.acquisition, made.truth, made.truth > 0.02 * made.truth.max(), {}
    simulated = make_case(CaseSpec(kind, int(subject), prompts))
    data = acquisition_of(simulated)
    regions = {name: mask for name, mask in simulated.masks.items() if name != "head" and "around" not in name}
    return data, simulated.truth, simulated.masks["head"], regions


def vois_of(head: Tensor, regions: dict[str, Tensor]) -> dict[str, list[Tensor]]:
    """Masks of VOIs by their kind: tissues, their parts in squares, lesions, and squares that lie in the head."""
    tissues = [mask for name, mask in regions.items() if name in TISSUES]
    lesions = [mask for name, mask in regions.items() if name not in TISSUES]
    found: dict[str, list[Tensor]] = {"tissue": tissues, "part": [], "lesion": lesions}
    for side in SQUARES:
        squares = found[f"square {side}"] = []
        planes, height, width = head.shape
        for z in range(0, planes, side):
            for y in range(0, height - side + 1, side):
                for x in range(0, width - side + 1, side):
                    mask = torch.zeros_like(head)
                    mask[z : z + side, y : y + side, x : x + side] = True
                    parts = [tissue & mask for tissue in tissues if side == SQUARES[-1]]
                    found["part"] += [part for part in parts if int(part.sum()) >= SMALLEST_PART]
                    if float(head[mask].float().mean()) > 0.9:
                        squares.append(mask)
    return found


def measure(data: Any, truth: Tensor, head: Tensor, regions: dict[str, Tensor], method: str, model: ScoreModel,
            options: argparse.Namespace, checked: bool) -> dict[str, Any]:  # fmt: skip
    """One run: how far the truth lies from the mean, in standard deviations of the samples, by voxel and by VOI."""
    began = time.process_time()
    num_samples = options.samples
    members = None if checked else range(num_samples)  # a share of the samples is not checked
    drawn = {"num_samples": num_samples, "seed": 1, "members": members, "speed": options.speed}
    result = reconstruct(data, method, model=model, **drawn)
    seconds = time.process_time() - began
    samples, record = result.samples.double(), result.record
    noises, error = record["values"]["noise"], (truth.double() - samples.mean(0)).abs()
    ratio = (error / posterior_sd(samples, noises).clamp(min=1e-12))[head]
    ends = torch.arange(NUM_QUANTILES, dtype=torch.float64)
    quantiles = ratio.sort().values[((ends + 0.5) / NUM_QUANTILES * len(ratio)).long()]

    def distance(mask: Tensor) -> float:
        sd = posterior_sd(samples[:, mask].mean(1), noises).clamp(min=1e-12)
        return float((samples[:, mask].mean() - truth[mask].double().mean()).abs() / sd)

    return {
        "method": method,
        "num_samples": num_samples,
        "values": record["values"],
        "kind": "volumes" if truth.shape[0] > 1 else "slices",
        "voxel_size_mm": result.geometry.voxel_size,
        "counts": trues_per_plane(data.objective(), result.image),
        "voxels": [round(float(q), 4) for q in quantiles],
        "vois": {kind: [round(distance(mask), 4) for mask in masks] for kind, masks in vois_of(head, regions).items()},
        "nrmse": nrmse(result.image, truth),
        "verdict": None if record["distribution"] is None else record["distribution"]["verdict"],
        "seconds": seconds,
    }


def runs(options: argparse.Namespace, model: ScoreModel) -> list[dict[str, Any]]:
    """All runs that were asked for, the missing ones made."""
    found = []
    plan = [(c, p) for cases in (options.tuning, options.reported) for c in cases for p in options.prompts]
    for case, prompts in [*plan, *((case, 2e5) for case in options.changed)]:
        made = None
        for method in options.methods:
            name = f"{case}-{short(prompts)}-{method}-{options.samples}-{options.speed}-{model.hash[:8]}.json"
            path = options.out / name
            volume = case.startswith("volume") or case == "brain3d"
            current = jsonable(get_method(method).with_settings({}, volume=volume, speed=options.speed))
            run = read_record(path) if path.is_file() else None
            if run is None or run["values"] != current:
                if options.show:
                    continue
                made = made or scan(case, prompts)
                run = jsonable(measure(*made, method, model, options, case not in options.tuning))
                run |= {"case": case, "prompts": prompts}
                write_json(path, run)
                logger.info("%s, %g prompts, %s: NRMSE %.3f, %.0f s", case, prompts, method, run["nrmse"],
                            run["seconds"])  # fmt: skip
            found.append(run)
    return found


def level(groups: Sequence[Sequence[float]], probability: float = NOMINAL) -> float:
    """Least number that so many of all values do not exceed, each group having the same weight."""
    weighted = sorted((value, 1 / len(group)) for group in groups for value in group)
    below = list(accumulate(weight for _, weight in weighted))
    place = bisect_left(below, probability * len(groups) - 1e-9)
    return weighted[place][0]


def factors_of(runs: Sequence[dict[str, Any]]) -> list[Factors]:
    """Entries of a model's table, from runs of tuning subjects; of what has fewer than two cases there is none."""
    by_key: dict[Any, dict[float, list[dict[str, Any]]]] = {}
    for run in runs:
        key = run["method"], run["kind"], run["num_samples"], tuple(run["voxel_size_mm"])
        by_key.setdefault(key, {}).setdefault(run["prompts"], []).append(run)
    entries = []
    for key, by_prompts in by_key.items():
        levels = [by_prompts[prompts] for prompts in sorted(by_prompts) if len(by_prompts[prompts]) > 1]
        if levels:
            counts = [exp(sum(log(run["counts"]) for run in group) / len(group)) for group in levels]
            voxels = [level([run["voxels"] for run in group]) for group in levels]
            # Of one kind there are few in a case: all levels together.
            vois = [level(vois_in([run for group in levels for run in group]))] * len(levels)
            cases = dict.fromkeys(run["case"] for group in levels for run in group)
            numbers = [tuple(float(f"{x:.4g}") for x in column) for column in (counts, voxels, vois)]
            entries.append(Factors(*key, levels[0][0]["values"], *numbers, tuple(cases)))
    return entries


def vois_in(runs: Sequence[dict[str, Any]]) -> list[list[float]]:
    """Those that a factor is made for, by kind: not whole tissues, whose mean is wrong by the bias alone."""
    kinds = dict.fromkeys(kind for run in runs for kind in run["vois"] if kind != "tissue")
    found = [[distance for run in runs for distance in run["vois"].get(kind, ())] for kind in kinds]
    return [distances for distances in found if distances]


def table(runs: Sequence[dict[str, Any]], entries: Sequence[Factors], tuning: Sequence[str]) -> str:
    """Coverage before and after in per cent, a line a kind of case, method and count level."""
    held = IntervalTable("", "", tuple(entries))
    groups: dict[tuple[str, str, float], list[Any]] = {}
    for run in runs:
        try:
            key = run["method"], run["kind"], run["num_samples"], run["voxel_size_mm"], run["values"]
            after = held.factors(*key).at(run["counts"])
        except NotCalibrated:
            after = None
        student = interval_factor(run["num_samples"], run["values"]["noise"])
        row = []
        for place, found in enumerate(([run["voxels"]], vois_in([run]), [run["vois"]["tissue"]])):
            for factor in (student, None if after is None else after[min(place, 1)]):
                shares = [sum(x <= factor for x in values) / len(values) for values in found if values and factor]
                row.append(100 * sum(shares) / len(shares) if shares else None)
        name = f"tuning, {run['kind']}" if run["case"] in tuning else run["case"]
        groups.setdefault((name, run["method"], run["prompts"]), []).append((*row, run["verdict"]))
    heads = "voxels: before | after | VOIs: before | after | whole tissues: before | after"
    lines = [f"| case | method | prompts | {heads} | check |", "| --- " * 10 + "|"]
    for (name, method, prompts), rows in groups.items():
        cells = [[x for x in column if x is not None] for column in list(zip(*rows, strict=True))[:-1]]
        texts = [f"{sum(c) / len(c):.0f}" if c else "" for c in cells]
        said = ", ".join(dict.fromkeys(row[-1] for row in rows if row[-1]))
        lines.append(f"| {name} | {method} | {short(prompts)} | {' | '.join(texts)} | {said} |")
    for e in entries:
        lines.append(f"{e.method}, {e.kind}: {e.trues_per_plane} trues per plane, voxels {e.voxels}, VOIs {e.vois}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where runs are kept")
    parser.add_argument("--model", default="brain", metavar="NAME|FILE")
    parser.add_argument("--methods", nargs="*", default=METHODS, metavar="METHOD")
    parser.add_argument("--prompts", nargs="+", type=float, default=PROMPTS, metavar="N", help="counts per plane")
    parser.add_argument("--tuning", nargs="*", default=TUNING, metavar="CASE")
    parser.add_argument("--reported", nargs="*", default=REPORTED, metavar="CASE")
    parser.add_argument("--changed", nargs="*", default=CHANGED, metavar="CASE", help="reported at 2e5 prompts alone")
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--speed", choices=SPEEDS, default=DEFAULT_SPEED, help="default: %(default)s")
    parser.add_argument("--write", action="store_true", help="keep the factors beside the model")
    parser.add_argument("--show", action="store_true", help="only what is in --out already")
    options = parser.parse_args()
    subjects = [int(case.partition(":")[2].partition("+")[0] or FIRST_REPORTED_SUBJECT) for case in options.tuning]
    if not all(800 <= subject < FIRST_REPORTED_SUBJECT for subject in subjects):
        parser.error(f"--tuning takes subjects from 800 to {FIRST_REPORTED_SUBJECT - 1}")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    with locked(options.out / LOCK, ValueError):
        model = ScoreModel.load(options.model)
        found = runs(options, model)
    entries = factors_of([run for run in found if run["case"] in options.tuning])
    print(table(found, entries, options.tuning))
    if options.write:
        print(f"{write_table(model, entries)}: {len(entries)} entries, and what it had of other kinds of runs")


if __name__ == "__main__":
    main()
