"""PET-DDS as a straightforward program writes it against this package: same objective, network, settings, same image.

Usage::

    OMP_NUM_THREADS=2 python benchmarks/published_dds.py [--planes 23] [--steps 10] [--samples 1] [--model brain-fdg]

The straightforward one goes slice by slice through the network, and evaluates value and gradient of the likelihood
separately at every inner step, as published code does: two forward projections and one back projection instead of one
and one. Both draw the same noise. Prints seconds, projections and the largest difference of the images relative to
their maximum, which must be below 1e-4.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import torch
from torch import Tensor

from sirf_diffusion.environment import software_versions
from sirf_diffusion.evaluation.bench.cases import CaseSpec, make_case
from sirf_diffusion.evaluation.bench.problem import Problem
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.reconstructors import DDSReconstructor
from sirf_diffusion.reconstructors.base import inside, raise_zeros
from sirf_diffusion.reconstructors.chain import Chain
from sirf_diffusion.reconstructors.consistency import RELATIVE_FLOOR
from sirf_diffusion.reconstructors.diffusion import reverse_times
from sirf_diffusion.reconstructors.osem import herman_meyer_order


def straightforward(
    objective: Any, model: ScoreModel, num_steps: int, num_samples: int, num_inner: int, anchor: float, eta: float
) -> Tensor:
    """DDS, one sample and one slice at a time, likelihood value and gradient apart."""
    schedule, scale = model.schedule, model.intensity_scale
    times = reverse_times(schedule, num_steps, None, "t")
    sensitivity, order = objective.sensitivity(), herman_meyer_order(objective.num_subsets)
    mask, rho = inside(sensitivity), anchor / scale**2
    floor = RELATIVE_FLOOR * scale
    start = float(schedule.gamma(times[0])) * model.to_latent(raise_zeros(objective.uniform_image(), sensitivity))
    chain = Chain.start(start, float(schedule.nu(times[0])), num_samples, 0)
    results = [torch.empty(0)] * num_samples
    for index, t in enumerate(times):
        found, noises = [], []
        for u in chain.u:
            slices = [model.predict(plane[None, None], t) for plane in u]
            found.append(tuple(torch.cat([s[part][0] for s in slices]) for part in (0, 1)))
        for k, (u0, _) in enumerate(found):
            x = anchor_image = model.to_image(u0).clamp(min=floor) * mask
            for inner in range(num_inner):
                subset = order[(index * num_inner + inner) % len(order)] if len(order) > 1 else None
                objective.value(x, subset)
                gradient = objective.gradient(x, subset) * objective.num_subsets + rho * (anchor_image - x)
                step = x / torch.where(mask, sensitivity + rho * x, torch.ones_like(x))
                x = (x + step * gradient).clamp(min=floor) * mask
            results[k] = x
        if index + 1 < len(times):
            noises = chain.noise()
            moved = []
            for k, (u0, eps) in enumerate(found):
                changed = u0 + model.to_latent(results[k] - model.to_image(u0))
                moved.append(schedule.ddim_step(changed, eps, t, times[index + 1], eta, noises[k]))
            chain.u = torch.stack(moved)
    return torch.stack(results).mean(0)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planes", type=int, choices=(1, 23), default=23)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--inner", type=int, default=5)
    parser.add_argument("--subsets", type=int, default=14)
    parser.add_argument("--model", default="brain-fdg")
    options = parser.parse_args()
    case = make_case(CaseSpec("slice" if options.planes == 1 else "volume", 9002, 2e5))
    problem = Problem(case, 1, {"score": ScoreModel.load(options.model)}, torch.device("cpu"))
    objective = problem.objective(options.subsets)
    objective.gradient(objective.uniform_image())  # the projector's matrices are made at its first use
    for subset in range(objective.num_subsets):
        objective.gradient(objective.uniform_image(), subset)
    settings = {"num_steps": options.steps, "num_samples": options.samples, "num_inner": options.inner}
    rows = {}
    for name in ("straightforward", "this package"):
        model = problem.model(planes="transverse")
        before, began = (objective.counter.forward, objective.counter.back), time.perf_counter()
        if name == "straightforward":
            image = straightforward(objective, model, *settings.values(), anchor=10.0, eta=0.85)
        else:
            run = DDSReconstructor(objective, model, **settings, anchor_strength=10.0, eta=0.85)
            image = run.process().get_output()
        seconds = time.perf_counter() - began
        rows[name] = (image, seconds, objective.counter.forward - before[0], objective.counter.back - before[1])
    print(f"{case.spec.name}, {tuple(case.truth.shape)}, {settings}, {torch.get_num_threads()} threads")
    print(software_versions())
    print("| | seconds | forward | back |\n| --- | --- | --- | --- |")
    for name, (_, seconds, forward, back) in rows.items():
        print(f"| {name} | {seconds:.2f} | {forward:.1f} | {back:.1f} |")
    a, b = (row[0] for row in rows.values())
    difference = float((a - b).abs().max() / a.max())
    ratio = rows["straightforward"][1] / rows["this package"][1]
    print(f"{ratio:.2f} times as fast; largest difference {difference:.1e} of the maximum")
    if not math.isfinite(difference) or difference > 1e-4:
        raise SystemExit("the images differ by more than 1e-4")


if __name__ == "__main__":
    main()
