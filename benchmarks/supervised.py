r"""What an h-transform does beside LiSch and its supervised rivals: error, calibration, spectrum of a sample, and time.

::

    OMP_NUM_THREADS=1 python -m benchmarks.supervised \
        --cases slice:9002:5e4 slice:9002:2e5 slice:9002:1e6 --figure docs/images/supervised.png --ranks ranks.png

All reconstruct the same counts, LiSch at its speed `balanced` if not told; ``fbsem`` and ``unet`` are files of
`benchmarks.rivals`. Numbers are means over the realisations. Seconds are those of the processor, sensitivities made
beforehand. *Spectrum*: mean absolute difference of log10 power from the truth's, over rings of spatial frequency. Kinds
of cases are ``slice``, ``volume``, ``other-scanner``, and those of the suites ``ood`` and ``mismatch``, such as
``dpa714`` and ``wrong-psf``. Subjects 800 to 899 are those of tuning.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import rivals
from benchmarks.bench import figures
from benchmarks.bench.cases import Case, CaseSpec, make_case
from benchmarks.bench.measures import image_measures, posterior_measures
from benchmarks.bench.problem import Problem
from benchmarks.bench.tables import print_head, print_row
from sirf_diffusion.geometry.projdata import ProjDataGeometry, Segment
from sirf_diffusion.geometry.scanners import get_scanner
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.reconstructors.methods import METHODS
from sirf_diffusion.study.report import Panel, comparison_figure

METHODS_HERE = ("lisch", "lisch, fast", "deft", "deft, consistent", "fbsem", "unet")
_OTHER_SCANNER = "GE Discovery 690"
COLUMNS = ("nrmse", "sample", "ssim", "hot", "coverage", "spread", "spectrum", "spectrum of mean", "seconds")


def case_of(text: str) -> Case:
    """The case ``KIND:SUBJECT:PROMPTS``; of the kind ``other-scanner``, one ring of another one."""
    kind, subject, prompts = text.split(":")
    spec = CaseSpec("slice" if kind == "other-scanner" else kind, int(subject), float(prompts))
    if kind != "other-scanner":
        return make_case(spec)
    spacing = make_case(spec).geometry.voxel_size[0]
    scanner = dataclasses.replace(get_scanner(_OTHER_SCANNER), name="other", num_rings=1, ring_spacing=spacing)
    bins = scanner.max_num_non_arccorrected_bins
    return make_case(spec, ProjDataGeometry(scanner, (Segment(0, 0, 0, 1),), scanner.max_num_views, bins))


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
    name: str, case: Case, realisation: int, options: argparse.Namespace
) -> tuple[dict[str, float], Tensor, Tensor, Tensor | None]:
    """One reconstruction: its numbers, image, samples (the image where there are none) and histogram of ranks."""
    objective = Problem(case, realisation, {}, torch.device("cpu")).objective(2)
    objective.sensitivity()
    if name in rivals.RIVALS:
        network, began = rivals.load(getattr(options, name)), time.process_time()
        image = rivals.reconstruct(network, objective)
        row = {"seconds": time.process_time() - began, "spectrum": spectral_difference(image, case.truth)}
        return row | _measures(image, case), image, image[None], None
    settings: dict[str, Any] = {"speed": "fast" if name == "lisch, fast" else "balanced"}
    if name.startswith("deft"):
        settings = {"final_consistency": name == "deft, consistent"}
        settings |= {"h_transform": options.h_transform} if options.h_transform else {}
        settings |= {key: float(value) if "." in value else int(value)
                     for key, _, value in (word.partition("=") for word in options.set)}  # fmt: skip
    model = ScoreModel.load("brain-fdg", precision="auto")
    began = time.process_time()
    made: Any = METHODS[name.partition(",")[0]](
        objective, model, num_samples=options.samples, seed=realisation, **settings
    ).process()
    row, samples = {"seconds": time.process_time() - began}, made.get_samples()
    measures, ranks = posterior_measures(samples, case, made.noise)
    row |= measures | {"sample": measures["samples_nrmse"], "spectrum": spectral_difference(samples[0], case.truth)}
    return row | _measures(made.get_output(), case), made.get_output(), samples, ranks


def _measures(image: Tensor, case: Case) -> dict[str, float]:
    found = image_measures(image, case)
    hot = [value for key, value in found.items() if key.startswith("crc hot")]
    return found | {"hot": sum(hot) if hot else math.nan, "spectrum of mean": spectral_difference(image, case.truth)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["slice:9002:2e5"], metavar="KIND:SUBJECT:PROMPTS")
    parser.add_argument("--methods", nargs="+", default=["lisch", "deft"],
                        choices=METHODS_HERE)  # fmt: skip
    parser.add_argument("--h-transform", metavar="NAME|FILE", help="if omitted, deft's default")
    for name in rivals.RIVALS:
        parser.add_argument(f"--{name}", type=Path, default=f"{name}.safetensors", metavar="FILE")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of deft")
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--realisations", type=int, nargs="+", default=[1])
    parser.add_argument("--figure", type=Path, metavar="FILE.png", help="of the last case and realisation")
    parser.add_argument("--ranks", type=Path, metavar="FILE.png",
                        help="ranks of the truth among the samples, over all realisations")  # fmt: skip
    options = parser.parse_args()
    torch.set_num_threads(1)
    print_head("case", "method", *COLUMNS)
    histograms = []
    for text in options.cases:
        case, panels = case_of(text), []
        for name in options.methods:
            rows, ranks = [], []
            for realisation in options.realisations:
                row, image, samples, found = run(name, case, realisation, options)
                rows.append(row)
                ranks += [] if found is None else [found]
            means = [sum(row.get(column, math.nan) for row in rows) / len(rows) for column in COLUMNS]
            print_row(text, name, *means)
            if ranks:
                pooled = {"title": f"{name}\n{text}", "ranks": sum(ranks).tolist(), "variant": 1, "nrmse": 0.0}
                histograms.append(pooled)
            shown = [(name, image), (f"{name}, a sample", samples[0])][: 1 if found is None else 2]
            for title, one in shown:
                error = float((one - case.truth).norm() / case.truth.norm())
                panels.append(Panel(title, one, caption=f"NRMSE {error:.3f}"))
        if options.figure is not None:
            comparison_figure(options.figure, case.truth, panels, case.geometry)
        print(f"{text} done", file=sys.stderr, flush=True)
    if options.ranks is not None:
        options.ranks.write_bytes(figures.calibration(histograms))


if __name__ == "__main__":
    main()
