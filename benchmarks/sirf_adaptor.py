"""What the SIRF adaptor adds to the SIRF calls that it makes, and SIRF's own OSMAPOSL beside the same EM steps.

Usage::

    OMP_NUM_THREADS=1 python -m benchmarks.sirf_adaptor [--repeat 20] [--problems 0 1]

A stopwatch sits on SIRF's methods: what a call of the adaptor takes beyond them is its own. With known acquisition
data that includes the likelihood's arithmetic, which the projections then replace in STIR. Medians of CPU seconds of
the process, so that other work on the machine matters less: run it with one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bench.acquisition import script_model
from benchmarks.bench.tables import print_head, print_row
from sirf_diffusion import as_objective, data
from sirf_diffusion.engines.em import em_update


@dataclass
class Problem:
    """A set-up objective function with its parts."""

    name: str
    obj: Any
    prompts: Any
    model: Any
    image: Any
    num_subsets: int


def bundled_slice(pet: Any) -> Problem:
    """The bundled mMR slice, 10 rays, 6 subsets."""
    folder = Path(data.__file__).parent / "brain2d"
    prompts, factors, additive = (
        pet.AcquisitionData(str(folder / f"{name}.hs")) for name in ("prompts", "multiplicative", "additive")
    )
    image = pet.ImageData(str(folder / "truth.hv"))
    return _problem(pet, "slice 128 x 128, 126 x 344 bins", prompts, factors, additive, image + 1.0, 6, 10)


def volume(pet: Any) -> Problem:
    """Siemens mMR, span 11, segments 0, +1, -1, views mashed by 2; a cylinder; one ray, 7 subsets."""
    layout = pet.AcquisitionData("Siemens mMR", 11, 16, 2)
    image = pet.ImageData()
    image.initialise((127, 128, 128), (2.03125, 2.08626, 2.08626))
    image.fill(1.0)
    counts = np.random.default_rng(0).poisson(2.0, layout.shape).astype(np.float32)
    prompts = layout.get_uniform_copy(0)
    prompts.fill(counts)
    factors, additive = layout.get_uniform_copy(0.3), layout.get_uniform_copy(1.0)
    return _problem(
        pet, f"127 x 128 x 128, {layout.shape[1]} x 126 x 344 bins", prompts, factors, additive, image, 7, 1
    )


def _problem(
    pet: Any, name: str, prompts: Any, factors: Any, additive: Any, image: Any, num_subsets: int, rays: int
) -> Problem:
    model = script_model(pet, prompts, factors, additive, image, rays)
    obj = pet.make_Poisson_loglikelihood(prompts, acq_model=model)
    obj.set_num_subsets(num_subsets)
    obj.set_up(image)
    return Problem(name, obj, prompts, model, image, num_subsets)


class Stopwatch:
    """CPU seconds spent in some methods of some objects."""

    def __init__(self, *watched: tuple[Any, str]) -> None:
        self.seconds = 0.0
        for owner, name in watched:
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - start

        return timed


def adaptor_calls(problem: Problem) -> tuple[Stopwatch, dict[str, Callable[[], Any]]]:
    """What to time."""
    obj, model = problem.obj, problem.model
    watch = Stopwatch(
        (obj, "value"), (obj, "get_backprojection_of_acquisition_ratio"), (model, "forward"), (model, "backward")
    )
    unknown = as_objective(obj)
    known = as_objective(obj, acquisition_data=problem.prompts, acquisition_model=model)
    x = unknown.to_tensor(problem.image)
    for subset in (None, 0):
        unknown.sensitivity(subset)

    def value_and_gradient(objective: Any) -> None:
        point = objective.at(x)
        float(point.value)
        point.gradient()

    return watch, {
        "gradient of a subset": lambda: unknown.gradient(x, 0),
        "gradient of all data": lambda: unknown.gradient(x),
        "value": lambda: unknown.value(x),
        "value and gradient": lambda: value_and_gradient(unknown),
        "value and gradient, data known": lambda: value_and_gradient(known),
        "EM step of a subset": lambda: em_update(unknown, x, 0),
    }


def osmaposl(pet: Any, problem: Problem) -> Callable[[], Any]:
    """SIRF's own EM step of a subset."""
    reconstructor = pet.OSMAPOSLReconstructor()
    reconstructor.set_objective_function(problem.obj)
    reconstructor.set_num_subsets(problem.num_subsets)
    reconstructor.set_num_subiterations(10_000)
    reconstructor.disable_output()
    estimate = problem.image.clone()
    reconstructor.set_up(estimate)
    return lambda: reconstructor.update(estimate)


def timed(function: Callable[[], Any], repeat: int, watch: Stopwatch) -> tuple[float, float]:
    """Medians of the seconds in SIRF and of all."""
    inside, total = [], []
    for _ in range(repeat + 1):
        watch.seconds, start = 0.0, time.process_time()
        function()
        total.append(time.process_time() - start)
        inside.append(watch.seconds)
    return statistics.median(inside[1:]), statistics.median(total[1:])


@contextlib.contextmanager
def quiet(pet: Any) -> Iterator[None]:
    """No chatter, and acquisition data in memory."""
    redirector = pet.MessageRedirector(None, None, None)
    pet.set_verbosity(0)
    pet.AcquisitionData.set_storage_scheme("memory")
    yield
    del redirector


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--problems", type=int, nargs="+", default=[0, 1], help="which of the two to run")
    arguments = parser.parse_args()
    import sirf.STIR as pet

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with quiet(pet):
        print_head("problem", "call", "in SIRF (s)", "in all (s)", "added")
        for number, make in enumerate((bundled_slice, volume)):
            if number not in arguments.problems:
                continue
            problem = make(pet)
            watch, calls = adaptor_calls(problem)
            for name, function in calls.items():
                inside, total = timed(function, arguments.repeat, watch)
                added = f"{100 * (total / inside - 1):.1f} %"
                print_row(problem.name, name, f"{inside:.4f}", f"{total:.4f}", added)
            _, total = timed(osmaposl(pet, problem), arguments.repeat, watch)
            print_row(problem.name, "OSMAPOSL.update of a subset", f"{total:.4f}", f"{total:.4f}", "")


if __name__ == "__main__":
    main()
