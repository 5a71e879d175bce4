"""Epochs until an image with the relative difference prior is as near to its optimum as PETRIC asks.

::

    OMP_NUM_THREADS=1 python -m benchmarks.rdp_epochs --cases slice:803:2e5 volume:804:2e5

PETRIC's thresholds: root mean square differences over head and white matter below 1 % of the mean of white matter, and
each region's mean within 0.5 % of it; here of the optimum that many epochs of `map-rdp` reach. Beside `map-rdp` (SVRG,
preconditioned by the prior's Hessian diagonal) the same with other multiples of that diagonal in its preconditioner,
and BSREM (De Pierro and Yamagishi 2001): EM's preconditioner and steps that shrink like 1 / (1 + r e), for three r. All
begin at the same early image, in the same subsets. A projection of all data forward and back is an epoch.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench.cases import Case, CaseSpec, make_case
from benchmarks.bench.measures import image_measures
from benchmarks.bench.problem import Problem
from benchmarks.bench.tables import print_head, print_row
from sirf_diffusion.engines.em import herman_meyer_order
from sirf_diffusion.engines.objective import Objective
from sirf_diffusion.priors import RelativeDifferencePenalty
from sirf_diffusion.reconstructors.em.map_methods import RelativeDifferenceSettings, relative_difference_penalty
from sirf_diffusion.reconstructors.em.mapem import MAPEM

THRESHOLDS = {"petric_whole": 0.01, "petric_background": 0.01, "petric_voi": 0.005}
SUBSETS = 14
#: Multiples of the Hessian's diagonal in the preconditioner; twice it bounds the Hessian, and is what `map-rdp` takes.
MULTIPLES = (2.0, 1.5, 1.0)
RELAXATIONS = (0.03, 0.1, 0.3)


class Scaled(RelativeDifferencePenalty):
    """The penalty with another multiple of its Hessian's diagonal for its curvature."""

    multiple = 2.0

    def curvature(self, x: Tensor) -> Tensor:
        return self.multiple * self.hessian_diagonal(x)


def bsrem(
    objective: Objective, prior: RelativeDifferencePenalty, x: Tensor, epochs: int, relaxation: float
) -> Iterator[Tensor]:
    """Images after each epoch."""
    sensitivity, number = objective.sensitivity(), objective.num_subsets
    inside = sensitivity > 0
    offset = 1e-2 * float(x[inside].mean())
    for epoch in range(epochs):
        for subset in herman_meyer_order(number):
            slope = number * objective.gradient(x, subset) - prior.gradient(x)
            step = (x + offset) / sensitivity.clamp_min(1e-12) * slope / (1 + relaxation * epoch)
            x = torch.where(inside, (x + step).clamp_min(1e-4 * offset), x)
        yield x


def curve(objective: Objective, prior: Any, x: Tensor, epochs: int, far: Callable[[Tensor], bool]) -> tuple[float, int]:
    """Projections (a forward and a back one of all data are 1) and iterations until an image is near; the last ones."""
    counter, began = objective.counter, (objective.counter.forward, objective.counter.back)
    found: list[tuple[float, int]] = []

    def listen(step: Any) -> None:
        spent = ((counter.forward - began[0]) + (counter.back - began[1])) / 2
        found.append((spent, step.step))
        if not far(step.x):
            raise StopIteration("near enough")

    run = MAPEM(objective, prior, epochs, callbacks=[listen])
    run.set_up(x)
    run.process()
    return found[-1]


def measured(spec: CaseSpec, epochs: int) -> Iterator[tuple[str, str]]:
    """Name and epochs of each algorithm."""
    case: Case = make_case(spec)
    problem = Problem(case, 1, {}, torch.device("cpu"))
    objective = problem.objective(SUBSETS)
    objective.sensitivity()
    start = problem.early.get_output()
    volume = case.geometry.shape[0] > 1
    chosen = RelativeDifferenceSettings()
    strength = {e.name: e.metadata.get("volumes") for e in dataclasses.fields(chosen)}["penalisation_factor"]
    plain = relative_difference_penalty(objective, strength if volume else chosen.penalisation_factor, problem.scale)
    priors = {}
    for multiple in MULTIPLES:
        options = {"gamma": plain.gamma, "epsilon": plain.epsilon}
        priors[multiple] = Scaled(case.geometry, plain.penalisation_factor, **options)
        priors[multiple].multiple = multiple
    reference = MAPEM(objective, plain, 5 * epochs)
    reference.set_up(start)
    optimum = dataclasses.replace(case, truth=reference.process().get_output())

    def far(x: Tensor) -> bool:
        found = image_measures(x, optimum)
        return any(found[name] > limit for name, limit in THRESHOLDS.items())

    for multiple, prior in priors.items():
        spent, iterations = curve(objective, prior, start, epochs, far)
        reached = f"{spent:.1f} ({iterations} passes)" if iterations < epochs else f"not in {epochs}"
        yield f"SVRG, {multiple:g} x Hessian diagonal", reached
    for relaxation in RELAXATIONS:
        images = bsrem(objective, plain, start, 3 * epochs, relaxation)
        number = next((k for k, x in enumerate(images, 1) if not far(x)), None)
        yield f"BSREM, r = {relaxation:g}", f"not in {3 * epochs}" if number is None else f"{number}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["slice:803:2e5"], metavar="slice|volume:SUBJECT:PROMPTS")
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print_head("case", "algorithm", "epochs")
    for text in options.cases:
        kind, subject, prompts = text.split(":")
        for name, reached in measured(CaseSpec(kind, int(subject), float(prompts)), options.epochs):
            print_row(text, name, reached)


if __name__ == "__main__":
    main()
