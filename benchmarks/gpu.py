"""What a GPU does for the reconstructions: whole samplers, projector, network, equality with the CPU, training, tests.

::

    benchmarks/gpu.sh results/gpu                                     # under 8 minutes on an H100-class card
    python -m benchmarks.gpu --out results/gpu --device cpu --small   # a rehearsal

Rows are written as they come, to ``gpu.md`` and ``gpu.json``. What fails is a row that says so, and the exit code is 1;
what there was no time for is a row, too. Needs the package's dependencies, and pytest for the last row.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import gc
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.bench.acquisition import mmr_of
from benchmarks.bench.tables import Column, as_text, markdown, number
from benchmarks.bench.timing import peak_memory, reset_peak_memory, timed, wait
from benchmarks.training import BareLoop
from sirf_diffusion.data import load_example
from sirf_diffusion.engines.embedded import axial
from sirf_diffusion.engines.embedded.acquisition_model import AcquisitionModel
from sirf_diffusion.engines.embedded.poisson import PoissonObjective
from sirf_diffusion.engines.embedded.projector import Projector
from sirf_diffusion.environment import select_device, software_versions
from sirf_diffusion.files.atomic import atomic_path
from sirf_diffusion.files.outputs import jsonable, write_json
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.reconstructors.methods import METHODS
from sirf_diffusion.training import RECIPES

logger = logging.getLogger(__name__)

#: Seconds of published methods on a volume of 128 x 128 x 80 voxels and a B200 (arXiv:2608.20112).
PUBLISHED = {"lisch": 24.0, "hqs": 111.0, "dds": 236.0}
COUNTS_PER_PLANE = 2e5
COLUMNS = (
    Column("what", lambda row: str(row["what"])),
    Column("case", lambda row: str(row["case"])),
    Column("samples", number("samples", ".0f")),
    Column("seconds", number("seconds", ".4g")),
    Column("published [s]", number("published", ".0f")),
    Column("per second", number("rate", ".4g")),
    Column("of bandwidth [%]", number("bandwidth", ".1f", 100)),
    Column("network [%]", number("network", ".1f", 100)),
    Column("projector [%]", number("projector", ".1f", 100)),
    Column("other [%]", number("other", ".1f", 100)),
    Column("difference", number("difference", ".2g")),
    Column("peak memory [GiB]", number("memory", ".2f")),
    Column("remark", lambda row: str(row.get("remark", ""))),
)
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large things are: those of the table, or those of a rehearsal."""

    samplers: tuple[int, int] = (80, 128)
    projections: tuple[tuple[int, int], ...] = ((80, 128), (127, 128), (127, 344))
    views: int = 126
    samples: tuple[int, ...] = (1, 5)
    slices: int = 400
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    training_steps: int = 30


SMALL = Sizes((8, 32), ((8, 32), (11, 32)), 18, (1, 2), 4, {"num_steps": 2}, 2)


class Machine:
    """A device, its clock, and what the bandwidth of its memory is."""

    def __init__(self, device: torch.device, minutes: float, small: bool) -> None:
        self.device, self.small, self.sizes = device, small, SMALL if small else Sizes()
        self.cuda = device.type == "cuda"
        self._end = time.perf_counter() + 60 * minutes
        self.bandwidth = self._bandwidth()

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.cuda else "CPU"

    @property
    def seconds_left(self) -> float:
        return self._end - time.perf_counter()

    def timed(self, function: Callable[[], Any], repeat: int = 3) -> float:
        """The best of some calls after a first one."""
        return timed(function, repeat, self.device)[1]

    def forget(self) -> None:
        """Free memory, and watch its peak anew."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
        reset_peak_memory(self.device)

    def peak(self) -> float:
        """GiB since `forget`: of the device, or of this process."""
        return peak_memory(self.device) / 2**30

    def _bandwidth(self) -> float:
        """Bytes per second, read and written by a copy."""
        source = torch.zeros(1 << (20 if self.small else 28), device=self.device)
        target = torch.empty_like(source)
        return 2 * 4 * source.numel() / self.timed(lambda: target.copy_(source))


def grid_of(planes: int, side: int) -> ImageGeometry:
    """Voxels of 2 mm; an even number of planes has one that the sinograms' do not have, at its end."""
    dz, dx = 2.03125, 2.08626
    return ImageGeometry((planes, side, side), (dz, dx, dx), (0.0 if planes % 2 else dz / 2, 0.0, 0.0))


