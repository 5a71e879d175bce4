"""Seconds until an image is as near to the truth as STIR's OSMAPOSL with a tuned relative difference prior brings it.

Usage::

    OMP_NUM_THREADS=2 python benchmarks/time_to_rdp.py [--samples 5] [--model brain-fdg]

Needs STIR's Python module. The data are those of the bundled slice, which STIR projected. The prior's strength is
chosen by looking at the truth; this package's methods run with their defaults, on its own projector. Every curve is the
error after each step against the seconds until then, all that happens after the data are in memory included, but for
the projectors' tables, which a first projection makes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sirf_diffusion.data
from benchmarks.bench.tables import print_head, print_row
from sirf_diffusion.data import load_example
from sirf_diffusion.engines.stir.images import tensor_of
from sirf_diffusion.environment import software_versions
from sirf_diffusion.study.metrics import nrmse
from sirf_diffusion.study.reconstruction import reconstruct

FOLDER = Path(sirf_diffusion.data.__file__).parent / "brain2d"
NUM_RAYS, NUM_SUBSETS, NUM_EPOCHS = 10, 14, 20
STRENGTHS = tuple(2.0**k for k in range(-2, 3))
COMPARED = ("map-rdp", "dds", "hqs", "lisch")
Curve = list[tuple[float, float]]


def stir_likelihood(stir: Any, num_subsets: int) -> Any:
    """The bundled slice's log-likelihood as an objective function of STIR, not set up."""
    objective = stir.PoissonLogLikelihoodWithLinearModelForMeanAndProjData3DFloat()
    objective.set_proj_data_sptr(stir.ProjData.read_from_file(str(FOLDER / "prompts.hs")))
    objective.set_additive_proj_data_sptr(stir.ProjData.read_from_file(str(FOLDER / "additive.hs")))
    factors = stir.ProjDataInMemory(stir.ProjData.read_from_file(str(FOLDER / "multiplicative.hs")))
    values = factors.as_array()
    factors.fill(np.where(values > 0, 1 / np.maximum(values, 1e-30), 1e30).astype(np.float32).flat)
    objective.set_normalisation_sptr(stir.BinNormalisationFromProjData(factors))
    matrix = stir.ProjMatrixByBinUsingRayTracing()
    matrix.set_num_tangential_LORs(NUM_RAYS)
    objective.set_projector_pair_sptr(stir.ProjectorByBinPairUsingProjMatrixByBin(matrix))
    objective.set_num_subsets(num_subsets)
    return objective


def osmaposl(stir: Any, strength: float, scale: float, truth: Tensor) -> Curve:
    """STIR's OSMAPOSL with its RDP, an epoch at a time; ``strength`` is relative to the images' scale."""
    image = stir.FloatVoxelsOnCartesianGrid.read_from_file(str(FOLDER / "truth.hv"))
    image.fill(scale)
    prior = stir.RelativeDifferencePrior3DFloat()
    prior.set_penalisation_factor(strength / scale)
    prior.set_gamma(2)
    prior.set_epsilon(0.005 * scale)
    objective = stir_likelihood(stir, NUM_SUBSETS)
    objective.set_prior_sptr(prior)
    reconstruction = stir.OSMAPOSLReconstruction3DFloat()
    reconstruction.set_objective_function(objective)
    reconstruction.set_num_subsets(NUM_SUBSETS)
    reconstruction.set_save_interval(NUM_SUBSETS * NUM_EPOCHS)
    reconstruction.set_disable_output(True)
    reconstruction.set_num_subiterations(NUM_SUBSETS * NUM_EPOCHS)
    if not reconstruction.set_up(image).succeeded():
        raise SystemExit("STIR did not set up OSMAPOSL: see its messages above")
    curve, seconds = [], 0.0
    for epoch in range(NUM_EPOCHS):
        reconstruction.set_start_subiteration_num(epoch * NUM_SUBSETS + 1)
        reconstruction.set_num_subiterations((epoch + 1) * NUM_SUBSETS)
        began = time.perf_counter()
        reconstruction.reconstruct(image)
        seconds += time.perf_counter() - began
        curve.append((seconds, nrmse(tensor_of(image), truth)))
    return curve


def ours(data: Any, method: str, truth: Tensor, **options: Any) -> Curve:
    """A method of this package; its early OSEM image and the preparation count."""
    curve: Curve = []
    listening = 0.0
    began = time.perf_counter()

    def listen(step: Any) -> None:
        nonlocal listening
        now = time.perf_counter()
        image = step.x if step.x.ndim == 3 else step.x.mean(0)
        curve.append((now - began - listening, nrmse(image, truth)))
        listening += time.perf_counter() - now

    reconstruct(data, method, callbacks=[listen], device="cpu", **options)
    return curve


def best(curves: dict[float, Curve]) -> float:
    """The strength whose curve ends nearest to the truth."""
    return min(curves, key=lambda strength: curves[strength][-1][1])


def show(name: str, curve: Curve, target: float) -> None:
    """A row of the table."""
    print_row(name, f"{curve[-1][1]:.4f}", f"{curve[-1][0]:.2f}", reached(curve, target))


def reached(curve: Curve, error: float) -> str:
    """Seconds until the error was reached and not left again."""
    seconds = None
    for when, found in curve:
        seconds = None if found > error else when if seconds is None else seconds
    return "not" if seconds is None else f"{seconds:.2f}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--model", default="brain-fdg")
    options = parser.parse_args()
    import stir

    stir.Verbosity.set(0)
    example = load_example(FOLDER)
    truth, embedded = example.truth, example.acquisition
    scale = float(embedded.objective().uniform_image().max())
    curves = {strength: osmaposl(stir, strength, scale, truth) for strength in STRENGTHS}
    strength = best(curves)
    reference = osmaposl(stir, strength, scale, truth)
    target = 1.01 * reference[-1][1]
    print(f"bundled slice, {options.samples} samples, {torch.get_num_threads()} threads, {software_versions()}")
    print(f"OSMAPOSL: strength {strength:g} of {STRENGTHS}; aim: its last error and 1 %, {target:.4f}")
    print_head("", "last NRMSE", "seconds in all", "seconds to the aim")
    show("STIR, OSMAPOSL with RDP", reference, target)
    objective = embedded.objective()
    objective.gradient(objective.uniform_image())
    for method in COMPARED:
        sampling = {} if method == "map-rdp" else {"model": options.model, "num_samples": options.samples}
        show(method, ours(embedded, method, truth, **sampling), target)


if __name__ == "__main__":
    main()
