"""Time the embedded projector, and STIR's ray tracing with 10 tangential rays where STIR is installed.

Usage::

    OMP_NUM_THREADS=2 python -m benchmarks.projector [--device cpu] [--repeat 3] [--no-stir]

Prints a Markdown table: seconds of the first call, which computes the geometry on both sides, and the best of the later
ones. STIR keeps its matrix after the first call, too (its default).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from pathlib import Path

import torch

from benchmarks.bench.tables import print_head, print_row
from benchmarks.bench.timing import timed
from sirf_diffusion.engines.embedded.projector import Projector
from sirf_diffusion.files.interfile import write_image, write_projection_data
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.geometry.projdata import ProjDataGeometry, Segment
from sirf_diffusion.geometry.scanners import get_scanner


def problems() -> dict[str, tuple[ProjDataGeometry, ImageGeometry]]:
    """Siemens mMR: a slice as the samplers see it, a full-size slice, and three segments of span 11."""
    scanner = get_scanner("Siemens mMR")
    ring = dataclasses.replace(scanner, name="one ring of an mMR", num_rings=1)
    direct = (Segment(0, 0, 0, 1),)
    segments = ProjDataGeometry.from_scanner(scanner, span=11, max_ring_difference=60).segments[:3]
    small = ImageGeometry((1, 128, 128), (4.0625, 2.0, 2.0))
    large = ImageGeometry((1, 344, 344), (4.0625, 2.08626, 2.08626))
    volume = ImageGeometry((127, 128, 128), (2.03125, 2.08626, 2.08626))
    return {
        "128 x 128, 126 views": (ProjDataGeometry(ring, direct, 126, 344), small),
        "344 x 344, 252 views": (ProjDataGeometry(ring, direct, 252, 344), large),
        "127 x 128 x 128, 3 segments, 126 views": (ProjDataGeometry(scanner, segments, 126, 344), volume),
    }


def embedded(projdata: ProjDataGeometry, image: ImageGeometry, device: str, repeat: int) -> dict[str, tuple]:
    """Forward and back projection of one image and of five."""
    where, projector = torch.device(device), Projector(image, projdata, device)
    x = torch.rand(image.shape, generator=torch.Generator().manual_seed(0)).to(device)
    found = {"forward": timed(lambda: projector.forward(x), repeat, where)}
    p = projector.forward(x)
    found["back"] = timed(lambda: projector.adjoint(p), repeat, where)
    if image.shape[0] == 1:
        x, p = x.expand(5, -1, -1, -1).contiguous(), p.expand(5, -1, -1, -1).contiguous()
        found["forward, 5 images"] = timed(lambda: projector.forward(x), repeat, where)
        found["back, 5 images"] = timed(lambda: projector.adjoint(p), repeat, where)
    return found


def stir_ray_tracing(projdata: ProjDataGeometry, image: ImageGeometry, repeat: int) -> dict[str, tuple]:
    """The same with STIR's ray tracing matrix, all symmetries on."""
    import stir

    stir.Verbosity.set(0)
    with tempfile.TemporaryDirectory() as folder:
        template, density = str(Path(folder) / "t.hs"), str(Path(folder) / "x.hv")
        write_projection_data(template, torch.ones(projdata.shape), projdata)
        write_image(density, torch.rand(image.shape, generator=torch.Generator().manual_seed(0)), image)
        data = stir.ProjData.read_from_file(template)
        data = stir.ProjDataInMemory(data)
        x = stir.FloatVoxelsOnCartesianGrid.read_from_file(density)
    matrix = stir.ProjMatrixByBinUsingRayTracing()
    matrix.set_num_tangential_LORs(10)
    out = stir.ProjDataInMemory(data.get_exam_info(), data.get_proj_data_info())
    forward = stir.ForwardProjectorByBinUsingProjMatrixByBin(matrix)
    forward.set_up(data.get_proj_data_info(), x)
    back = stir.BackProjectorByBinUsingProjMatrixByBin(matrix)
    back.set_up(data.get_proj_data_info(), x)
    return {
        "forward": timed(lambda: forward.forward_project(out, x), repeat, torch.device("cpu")),
        "back": timed(lambda: back.back_project(x, data), repeat, torch.device("cpu")),
    }


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--problems", type=int, nargs="+", default=[0, 1, 2], help="which of the three to run")
    parser.add_argument("--no-stir", action="store_true", help="time the embedded projector only")
    arguments = parser.parse_args()
    threads = int(os.environ.get("OMP_NUM_THREADS", "2"))
    torch.set_num_threads(threads)
    print(f"device {arguments.device}, {threads} threads, torch {torch.__version__}")
    print_head("problem", "operation", "embedded, first (s)", "then (s)", "STIR, first (s)", "then (s)")
    for number, (name, (projdata, image)) in enumerate(problems().items()):
        if number not in arguments.problems:
            continue
        mine = embedded(projdata, image, arguments.device, arguments.repeat)
        its = {} if arguments.no_stir else stir_ray_tracing(projdata, image, arguments.repeat)
        for operation, (first, later) in mine.items():
            print_row(name, operation, first, f"{later:.4f}", *its.get(operation, ("", "")))


if __name__ == "__main__":
    main()