def objective_of(machine: Machine, planes: int, side: int) -> PoissonObjective:
    """Noisy counts of a head-like ellipsoid with hot and cold spheres, two subsets."""
    geometry = grid_of(planes, side)
    model = AcquisitionModel(Projector(geometry, mmr_of(planes, machine.sizes.views), machine.device))
    z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in geometry.shape), indexing="ij")
    radius = ((x / 0.62).square() + (y / 0.75).square() + (0.5 * z).square()).sqrt()
    truth = 0.4 * (radius < 1) + 0.6 * ((radius < 0.95) & (torch.sin(9 * radius + 4 * x * y) > 0))
    for k, value in enumerate((2.0, 1.5, -0.4, -0.4)):
        away = (x - 0.3 * (-1) ** k).square() + (y - 0.3 * (-1) ** (k // 2)).square() + (0.5 * z).square()
        truth += value * (away < 0.006)
    counts = model.linear(truth.clamp_min(0).to(machine.device)).cpu()
    counts *= COUNTS_PER_PLANE * planes / float(counts.sum())
    prompts = torch.poisson(counts, generator=torch.Generator().manual_seed(0))
    return PoissonObjective(model, prompts, 2)


def samplers(machine: Machine) -> Iterator[Row]:
    """Whole reconstructions, beside published ones of this size."""
    sizes = machine.sizes
    objective = objective_of(machine, *sizes.samplers)
    objective.sensitivity()
    model = ScoreModel.load("brain", device=str(machine.device))
    case = " x ".join(map(str, reversed(objective.geometry.shape)))
    for method, number_of in ((m, n) for n in sorted(sizes.samples, reverse=True) for m in PUBLISHED):
        for speed in ("balanced", "accurate") if method == "lisch" else ("balanced",):
            if machine.seconds_left < 150:
                yield {"what": method, "case": f"{case}, {speed}", "samples": number_of, "remark": "left out: no time"}
                continue
            machine.forget()
            began = time.perf_counter()
            options = {"num_samples": number_of, "speed": speed, **sizes.settings}
            made = METHODS[method](objective, model, **options).process()
            wait(machine.device)
            total, spent = time.perf_counter() - began, made.record["seconds"]
            yield {
                **{"what": method, "case": f"{case}, {speed}", "samples": number_of, "seconds": total},
                **{"published": PUBLISHED[method], "network": spent["network"] / total},
                **{"projector": spent["projector"] / total, "memory": machine.peak()},
                "other": 1 - (spent["network"] + spent["projector"]) / total,
            }


def projections(machine: Machine) -> Iterator[Row]:
    """Forward and back, beside the time to read weights, image and data once, by the columns of a product."""
    for planes, side in machine.sizes.projections:
        machine.forget()
        geometry = grid_of(planes, side)
        projector = Projector(geometry, mmr_of(planes, machine.sizes.views), machine.device, max_bytes=16 << 30)
        x = torch.rand(geometry.shape, generator=torch.Generator().manual_seed(0)).to(machine.device)
        began = time.perf_counter()
        p = projector.forward(x)
        projector.adjoint(p)
        wait(machine.device)
        first = time.perf_counter() - began
        case = f"{side} x {side} x {planes}, {' x '.join(map(str, p.shape))} bins"
        yield {"what": "projector, first pair", "case": case, "seconds": first, "memory": machine.peak()}
        for transposed, (what, call) in enumerate(
            (("forward", lambda a=projector, b=x: a.forward(b)), ("back", lambda a=projector, b=p: a.adjoint(b)))
        ):
            weights = sum(m.num_bytes for (*_, back), m in projector._cache.items() if back == bool(transposed))
            least = (weights + 4 * (x.numel() + p.numel())) / machine.bandwidth
            for columns in (axial.MAX_COLUMNS, 128, 512):
                with patch.object(axial, "MAX_COLUMNS", columns):
                    seconds = machine.timed(call)
                yield {
                    "what": f"{what}, {columns} columns",
                    "case": case,
                    "seconds": seconds,
                    "bandwidth": least / seconds,
                }


def networks(machine: Machine) -> Iterator[Row]:
    """One denoising of many slices, in the ways that are meant to be faster."""
    score, number_of = ScoreModel.load("brain", device=str(machine.device), precision="float32"), machine.sizes.slices
    side = machine.sizes.samplers[1]
    bound = score.on(grid_of(number_of, side), 1.0, "transverse")
    u = torch.randn(bound.latent_shape, generator=torch.Generator().manual_seed(0)).to(machine.device)
    expected = bound.predict(u, 0.5)[0]
    ways: list[tuple[str, bool, str, Callable[[Any], Any]]] = [
        ("float32", False, "float32", lambda network: network),
        ("TF32", True, "float32", lambda network: network),
        ("bfloat16", True, "bfloat16", lambda network: network),
        ("bfloat16, contiguous", True, "bfloat16", lambda network: network.to(memory_format=torch.contiguous_format)),
        ("bfloat16, channels_last", True, "bfloat16", lambda network: network.to(memory_format=torch.channels_last)),
    ]
    if machine.cuda:
        ways += [
            ("bfloat16, CUDA graph", True, "bfloat16", CudaGraph),
            ("bfloat16, compiled", True, "bfloat16", torch.compile),
            ("bfloat16, compiled, CUDA graphs", True, "bfloat16", lambda n: torch.compile(n, mode="reduce-overhead")),
        ]
    for name, tf32, precision, change in ways:
        if machine.seconds_left < 60:
            yield {"what": "network", "case": name, "remark": "left out: no time"}
            continue
        machine.forget()
        variant = copy.copy(bound)
        variant.precision, variant.network = precision, change(copy.deepcopy(bound.network))
        with rounded(tf32):
            seconds = machine.timed(lambda v=variant: v.predict(u, 0.5))
            found = variant.predict(u, 0.5)[0]
        yield {
            **{"what": "network", "case": f"{name}, {side} x {side}", "samples": number_of, "seconds": seconds},
            **{"rate": number_of / seconds, "memory": machine.peak(), "difference": relative(found, expected)},
        }


class CudaGraph(torch.nn.Module):
    """A network whose launches are recorded once for each shape, and replayed."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self._graphs = network, {}

    def forward(self, *inputs: Tensor, **labels: Tensor) -> Tensor:
        given = (*inputs, *labels.values())
        key = tuple(tensor.shape for tensor in given)
        if key not in self._graphs:
            kept = [tensor.clone() for tensor in given]
            names = dict(zip(labels, kept[len(inputs) :], strict=True))
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):
                    self.network(*kept[: len(inputs)], **names)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = self.network(*kept[: len(inputs)], **names)
            self._graphs[key] = graph, kept, result
        graph, kept, result = self._graphs[key]
        for target, tensor in zip(kept, given, strict=True):
            target.copy_(tensor)
        graph.replay()
        return result.clone()


def equalities(machine: Machine) -> Iterator[Row]:
    """The same numbers as on the CPU: projections, and a few noise levels of a sampler in float32."""
    example = load_example("brain2d" if machine.small else "brain3d").acquisition
    here, there = (example.objective(2, device) for device in ("cpu", machine.device))
    x = here.early_image()
    pairs = {
        "gradient of the likelihood": lambda o: o.gradient(x.to(o.device)),
        "early image": lambda o: o.early_image(),
    }
    for name, method in METHODS.items():
        if method.samples and method.own_adaptation is None and name in PUBLISHED:
            pairs[f"{name}, 4 noise levels"] = lambda o, m=method: m(
                o, ScoreModel.load("brain", str(o.device), "float32"), num_steps=4, num_samples=2
            ).process().get_output()  # fmt: skip
    for name, call in pairs.items():
        with rounded(False):
            row = {"what": "equal to the CPU", "case": name, "difference": relative(call(there).cpu(), call(here))}
        yield row


def trainings(machine: Machine) -> Iterator[Row]:
    """Steps per second of the bundled model's network."""
    recipe = RECIPES["brain"]
    recipe = dataclasses.replace(recipe, crops=(32,), batch_size=2) if machine.small else recipe
    for precision in ("float32", "bfloat16"):
        machine.forget()
        loop, steps = BareLoop(recipe, machine.device, precision), machine.sizes.training_steps
        seconds = machine.timed(lambda a=loop, n=steps: [a.step() for _ in range(n)], 1)
        case = f"brain, {precision}, {recipe.batch_size} slices of {recipe.crops[0]} x {recipe.crops[0]}"
        yield {
            "what": "training step",
            "case": case,
            "seconds": seconds / steps,
            "rate": steps / seconds,
            "memory": machine.peak(),
        }


def tests(machine: Machine) -> Iterator[Row]:
    """``pytest -m requires_cuda``."""
    files = [str(p) for p in sorted(Path("tests").glob("test_*.py")) if "requires_cuda" in p.read_text("utf-8")]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "requires_cuda", "-o", "addopts=", *files]
    limit = 120.0
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=limit, check=False,
        env=os.environ | ({"REQUIRE_CUDA": "1"} if machine.cuda else {}),
    )  # fmt: skip
    words = (done.stdout or done.stderr).strip().splitlines()
    row = {
        "what": "pytest -m requires_cuda",
        "case": f"{len(files)} files",
        "remark": words[-1] if words else "no output",
    }
    if done.returncode:
        logger.error("%s", done.stdout + done.stderr)
        row["failed"] = True
    yield row


