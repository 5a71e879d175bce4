"""What decoupling saves: fine-tuning by half-quadratic splitting against fine-tuning through the projector.

::

    python -m benchmarks.adaptation_coupling --subjects 9000 9001

Deep diffusion image prior on slices of the domain-shift suite, without adaptation and with each way of coupling the
network to the data, at the same numbers of noise levels and of updates of the weights. The last columns are what the
adaptation adds to the run without it. Learning rates and the strength of the pull were chosen for each coupling on
tuning subjects.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence

import torch

from benchmarks.bench.domain_shift import CASES, simulate_case
from sirf_diffusion.models import ScoreModel, intensity_scale
from sirf_diffusion.reconstructors import OSEM
from sirf_diffusion.reconstructors.methods import build_adaptation, build_reconstructor
from sirf_diffusion.study.metrics import nrmse

SETTINGS = {
    "none": {"num_rounds": 0},
    "projector": {"coupling": "projector", "beta": 12.0, "learning_rate": 3e-3, "every": 1},
    "hqs": {"coupling": "hqs", "every": 1},
    "hqs, every 2nd": {"coupling": "hqs", "every": 2},
}


def compare(case: str, subject: int, model: ScoreModel, num_steps: int, num_updates: int, num_samples: int) -> None:
    """One slice, all couplings."""
    data = simulate_case(case, subject)
    early = OSEM(data.acquisition.objective(7), num_iterations=1)
    early.set_up()
    scale = intensity_scale(early.process().get_output(), data.geometry)
    calls_without = seconds_without = 0.0
    for name, settings in SETTINGS.items():
        objective = data.acquisition.objective(2)
        run = build_reconstructor(
            "ddip",
            objective,
            {"num_steps": num_steps},
            model=model.on(objective.geometry, scale),
            intensity_scale=scale,
            num_samples=num_samples,
            adaptation=build_adaptation("ddip", {"num_updates": num_updates, **settings}),
        )
        began = time.process_time()
        run.set_up()
        error = nrmse(run.process().get_output(), data.truth)
        seconds = time.process_time() - began
        projections = run.record["projections"]
        calls = projections["forward"] + projections["back"]
        if name == "none":
            calls_without, seconds_without = calls, seconds
        print(
            f"{case} {subject} {name:15s} NRMSE {error:.4f}  updates {run.record['adaptation']['updates']:4d}  "
            f"projections {calls:6.1f}  CPU {seconds:6.1f} s  added {calls - calls_without:6.1f}, "
            f"{seconds - seconds_without:.1f} s",
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="brain-fdg", help="bundled name or file")
    parser.add_argument("--case", choices=list(CASES), default="fdg")
    parser.add_argument("--subjects", nargs="+", type=int, default=[800, 801])
    parser.add_argument("--steps", type=int, default=20, help="noise levels")
    parser.add_argument("--updates", type=int, default=5, help="updates of the weights at a noise level")
    parser.add_argument("--samples", type=int, default=1)
    options = parser.parse_args(arguments)
    logging.getLogger("sirf_diffusion").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    model = ScoreModel.load(options.model)
    for subject in options.subjects:
        compare(options.case, subject, model, options.steps, options.updates, options.samples)


if __name__ == "__main__":
    main()
