r"""The domain-shift suite: a figure of it, what the detection measures on it, and how close methods come to the truth.

::

    python -m benchmarks.domain_shift figure docs/images/domain-shift.png
    python -m benchmarks.domain_shift detect                  # truth images of validation subjects
    python -m benchmarks.domain_shift evaluate --cases fdg amyloid-negative --methods map-rdp dds dds:ddip steerable
    python -m benchmarks.domain_shift compare adaptation.png --cases predictable-perturbation --subjects 9002 \
        --model stripes.safetensors --methods lisch steerable

A method with an adaptation that is not its own is written ``method:adaptation``. ``evaluate`` prints what the detection
says of each reconstruction, too; ``compare`` draws one case: the truth, the first method with ``brain-fdg``, and all
methods with ``--model``. Subjects from 800 to 8999 are for tuning and for the limits of the detection, those from 9000
on for results.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench.domain_shift import CASES, GREY_MATTER, REFERENCE_PSF, TestCase, simulate_case
from sirf_diffusion.files.atomic import atomic_path
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models import ScoreModel, intensity_scale
from sirf_diffusion.reconstructors.methods import get_method
from sirf_diffusion.simulation.body import BODY_TRACERS, HOT_LESIONS, simulate_thorax
from sirf_diffusion.simulation.parametric import draw_parametric_activity
from sirf_diffusion.simulation.perturbations import PERTURBATIONS
from sirf_diffusion.study.fitness import DistributionCheck, check_distribution
from sirf_diffusion.study.metrics import nrmse
from sirf_diffusion.study.reconstruction import reconstruct
from sirf_diffusion.study.result import Reconstruction


def figure(path: Path, subject: int) -> None:
    """Truth and MR of every case of one subject, and the perturbed images."""
    shown = []
    for name, shift in CASES.items():
        case = simulate_case(name, subject)
        truth = case.truth[0]
        title = shift.title
        if shift.trained_on is not None:
            truth = torch.from_numpy(PERTURBATIONS[shift.trained_on](case.truth.numpy(), 2.0, subject))[0]
            title += "\n(what it was trained on)"
        shown.append((title, truth, case.mr[0]))
    _sheet(path, shown, (1.9, 4.4), cmap="gray")


def _sheet(
    path: Path, shown: Sequence[tuple[str, Tensor, Tensor]], size: tuple[float, float], about: str = "", **colours: Any
) -> None:
    """Titles and images, and another image below each, in these colours; ``size`` is that of a column, in inches."""
    from matplotlib.figure import Figure

    sheet = Figure(figsize=(size[0] * len(shown), size[1]), layout="constrained")
    axes = sheet.subplots(2, len(shown))
    for (upper, lower), (title, image, below) in zip(axes.T, shown, strict=True):
        upper.imshow(image[10:-10, 10:-10], cmap="gray_r", vmin=0, vmax=2 * GREY_MATTER)
        upper.set_title(title, fontsize=9)
        lower.imshow(below[10:-10, 10:-10], **colours)
        upper.set_axis_off()
        lower.set_axis_off()
    axes[1][0].set_title(about, fontsize=7, y=0.45)
    with atomic_path(path) as temporary:
        sheet.savefig(temporary, dpi=75)


def detect(model: ScoreModel, cases: Sequence[str], subjects: Sequence[int]) -> None:
    """What the detection measures on true images: the best that it can do."""
    for name in cases:
        for subject in subjects:
            case = simulate_case(name, subject)
            _print(f"{name} {subject}", _check(model, case.truth, case.geometry))
    for subject in subjects[:4]:
        chest = simulate_thorax(subject, (112, 152, 216), 2.0)
        activity, _, _ = draw_parametric_activity(chest, 0, BODY_TRACERS["fdg"], HOT_LESIONS, REFERENCE_PSF)
        image = torch.from_numpy(activity[30:31].copy())
        _print(f"thorax {subject}", _check(model, image, ImageGeometry(tuple(image.shape), (2.03125, 2.0, 2.0))))


def evaluate(
    model: ScoreModel,
    cases: Sequence[str],
    subjects: Sequence[int],
    prompts: float,
    methods: Sequence[str],
    rdp: float,
) -> None:
    """NRMSE of each method, and what the detection says of its image."""
    for name in cases:
        errors: dict[str, list[float]] = {method: [] for method in methods}
        for subject in subjects:
            case = simulate_case(name, subject, prompts=prompts)
            for method in methods:
                result = _reconstruct(case, method, model, rdp)
                errors[method].append(nrmse(result.image, case.truth))
                check = result.record["distribution"]
                said = "" if check is None else check["message"]
                print(f"{name} {subject} {method:10s} NRMSE {errors[method][-1]:.4f} {said}", flush=True)
        means = "  ".join(f"{method} {sum(values) / len(values):.4f}" for method, values in errors.items())
        print(f"{name}: {means}", flush=True)


def compare(
    path: Path, model: ScoreModel, name: str, subject: int, prompts: float, methods: Sequence[str], rdp: float
) -> None:
    """Images and their errors: the first method with ``brain-fdg``, and all with another model."""
    case = simulate_case(name, subject, prompts=prompts)
    shown = [("truth", case.truth[0], torch.zeros_like(case.truth[0]))]
    reference = (methods[0], ScoreModel.load("brain-fdg"), "brain-fdg")
    for method, used, by in (reference, *((method, model, "this model") for method in methods)):
        image = _reconstruct(case, method, used, rdp).image
        error = nrmse(image, case.truth)
        print(f"{name} {subject} {method} {by}: {error:.4f}", flush=True)
        shown.append((f"{method}, {by}\nNRMSE {error:.3f}", image[0], (image - case.truth)[0]))
    colours = {"cmap": "RdBu_r", "vmin": -GREY_MATTER / 2, "vmax": GREY_MATTER / 2}
    _sheet(path, shown, (2.2, 4.9), "error, -0.5 to 0.5 of grey matter", **colours)


def _reconstruct(case: TestCase, method: str, model: ScoreModel, rdp: float) -> Reconstruction:
    name, _, adaptation = method.partition(":")
    return reconstruct(
        case.acquisition,
        name,
        model=model if get_method(name).uses_model else None,
        settings={"penalisation_factor": rdp} if name == "map-rdp" else None,
        speed="accurate",
        adaptation=adaptation or None,
    )


def _check(model: ScoreModel, image: Tensor, geometry: ImageGeometry) -> DistributionCheck:
    return check_distribution(model.on(geometry, intensity_scale(image, geometry)), image, samples=image[None])


def _print(name: str, check: DistributionCheck) -> None:
    levels = "  ".join(f"{level.sigma:g}: {level.own_ratio:.2f}" for level in check.denoising)
    print(f"{name:22s} {check.verdict:20s} own {levels}  training {check.training_ratio or 0:.2f}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("figure", "detect", "evaluate", "compare"))
    parser.add_argument("path", nargs="?", type=Path, default=Path("domain-shift.png"), help="of the figure")
    parser.add_argument("--model", default="brain-fdg", help="bundled name or file")
    parser.add_argument(
        "--cases", nargs="+", choices=list(CASES), default=[n for n in CASES if not CASES[n].trained_on]
    )
    parser.add_argument("--subjects", nargs="+", type=int, default=list(range(800, 808)))
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD[:ADAPTATION]", default=["map-rdp", "lisch", "ddip", "steerable"]
    )
    parser.add_argument("--prompts", type=float, default=2e5)
    parser.add_argument("--rdp", type=float, default=2.0, help="strength of map-rdp")
    options = parser.parse_args(arguments)
    logging.getLogger("sirf_diffusion").setLevel(logging.ERROR)
    if options.what == "figure":
        figure(options.path, options.subjects[0])
        return
    model = ScoreModel.load(options.model)
    if options.what == "detect":
        detect(model, options.cases, options.subjects)
    elif options.what == "compare":
        place = (options.cases[0], options.subjects[0], options.prompts)
        compare(options.path, model, *place, options.methods, options.rdp)
    else:
        evaluate(model, options.cases, options.subjects, options.prompts, options.methods, options.rdp)


if __name__ == "__main__":
    main()
