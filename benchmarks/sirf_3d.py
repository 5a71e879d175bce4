"""Reverse diffusion in 3D on SIRF's projectors: DDS and LiSch beside OSEM, with error, time and peak memory.

Usage::

    OMP_NUM_THREADS=2 python -m benchmarks.sirf_3d                                      # 16 rings, quality
    OMP_NUM_THREADS=2 python -m benchmarks.sirf_3d --rings 64 --size 344 --steps 2      # 127 x 344 x 344, memory
    ... --views 18                                              # the same memory but for the data, sooner
    ... --rings 12 --rays 5 --methods lisch --speeds accurate balanced --projectors toolkit embedded

A simulated head that no bundled model was trained on, in Siemens mMR geometry: span 11, segments 0, +1, -1, 126
views, ``2 rings - 1`` planes. Poisson counts on SIRF's own projections, attenuation and a uniform background of
30 % included. OSEM is stopped by looking at the truth, which the others are not.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sirf_diffusion
from benchmarks.bench.acquisition import mmr_of, script_model
from benchmarks.bench.tables import print_head, print_row
from benchmarks.bench.timing import peak_memory
from sirf_diffusion.cli.recon_options import parse_settings
from sirf_diffusion.engines import PROJECTORS
from sirf_diffusion.files.interfile import write_projection_data
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.reconstructors.methods import METHODS, build_reconstructor
from sirf_diffusion.reconstructors.settings import SPEEDS
from sirf_diffusion.simulation import simulate_activity, simulate_anatomy
from sirf_diffusion.study.metrics import nrmse

SUBJECT = 9001
NUM_SUBSETS = 6
BRAIN_MM = 250.0
CPU = torch.device("cpu")


def head(geometry: ImageGeometry) -> tuple[Tensor, Tensor]:
    """Activity and attenuation in 1/cm, voxel by voxel of the simulated head's 2 mm, centred."""
    anatomy = simulate_anatomy(SUBJECT)
    images = []
    for volume in (simulate_activity(anatomy, 0, psf_fwhm=4.0), anatomy.mu):
        out = torch.zeros(geometry.shape)
        target, source = [], []
        for have, want in zip(volume.shape, geometry.shape, strict=True):
            count = min(have, want)
            target.append(slice(want // 2 - count // 2, want // 2 - count // 2 + count))
            source.append(slice(have // 2 - count // 2, have // 2 - count // 2 + count))
        out[tuple(target)] = torch.from_numpy(np.ascontiguousarray(volume[tuple(source)]))
        images.append(out)
    return images[0], images[1]


def simulate(pet: Any, rings: int, views: int, size: int, counts_per_plane: float, rays: int) -> tuple[Any, Tensor]:
    """A set-up objective function of SIRF and the truth."""
    layout = mmr_of(2 * rings - 1, views)
    geometry = ImageGeometry((2 * rings - 1, size, size), (2.03125, 2.08626, 2.08626))
    with tempfile.TemporaryDirectory() as folder:
        write_projection_data(Path(folder) / "template.hs", torch.zeros(layout.shape), layout)
        prompts = pet.AcquisitionData(str(Path(folder) / "template.hs")).get_uniform_copy(0)
    image = pet.ImageData()
    image.initialise(geometry.shape, geometry.voxel_size)
    activity, mu = head(geometry)
    model = pet.AcquisitionModelUsingRayTracingMatrix()
    model.set_num_tangential_LORs(rays)
    model.set_up(prompts, image)
    projected = model.forward(pet.to_image(activity, image)).as_array()
    # A projection is an integral in mm divided by the voxel size in x; mu is in 1/cm.
    factors = np.exp(-0.1 * geometry.voxel_size[2] * model.forward(pet.to_image(mu, image)).as_array())
    factors *= 0.7 * counts_per_plane * geometry.shape[0] / float((factors * projected).sum(dtype=np.float64))
    background = np.float32(0.3 * counts_per_plane * geometry.shape[0] / projected.size)
    generator = np.random.default_rng(11)
    prompts.fill(generator.poisson(factors * projected + background).astype(np.float32))
    container = prompts.get_uniform_copy(0)
    container.fill(factors)
    additive = prompts.get_uniform_copy(0)
    additive.fill(background / factors)
    model = script_model(pet, prompts, container, additive, image, rays)
    obj = pet.make_Poisson_loglikelihood(prompts, acq_model=model)
    obj.set_num_subsets(NUM_SUBSETS)
    obj.set_up(image)
    return obj, activity


def best_osem(objective: Any, truth: Tensor, epochs: int) -> tuple[Tensor, int]:
    """The epoch closest to the truth."""
    found: list[tuple[float, int, Tensor]] = []

    def keep(step: Any) -> None:
        image = step.x.reshape(truth.shape).clone()
        found.append((nrmse(image, truth), step.step, image))

    build_reconstructor("osem", objective, {"num_iterations": epochs}, callbacks=[keep]).process()
    _, epoch, image = min(found, key=lambda item: item[0])
    return image, epoch


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rings", type=int, default=16)
    parser.add_argument("--views", type=int, default=126, help="a divisor of 252, and a multiple of 6")
    parser.add_argument("--size", type=int, default=128, help="voxels in y and x")
    parser.add_argument("--steps", type=int, help="default: the speed's")
    parser.add_argument("--rays", type=int, default=2, help="of SIRF's projector, for each bin")
    parser.add_argument("--speeds", nargs="+", choices=SPEEDS, default=SPEEDS[:1])
    parser.add_argument("--projectors", nargs="+", choices=PROJECTORS, default=PROJECTORS[:1])
    parser.add_argument("--counts-per-plane", type=float, default=1e5)
    parser.add_argument("--epochs", type=int, default=5, help="of OSEM, at most")
    parser.add_argument("--em-iterations", type=float, default=7.0, help="where LiSch ends its likelihood schedule")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--planes", choices=("transverse", "three", "alternating"), default="alternating")
    parser.add_argument("--methods", nargs="+", default=["dds", "lisch"])
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    pet = sirf_diffusion.get_engine("sirf")
    redirector = pet.MessageRedirector(None, None, None)
    pet.set_verbosity(0)
    pet.AcquisitionData.set_storage_scheme("memory")

    obj, truth = simulate(
        pet, arguments.rings, arguments.views, arguments.size, arguments.counts_per_plane, arguments.rays
    )
    objective = sirf_diffusion.as_objective(obj)
    print_head(
        *("image", "method", "speed", "projector", "NRMSE", "difference", "forward", "back"),
        *("seconds", "processor (s)", "projector (s)", "network (s)", "peak memory (GiB)"),
    )
    shape = " x ".join(map(str, truth.shape))
    start = time.perf_counter()
    x, epoch = best_osem(objective, truth, arguments.epochs)
    seconds = f"{time.perf_counter() - start:.0f}"
    print_row(
        shape,
        f"OSEM, epoch {epoch}",
        "",
        PROJECTORS[0],
        f"{nrmse(x, truth):.3f}",
        *[""] * 3,
        seconds,
        *[""] * 3,
        f"{peak_memory(CPU) / 2**30:.2f}",
    )
    for method, speed in itertools.product(arguments.methods, arguments.speeds):
        model = ScoreModel.load("brain-fdg", precision="float32" if speed == SPEEDS[0] else "auto")
        settings = METHODS[method].with_settings({"planes": arguments.planes}, volume=True, speed=speed)
        settings |= {"extent": BRAIN_MM} | ({} if arguments.steps is None else {"num_steps": arguments.steps})
        settings |= parse_settings(arguments.settings)
        if method == "lisch":
            settings["num_em_iterations"] = arguments.em_iterations
        first: Tensor | None = None
        for projector in arguments.projectors:
            began = time.perf_counter(), time.process_time()
            objective = sirf_diffusion.as_objective(obj, projector=projector)
            made = build_reconstructor(method, objective, settings, model=model, num_samples=arguments.samples)
            image = objective.to_tensor(made.process().get_output())
            seconds = time.perf_counter() - began[0], time.process_time() - began[1]
            first = image if first is None else first
            spent, projections = made.record["seconds"], made.record["projections"]
            print_row(
                *(shape, f"{method}, {arguments.samples} samples", speed, projector, f"{nrmse(image, truth):.3f}"),
                f"{float((image - first).norm() / first.norm()):.4f}",
                *(f"{projections[part]:.1f}" for part in ("forward", "back")),
                *(f"{part:.0f}" for part in (*seconds, spent["projector"], spent["network"])),
                f"{peak_memory(CPU) / 2**30:.2f}",
            )
    del redirector


if __name__ == "__main__":
    main()
