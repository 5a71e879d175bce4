"""How close each method comes to the truth on low-count brain slices, with every baseline tuned for its own best.

::

    python -m benchmarks.low_count_slice tune       # chooses the defaults of our methods on other subjects
    python -m benchmarks.low_count_slice evaluate   # the bundled slice, baselines tuned for this very slice

``tune`` scans each method's strength on slices of subjects 9100 to 9103 (held out from training, not the demo's
subject), simulated with the embedded engine at 2e5 prompts, so that what ``evaluate`` reports was not tuned on.
``evaluate`` gives OSEM the iteration number and RDP the strength that are best for the bundled slice itself, found on
noise realisations other than the bundled one: an advantage that our methods do not get.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.bench.acquisition import Scan, centred
from sirf_diffusion.data import load_example
from sirf_diffusion.engines.embedded.acquisition import Acquisition
from sirf_diffusion.engines.embedded.subsets import basic_views, largest_num_subsets
from sirf_diffusion.models import ScoreModel, intensity_scale
from sirf_diffusion.reconstructors import OSEM
from sirf_diffusion.reconstructors.methods import METHODS, build_reconstructor
from sirf_diffusion.study.metrics import nrmse, psnr, ssim

TUNING_SUBJECTS = (9100, 9101, 9102, 9103)
STRENGTHS = {
    "map-rdp": {"penalisation_factor": (0.5, 0.7, 1.0, 1.5, 2.0, 3.0)},
    "map-score": {"noise_level": (0.1, 0.2, 0.3, 0.4), "penalisation_factor": (0.1, 0.2, 0.25, 0.35, 1.0)},
    "dds": {"anchor_strength": (2.5, 5.0, 10.0), "smoothing": (0.0, 8.0, 12.0, 20.0), "eta": (0.85, 1.0)},
    "hqs": {"beta": (3.0, 6.0, 12.0, 24.0)},
    "lisch": {
        "num_em_iterations": (None, 7.0, 8.0, 9.0),
        "smoothing": (0.0, 5.0, 8.0, 12.0, 20.0),
        "eta": (0.85, 1.0),
        "num_steps": (40, 60),
    },
}


def noise_realisations(case: Scan, seeds: Sequence[int]) -> list[Scan]:
    """The same slice measured again."""
    model = case.acquisition.objective().model
    mean = model.forward(case.truth).double()
    cases = []
    for seed in seeds:
        prompts = torch.poisson(mean, generator=torch.Generator().manual_seed(seed)).float()
        cases.append(Scan(replace(case.acquisition, prompts=prompts), case.truth))
    return cases


def other_subject(seed: int, plane: int) -> Scan:
    """A slice of another subject in the bundled slice's scanner."""
    from sirf_diffusion.simulation import simulate_activity, simulate_anatomy

    anatomy = simulate_anatomy(seed)
    truth = 20 * simulate_activity(anatomy, 0, psf_fwhm=4.0)[plane][None]
    return scanned(torch.from_numpy(truth), torch.from_numpy(anatomy.mu[plane][None]), seed)


def scanned(truth: Tensor, mu: Tensor, seed: int) -> Scan:
    """A slice in the bundled slice's scanner: its efficiencies, background and expected prompts; padded to its grid."""
    example = load_example("brain2d")
    old = example.acquisition
    truth, mu = (centred(image, old.geometry.shape[1:]) for image in (truth, mu))
    blank = Acquisition(old.prompts, old.projdata, old.geometry, attenuation=example.attenuation,
                        attenuation_geometry=old.geometry)  # fmt: skip
    own = replace(blank, attenuation=mu)
    old_factors, new_factors = (a.objective().model.multiplicative_factors for a in (blank, own))
    multiplicative = old.multiplicative / old_factors.clamp_min(1e-6) * new_factors
    background = old.multiplicative * old.additive
    trues = multiplicative * own.objective().model.projector.forward(truth)
    multiplicative = multiplicative * (0.7 * 2e5 / trues.sum())
    additive = torch.where(multiplicative > 0, background / multiplicative.clamp_min(1e-12), 0)
    acquisition = replace(old, multiplicative=multiplicative, additive=additive)
    return noise_realisations(Scan(acquisition, truth), [seed])[0]


