"""The score prior against RDP at its best strength for the very image: in our MAP-EM, and in OSMAPOSL epoch by epoch.

::

    python -m benchmarks.score_prior                                  # reported subjects, embedded engine
    python -m benchmarks.score_prior --engine sirf                    # OSMAPOSL of the real SIRF
    python -m benchmarks.score_prior --tuning --memory --noise-level 0.4 --factor 0.4 --cases fdg second-any

Slices of the domain-shift suite, of heads of the second generator (``second-TRACER``), and where asked for of the
suite of mismatches (``--cases wrong-psf ...``), 2e5 prompts unless others are asked for. One line of JSON a case: NRMSE
relative to RDP's. Strength and noise level are to be chosen with ``--tuning``, on other subjects.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sirf_diffusion
from benchmarks.bench.acquisition import Scan, centred, mmr_slice, script_model, simulate_acquisition
from benchmarks.bench.cases import CaseSpec, make_case
from benchmarks.bench.domain_shift import CASES, GREY_MATTER, simulate_case
from benchmarks.bench.mismatch import MISMATCHES
from benchmarks.bench.problem import acquisition_of
from sirf_diffusion.files.interfile import write_image, write_projection_data
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.priors import MEMORY, NOISE_LEVEL, PENALISATION_FACTOR
from sirf_diffusion.simulation.parametric import draw_parametric_activity
from sirf_diffusion.simulation.parametric_head import HEAD_TRACERS, HOT_LESIONS, simulate_parametric_head
from sirf_diffusion.study.metrics import nrmse
from sirf_diffusion.study.reconstruction import reconstruct

PROMPTS = 2e5
#: Of OSMAPOSL, and of the epoch of OSEM that it starts from.
NUM_SUBSETS, START_SUBSETS = 6, 9
STRENGTHS = (0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6)
REPORTED, TUNING = (9002, 9003), (802, 803)
SECOND = "second-"


def scan_of(name: str, subject: int, prompts: float = PROMPTS) -> Scan:
    """A case of the suites of domain shifts and mismatches, or a head of the second generator with its median uptake at
    grey matter's.
    """
    if name in MISMATCHES:
        mismatched = make_case(CaseSpec(name, subject, prompts))
        return Scan(acquisition_of(mismatched), mismatched.truth)
    if not name.startswith(SECOND):
        case = simulate_case(name, subject, prompts=prompts)
        return Scan(case.acquisition, case.truth)
    anatomy = simulate_parametric_head(subject)
    uptake = HEAD_TRACERS[name.removeprefix(SECOND)]
    activity, _, _ = draw_parametric_activity(anatomy, 0, uptake, HOT_LESIONS, 4.0)
    activity *= GREY_MATTER / np.median(activity[activity > 0.3 * activity.max()])
    geometry, projdata = mmr_slice()
    middle = slice(len(activity) // 2, len(activity) // 2 + 1)
    truth, mu = (centred(torch.from_numpy(v[middle].copy()), geometry.shape[1:]) for v in (activity, anatomy.mu))
    return Scan(simulate_acquisition(truth, mu, geometry, projdata, prompts=prompts, seed=(subject, 0)), truth)


def best_rdp(scan: Scan) -> tuple[float, float]:
    """Least NRMSE of RDP, and the strength that has it."""
    errors = {}
    for strength in STRENGTHS:
        run = reconstruct(scan.acquisition, "map-rdp", settings={"penalisation_factor": strength, "num_iterations": 20})
        errors[strength] = nrmse(run.image, scan.truth)
    best = min(errors, key=lambda strength: errors[strength])
    return errors[best], best


def osmaposl_errors(
    scan: Scan, pet: Any, prior: Any, factor: float, epochs: Sequence[int], subsets: int = NUM_SUBSETS
) -> dict[int, float]:
    """NRMSE of a script's OSMAPOSL after so many epochs, from one epoch of OSEM."""
    with tempfile.TemporaryDirectory() as folder:
        data = scan.acquisition
        for name in ("prompts", "multiplicative", "additive"):
            write_projection_data(Path(folder, f"{name}.hs"), getattr(data, name), data.projdata)
        write_image(Path(folder, "ones.hv"), torch.ones_like(scan.truth), data.geometry)
        prompts, factors, additive = (
            pet.AcquisitionData(str(Path(folder, f"{name}.hs"))) for name in ("prompts", "multiplicative", "additive")
        )
        image = pet.ImageData(str(Path(folder, "ones.hv")))
        model = script_model(pet, prompts, factors, additive, image, 5)
        start, found = _run(pet, prompts, model, None, image, 1, START_SUBSETS), {}
        prior.set_penalisation_factor(factor)
        prior.set_up(start)
        for epoch in epochs:
            # The prior is set up again with the objective function: the run begins anew, as a user's would.
            image = _run(pet, prompts, model, prior, start, epoch, subsets)
            found[epoch] = nrmse(torch.from_numpy(np.array(image.as_array())), scan.truth)
        return found


