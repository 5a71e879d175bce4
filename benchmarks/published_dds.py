"""PET-DDS as a straightforward program writes it against this package: same objective, network, settings, same image.

Usage::

    OMP_NUM_THREADS=2 python -m benchmarks.published_dds [--planes 23] [--slices three] [--steps 3] [--samples 1]

The straightforward one goes sample by sample and slice by slice through the network, whose weights and attention are as
MONAI makes them if not told otherwise, and evaluates value and gradient of the likelihood separately at every inner
step, as published code does: two forward projections and one back projection instead of one and one. Both draw the same
noise. Prints wall and CPU seconds, those within projector and network, projections, and the largest difference of the
images relative to their maximum, which must be below 1e-4; in bfloat16, it is what it is.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench.cases import CaseSpec, make_case
from benchmarks.bench.problem import Problem
from benchmarks.bench.tables import print_head, print_row
from sirf_diffusion.engines.em import RELATIVE_FLOOR, inside, raise_zeros, update_order
from sirf_diffusion.environment import software_versions
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.reconstructors import DDSReconstructor
from sirf_diffusion.reconstructors.diffusion.chain import Chain
from sirf_diffusion.reconstructors.diffusion.sampling import reverse_times
from sirf_diffusion.reconstructors.records import Cost

NAMES = ("straightforward", "this package", "this package, bfloat16")


def straightforward(
    objective: Any,
    model: ScoreModel,
    slice_by_slice: ScoreModel,
    num_steps: int,
    num_samples: int,
    num_inner: int,
    anchor: float,
    eta: float,
) -> Tensor:
    """DDS, one sample and one slice at a time, likelihood value and gradient apart."""
    schedule, scale = model.schedule, model.intensity_scale
    times = reverse_times(schedule, num_steps)
    sensitivity, order = objective.sensitivity(), update_order(objective.num_subsets)
    mask, rho = inside(sensitivity), anchor / scale**2
    floor = RELATIVE_FLOOR * scale
    start = float(schedule.gamma(times[0])) * model.to_latent(raise_zeros(objective.uniform_image(), sensitivity))
    chain = Chain.start(start, float(schedule.nu(times[0])), num_samples, 0, "balanced")
    results = [torch.empty(0)] * num_samples
    for index, t in enumerate(times):
        turn = index if index + 1 < num_steps else None
        found = [slice_by_slice.predict(u, t, turn) for u in chain.u]
        for k, (u0, _) in enumerate(found):
            x = anchor_image = model.to_image(u0).clamp(min=floor) * mask
            for inner in range(num_inner):
                subset = order[(index * num_inner + inner) % len(order)]
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
    parser.add_argument("--slices", choices=("transverse", "three", "alternating"), default="transverse")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--inner", type=int, default=5)
    parser.add_argument("--subsets", type=int, default=14)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--model", default="brain-fdg")
    options = parser.parse_args()
    case = make_case(CaseSpec("slice" if options.planes == 1 else "volume", 9002, 2e5))
    problem = Problem(case, 1, {"score": ScoreModel.load(options.model)}, torch.device("cpu"))
    objective = problem.objective(options.subsets)
    objective.sensitivity()
    for subset in range(objective.num_subsets):  # the projector's matrices are made at its first use
        objective.gradient(objective.uniform_image(), subset)
    settings = {"num_steps": options.steps, "num_samples": options.samples, "num_inner": options.inner}
    model = problem.model(planes=options.slices)
    as_made = copy.deepcopy(model.network).to(memory_format=torch.contiguous_format)
    for block in as_made.modules():
        if hasattr(block, "use_flash_attention"):
            block.use_flash_attention = False
    slice_by_slice = ScoreModel(
        as_made,
        model.schedule,
        model.prediction,
        model.voxel_size,
        time_input=model.time_input,
        multiple=model.multiple,
    ).on(objective.geometry, model.intensity_scale, model.planes, max_batch=1)
    half = copy.copy(model)
    half.precision = "bfloat16"
    models = dict(zip(NAMES, (slice_by_slice, model, half), strict=True))
    images, costs, cpu = {}, {name: Cost() for name in NAMES}, dict.fromkeys(NAMES, 0.0)
    for _ in range(options.repeats):  # in turn: what else the machine does falls on both
        for name, cost in costs.items():
            network = models[name]
            before, began, cpu_began = Cost.now(objective, network), time.perf_counter(), time.process_time()
            if name == "straightforward":
                images[name] = straightforward(objective, model, network, *settings.values(), anchor=10.0, eta=0.85)
            else:
                chosen = {"anchor_strength": 10.0, "eta": 0.85, "reference_steps": 0}
                run = DDSReconstructor(objective, network, **settings, **chosen)
                images[name] = run.process().get_output()
            spent = Cost.now(objective, network) - before
            spent.total = time.perf_counter() - began
            cpu[name] += time.process_time() - cpu_began
            costs[name] = cost + spent
    print(f"{case.spec.name}, {tuple(case.truth.shape)}, {model.planes}, {settings}, {torch.get_num_threads()} threads")
    print(software_versions())
    print_head("", "seconds", "CPU seconds", "projector", "network", "forward", "back", "times as fast", "difference")
    first = costs[NAMES[0]].total
    differences = [float((images[name] - images[NAMES[0]]).abs().max() / images[NAMES[0]].max()) for name in NAMES]
    for (name, c), difference in zip(costs.items(), differences, strict=True):
        numbers = [value / options.repeats for value in (c.total, cpu[name], c.projector, c.network, c.forward, c.back)]
        cells = [f"{number:.2f}" for number in (*numbers, first / c.total)]
        print_row(name, *cells, f"{difference:.1e}")
    if not differences[1] <= 1e-4:
        raise SystemExit("the images differ by more than 1e-4")


if __name__ == "__main__":
    main()