PARTS = (tests, samplers, projections, equalities, trainings, networks)


@contextlib.contextmanager
def rounded(tf32: bool) -> Iterator[None]:
    """Whether products and convolutions in float32 may round to TF32, which convolutions do unless told."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def measured(machine: Machine, part: Callable[[Machine], Iterator[Row]]) -> Iterator[Row]:
    """The rows of a part; one that says what went wrong, if something does."""
    began = time.perf_counter()
    try:
        yield from part(machine)
    except Exception as problem:  # the other parts are worth their time all the same
        logger.exception("%s failed", part.__name__)
        yield {
            "what": part.__name__,
            "case": "failed",
            "remark": f"{type(problem).__name__}: {problem}"[:200],
            "failed": True,
        }
    logger.info("%s: %.0f s", part.__name__, time.perf_counter() - began)


def write(rows: list[Row], machine: Machine, folder: Path, command: str) -> None:
    """``gpu.md`` and ``gpu.json``."""
    about = {
        "command": command, "device": machine.name, "copy_gb_per_second": machine.bandwidth / 1e9,
        "software": software_versions(), "cuda": torch.version.cuda,
    }  # fmt: skip
    write_json(folder / "gpu.json", jsonable({**about, "rows": rows}))
    with atomic_path(folder / "gpu.md") as temporary:
        text = (
            f"`{command}` on {machine.name}, {about['copy_gb_per_second']:.0f} GB/s, PyTorch {torch.__version__}:\n\n"
        )
        temporary.write_text(f"{text}{markdown(as_text(COLUMNS, rows))}\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Measure and write; 1 if something failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.md and gpu.json")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=7.5, help="what begins later is left out; default: 7.5")
    parser.add_argument("--small", action="store_true", help="everything tiny: a rehearsal")
    parser.add_argument("--parts", nargs="+", choices=[part.__name__ for part in PARTS], help="only these")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    machine = Machine(select_device(options.device), options.minutes, options.small)
    words = sys.argv[1:] if argv is None else argv
    rows: list[Row] = []
    for part in PARTS:
        if options.parts and part.__name__ not in options.parts:
            continue
        for row in measured(machine, part):
            rows.append(row)
            logger.info("%s", {key: value for key, value in row.items() if value != ""})
            write(rows, machine, options.out, " ".join(["python -m benchmarks.gpu", *words]))
    return int(any(row.get("failed") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