def _run(pet: Any, prompts: Any, model: Any, prior: Any, start: Any, epochs: int, subsets: int) -> Any:
    objective = pet.make_Poisson_loglikelihood(prompts, acq_model=model)
    if prior is not None:
        objective.set_prior(prior)
    recon = pet.OSMAPOSLReconstructor()
    recon.set_objective_function(objective)
    recon.set_num_subsets(subsets)
    recon.set_num_subiterations(epochs * subsets)
    recon.set_up(start)
    recon.set_current_estimate(start)
    recon.process()
    return recon.get_output()


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    second = [f"{SECOND}{tracer}" for tracer in HEAD_TRACERS]
    shifts = [name for name, case in CASES.items() if case.trained_on is None] + second
    known = [*shifts, *MISMATCHES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=known, default=shifts)
    parser.add_argument("--tuning", action="store_true", help=f"subjects {TUNING} instead of {REPORTED}")
    parser.add_argument("--prompts", type=float, default=PROMPTS, help="default: %(default)g")
    parser.add_argument("--engine", choices=("embedded", "sirf"), default="embedded", help="of OSMAPOSL")
    parser.add_argument("--model", default="brain", help="bundled name or file")
    parser.add_argument("--noise-level", type=float, default=NOISE_LEVEL)
    parser.add_argument("--factor", type=float, default=PENALISATION_FACTOR)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=MEMORY)
    parser.add_argument("--epochs", type=int, nargs="+", default=[5, 10, 15])
    parser.add_argument("--subsets", type=int, default=NUM_SUBSETS, help="of OSMAPOSL")
    parser.add_argument("--iterations", type=int, nargs="+", default=[60], help="of MAP-EM")
    options = parser.parse_args(arguments)
    pet, model = sirf_diffusion.get_engine(options.engine), ScoreModel.load(options.model)
    settings = {"noise_level": options.noise_level, "penalisation_factor": options.factor, "memory": options.memory}
    for name in options.cases:
        for subject in TUNING if options.tuning else REPORTED:
            scan = scan_of(name, subject, options.prompts)
            rdp, strength = best_rdp(scan)
            row: dict[str, Any] = {"case": name, "subject": subject, "prompts": options.prompts}
            row |= {"rdp": rdp, "rdp strength": strength}
            for number in options.iterations:
                run = reconstruct(
                    scan.acquisition, "map-score", model=model, settings={**settings, "num_iterations": number}
                )
                row[f"MAP-EM {number}"] = nrmse(run.image, scan.truth) / rdp
            prior = pet.ScorePrior(model, options.noise_level, memory=options.memory)
            found = osmaposl_errors(scan, pet, prior, options.factor, options.epochs, options.subsets)
            for epoch, error in found.items():
                row[f"OSMAPOSL {epoch}"] = error / rdp
            print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


if __name__ == "__main__":
    main()