def reconstruct(case: Scan, method: str, model: ScoreModel, settings: dict, seed: int = 0) -> tuple[Tensor, dict]:
    """Image and record of one run with five samples where the method samples."""
    spec = METHODS[method]
    basic = basic_views(case.acquisition.geometry, case.acquisition.projdata)
    objective = case.acquisition.objective(largest_num_subsets(basic, spec.num_subsets))
    early = OSEM(case.acquisition.objective(7), num_iterations=1)
    early.set_up()
    scale = intensity_scale(early.process().get_output(), objective.geometry)
    bound, settings = model.on(objective.geometry, scale), spec.with_settings(settings, speed="accurate")
    run = build_reconstructor(
        method, objective, settings, model=bound, intensity_scale=scale, num_samples=5 if spec.samples else 1, seed=seed
    )
    run.set_up(early.get_output() if method.startswith("map") else None)
    run.process()
    return run.get_output(), run.record


def mlem_errors(case: Scan, num_iterations: int = 25) -> list[float]:
    """NRMSE after each MLEM iteration."""
    errors: list[float] = []
    run = OSEM(
        case.acquisition.objective(),
        num_iterations=num_iterations,
        callbacks=[lambda record: errors.append(nrmse(record.x.reshape(case.truth.shape), case.truth))],
    )
    run.set_up()
    run.process()
    return errors


def print_scan(method: str, cases: Sequence[Scan], model: ScoreModel) -> None:
    """NRMSE for each value of each setting of a method, the others at their defaults."""
    for name, candidates in STRENGTHS[method].items():
        for value in candidates:
            images = [reconstruct(case, method, model, {name: value})[0] for case in cases]
            errors = [round(nrmse(image, case.truth), 4) for image, case in zip(images, cases, strict=True)]
            print(f"{method:10s} {name} = {value!s:6s} NRMSE {sum(errors) / len(errors):.4f}  {errors}", flush=True)


def evaluate(model: ScoreModel, methods: Sequence[str], seeds: Sequence[int]) -> dict:
    """The table of the bundled slice."""
    example = load_example("brain2d")
    case = Scan(example.acquisition, example.truth)
    others = noise_realisations(case, [101, 102, 103])
    errors = torch.tensor([mlem_errors(other) for other in others]).mean(0)
    best_iteration = int(errors.argmin()) + 1
    tried = {}
    for strength in STRENGTHS["map-rdp"]["penalisation_factor"]:
        images = [reconstruct(other, "map-rdp", model, {"penalisation_factor": strength})[0] for other in others]
        tried[strength] = sum(nrmse(image, case.truth) for image in images) / len(images)
    best_strength = min(tried, key=tried.__getitem__)
    print(f"MLEM iterations {best_iteration} ({float(errors.min()):.4f}); RDP {best_strength} of {tried}", flush=True)
    table = {"osem": {"nrmse": mlem_errors(case, best_iteration)[-1], "settings": {"num_iterations": best_iteration}}}
    for method in methods:
        settings = {"penalisation_factor": best_strength} if method == "map-rdp" else {}
        rows = []
        for seed in seeds if METHODS[method].samples else [0]:
            image, record = reconstruct(case, method, model, settings, seed)
            rows.append(_row(image, case.truth, record))
        table[method] = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]} | {"settings": settings}
        print(method, json.dumps(table[method]), flush=True)
    for method in methods:
        error = table[method]["nrmse"]
        against = "".join(
            f"  / {base} {error / table[base]['nrmse']:.3f}" for base in ("map-rdp", "osem") if base in table
        )
        print(f"{method:10s} NRMSE {error:.4f}{against}")
    return table


def _row(image: Tensor, truth: Tensor, record: dict) -> dict[str, float]:
    return {
        "nrmse": nrmse(image, truth),
        "psnr": psnr(image, truth),
        "ssim": ssim(image, truth),
        "projections": record["projections"]["forward"] + record["projections"]["back"],
        "seconds": record["seconds"]["total"],
        "other_share": record["seconds"]["other"] / record["seconds"]["total"],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tune", "evaluate"))
    parser.add_argument("--model", default="brain-fdg", help="bundled name or file")
    parser.add_argument("--methods", nargs="+", default=list(STRENGTHS), choices=list(STRENGTHS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds of the sampling methods (evaluate)")
    options = parser.parse_args(arguments)
    logging.getLogger("sirf_diffusion").setLevel(logging.ERROR)
    model = ScoreModel.load(options.model)
    if options.what == "evaluate":
        evaluate(model, options.methods, options.seeds)
        return
    cases = [other_subject(seed, plane) for seed, plane in zip(TUNING_SUBJECTS, (60, 66, 72, 78), strict=True)]
    print("best MLEM", [round(min(mlem_errors(case)), 4) for case in cases], flush=True)
    for method in options.methods:
        print_scan(method, cases, model)


if __name__ == "__main__":
    main()
