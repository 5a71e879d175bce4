r"""What an h-transform does beside LiSch: error, calibration, spectrum of a sample, and time, by count level.

::

    OMP_NUM_THREADS=1 python -m benchmarks.supervised --h-transform brain-fdg-deft \
        --cases slice:9002:5e4 slice:9002:2e5 slice:9002:1e6 --figure docs/images/supervised.png

Both reconstruct the same counts, LiSch at its speed `balanced`. Seconds are those of the processor, sensitivities made
beforehand. *Spectrum*: mean absolute difference of log10 power from the truth's, over rings of spatial frequency. A
shift changes the data but not what the likelihood is told of them (``background``, ``psf``), or takes views away.
Cases of other tracers and heads are those of the suite ``ood``. Subjects 800 to 899 are those of tuning.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench.cases import Case, CaseSpec, make_case
from benchmarks.bench.measures import image_measures, posterior_measures
from benchmarks.bench.problem import Problem
from sirf_diffusion.engines.embedded.acquisition_model import GaussianBlur
from sirf_diffusion.engines.embedded.poisson import PoissonObjective
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.reconstructors.methods import METHODS
from sirf_diffusion.study.report import Panel, comparison_figure

SHIFTS = ("none", "background", "psf", "views")
COLUMNS = ("nrmse", "sample", "ssim", "hot", "coverage", "spread", "spectrum", "seconds")


def shifted(case: Case, shift: str, realisation: int) -> PoissonObjective:
    """Objective of a case whose data are shifted: background 20 % too low, 3 mm of blur untold, 30 % fewer views."""
    objective = Problem(case, realisation, {}, torch.device("cpu")).objective(2)
    told = objective.model
    if shift == "psf":
        blurred = GaussianBlur(case.geometry, 3.0, told.device)(case.truth)
        return PoissonObjective(told, case.counts(told.forward(blurred), realisation), 2)
    if shift == "background":
        less = dataclasses.replace(case, additive=0.8 * case.additive)
        return PoissonObjective(_model_of(less, told.projector), objective.prompts, 2)
    if shift == "views":
        kept = torch.arange(case.multiplicative.shape[1]) % 10 < 7
        fewer = dataclasses.replace(case, multiplicative=case.multiplicative * kept[:, None])
        return PoissonObjective(_model_of(fewer, told.projector), objective.prompts * kept[:, None], 2)
    return objective


def _model_of(case: Case, projector: Any) -> Any:
    from sirf_diffusion.engines.embedded.acquisition_model import AcquisitionModel

    return AcquisitionModel(projector, multiplicative_factors=case.multiplicative, additive_term=case.additive)


def spectral_difference(image: Tensor, truth: Tensor) -> float:
    """Mean over rings of the absolute difference of log10 of the power."""
    height, width = image.shape[-2:]
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None] * height, torch.fft.fftfreq(width) * width).round().long()
    rings, total = min(height, width) // 2, []
    for x in (image, truth):
        power = torch.fft.fft2(x.double()).abs().square().sum(0)
        sums = torch.zeros(int(radius.max()) + 1, dtype=torch.float64).index_add_(0, radius.flatten(), power.flatten())
        total.append((sums / torch.bincount(radius.flatten()))[1:rings].log10())
    return float((total[0] - total[1]).abs().mean())


def run(
    name: str, objective: PoissonObjective, case: Case, options: argparse.Namespace
) -> tuple[dict[str, float], Any]:
    """One reconstruction and its numbers."""
    objective.sensitivity()
    settings: dict[str, Any] = {"speed": "balanced"}
    if name != "lisch":
        settings = {"h_transform": options.h_transform, "final_consistency": name == "deft, consistent"}
        settings |= {key: float(value) if "." in value else int(value)
                     for key, _, value in (word.partition("=") for word in options.set)}  # fmt: skip
    model = ScoreModel.load("brain-fdg", precision="auto")
    began = time.process_time()
    made: Any = METHODS[name.partition(",")[0]](
        objective, model, num_samples=options.samples, seed=options.realisation, **settings
    ).process()
    row = {"seconds": time.process_time() - began, **image_measures(made.get_output(), case)}
    row["hot"] = sum(value for key, value in row.items() if key.startswith("crc hot"))
    samples = made.get_samples()
    row |= posterior_measures(samples, case, made.noise)[0]
    row |= {"sample": row["samples_nrmse"], "spectrum": spectral_difference(samples[0], case.truth)}
    row["spectrum of mean"] = spectral_difference(made.get_output(), case.truth)
    return row, made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["slice:9002:2e5"], metavar="KIND:SUBJECT:PROMPTS")
    parser.add_argument("--methods", nargs="+", default=["lisch", "deft"],
                        choices=("lisch", "deft", "deft, consistent"))  # fmt: skip
    parser.add_argument("--h-transform", default="brain-fdg-deft", metavar="NAME|FILE")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of deft")
    parser.add_argument("--shift", default="none", choices=SHIFTS)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--realisation", type=int, default=1)
    parser.add_argument("--figure", type=Path, metavar="FILE.png", help="of the last case")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| case | method | " + " | ".join(COLUMNS) + " | spectrum of mean |\n" + "| --- " * (len(COLUMNS) + 3) + "|")
    for text in options.cases:
        kind, subject, prompts = text.split(":")
        case = make_case(CaseSpec(kind, int(subject), float(prompts)))
        panels = []
        for name in options.methods:
            row, made = run(name, shifted(case, options.shift, options.realisation), case, options)
            cells = [f"{row[column]:.3f}" for column in (*COLUMNS, "spectrum of mean")]
            print(f"| {text} | {name} | {' | '.join(cells)} |", flush=True)
            for title, image in ((name, made.get_output()), (f"{name}, a sample", made.get_samples()[0])):
                error = float((image - case.truth).norm() / case.truth.norm())
                panels.append(Panel(title, image, caption=f"NRMSE {error:.3f}"))
        if options.figure is not None:
            comparison_figure(options.figure, case.truth, panels, case.geometry)
        print(f"{text} done", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
