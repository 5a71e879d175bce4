"""What the bundled models' cards say of reconstructions: tracers and heads never seen, and what the MR is worth.

::

    python -m benchmarks.bundled_models files FOLDER      # simulates the subjects of `tracers`
    python -m benchmarks.bundled_models tracers FOLDER    # LiSch with `brain` and `brain-fdg`, beside a tuned RDP
    python -m benchmarks.bundled_models guidance          # LiSch and DDS with the MR at several weights, and lesions

One line of JSON per reconstruction. RDP's strength is to be chosen per tracer on the lines of the subjects from 810 on;
those from 9000 on are reported. Nothing else is tuned.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from benchmarks.bench.acquisition import Scan
from benchmarks.bench.cases import CaseSpec, make_case
from benchmarks.bench.measures import image_measures
from benchmarks.bench.problem import Problem
from benchmarks.low_count_slice import reconstruct, scanned
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.reconstructors.methods import METHODS, build_reconstructor
from sirf_diffusion.study.metrics import nrmse
from sirf_diffusion.training.data.phantom_data import PhantomOptions, build_phantoms

#: Kind of head and tracer; the tracer that RDP is tuned on.
KINDS = {
    ("head", "fdg"): "fdg", ("head", "amyloid"): "amyloid", ("head", "dpa714"): "dpa714",
    ("head-parametric", "any"): "any", ("head-parametric", "amyloid"): "any",
}  # fmt: skip
TUNING, REPORTED = (810, 2), (9200, 3)
STRENGTHS = (0.5, 1.0, 2.0, 4.0)
LESION_SUBJECTS = (9010, 9011, 9012, 9013)
#: Models and methods on the reported slices.
RUNS = (("brain", "lisch"), ("brain-fdg", "lisch"), ("brain", "dds"))
#: None: `brain-fdg`, which takes no MR.
WEIGHTS = (None, -0.75, -0.5, -0.25, 0.0, 0.5)


def simulate(folder: Path) -> None:
    """The files of `tracers`."""
    for (body, tracer), tuned_on in KINDS.items():
        for first, subjects in {TUNING, REPORTED} if tracer == tuned_on else {REPORTED}:
            out = folder / f"{body}-{tracer}-{first}.h5"
            if not out.exists():
                options = PhantomOptions(tracer, body, subjects, first=first, psf_fwhm=4.0)
                build_phantoms(out, options, held_out=first >= 9000)


def middle_slice(path: Path, number: int) -> Scan:
    """The middle slice of a volume of a file, grey matter at about 20, and its scan."""
    with h5py.File(path) as file:
        group = file["volumes"][f"{number:05d}"]
        plane = len(group["emission"]) // 2
        emission, mu = (torch.from_numpy(group[n][plane : plane + 1].astype(np.float32)) for n in ("emission", "mu"))
    return scanned(20 * emission, mu, number + 1)


def tracers(folder: Path) -> None:
    """RDP at every strength on all slices, and LiSch and DDS on the reported ones."""
    models = {name: ScoreModel.load(name) for name in ("brain", "brain-fdg")}
    for path in sorted(folder.glob("*.h5")):
        reported = path.stem.endswith(str(REPORTED[0]))
        for number in range((REPORTED if reported else TUNING)[1]):
            case = middle_slice(path, number)
            for strength in STRENGTHS:
                settings = {"penalisation_factor": strength, "num_iterations": 20}
                image, _ = reconstruct(case, "map-rdp", models["brain"], settings)
                say(file=path.stem, number=number, method="map-rdp", strength=strength, nrmse=nrmse(image, case.truth))
            for name, method in RUNS if reported else ():
                image, _ = reconstruct(case, method, models[name], {})
                say(file=path.stem, number=number, method=method, model=name, nrmse=nrmse(image, case.truth))


def guidance() -> None:
    """With the MR at several weights, on slices with lesions that it shows or does not."""
    models = {"score": ScoreModel.load("brain-fdg"), "conditional": ScoreModel.load("brain-fdg-mr")}
    for subject in LESION_SUBJECTS:
        case = make_case(CaseSpec("slice", subject, 2e5))
        problem = Problem(case, 0, models, torch.device("cpu"))
        for method in ("lisch", "dds"):
            for weight in WEIGHTS:
                shown = {} if weight is None else {"anatomical": problem.mr, "guidance": weight}
                run = build_reconstructor(
                    method, problem.objective(METHODS[method].num_subsets),
                    METHODS[method].with_settings({}, speed="accurate"), num_samples=5, seed=0,
                    model=problem.model("conditional" if shown else "score", **shown), intensity_scale=problem.scale,
                )  # fmt: skip
                run.set_up()
                say(subject=subject, method=method, weight=weight, **image_measures(run.process().get_output(), case))


def say(**values: Any) -> None:
    """A line of JSON."""
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}), flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("files", "tracers", "guidance"))
    parser.add_argument("folder", type=Path, nargs="?", help="of the simulated subjects")
    options = parser.parse_args()
    if options.what == "guidance":
        return guidance()
    if options.folder is None:
        parser.error("give the folder of the simulated subjects")
    options.folder.mkdir(parents=True, exist_ok=True)
    return simulate(options.folder) if options.what == "files" else tracers(options.folder)


if __name__ == "__main__":
    main()
