"""What each layer costs on this machine, and how it grows: projector, network, and the loop around them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench.acquisition import mmr_of
from benchmarks.bench.tables import Column, as_text, markdown, number
from benchmarks.bench.timing import timed
from sirf_diffusion.engines.embedded.acquisition_model import AcquisitionModel
from sirf_diffusion.engines.embedded.poisson import PoissonObjective
from sirf_diffusion.engines.embedded.projector import Projector
from sirf_diffusion.environment import software_versions
from sirf_diffusion.files.atomic import atomic_path
from sirf_diffusion.files.outputs import jsonable, write_json
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.reconstructors.methods import METHODS as SAMPLERS
from sirf_diffusion.reconstructors.methods import build_reconstructor

REPEATS = 3
_LOOP_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Size:
    """An image side, planes, views and posterior samples."""

    side: int = 128
    planes: int = 1
    views: int = 126
    samples: int = 1


#: One thing at a time grows.
SIZES = (
    Size(),
    Size(side=192),
    Size(side=256),
    Size(views=252),
    Size(samples=5),
    Size(planes=3),
    Size(planes=15),
    Size(planes=31),
)
METHODS = {"dds": {"axial_rdp": 0.0}, "hqs": {}, "lisch": {"num_em_iterations": 5.0}}

COLUMNS = (
    Column("what", lambda row: str(row["what"])),
    Column("side", number("side", ".0f")),
    Column("planes", number("planes", ".0f")),
    Column("views", number("views", ".0f")),
    Column("samples", number("samples", ".0f")),
    Column("seconds", number("seconds", ".4f")),
    Column("projector [%]", number("projector", ".1f", 100)),
    Column("network [%]", number("network", ".1f", 100)),
    Column("other [%]", number("other", ".1f", 100)),
)


def measure_speed(model: str, device: str = "cpu", sizes: tuple[Size, ...] = SIZES) -> list[dict[str, Any]]:
    """Seconds of one forward and back projection, of one denoising, and of a few steps of each sampling method.

    The best of three, after a first call that prepares; the network also in the ways that are meant to be faster. Of
    the methods, the shares of projector, network and everything else.
    """
    where = torch.device(device)
    score = ScoreModel.load(model, device=device)
    rows: list[dict[str, Any]] = []
    for size in sizes:
        problem = _problem(size, where)
        for what, measured in _measured(problem, score, size, where):
            rows.append({"what": what, **vars(size), **measured})
    return rows


def write_speed(rows: list[dict[str, Any]], folder: Path, command: str, device: str) -> None:
    """Write ``report.md`` and ``speed.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"command": command, "device": device, "threads": torch.get_num_threads(), "software": software_versions()}
    write_json(folder / "speed.json", {**about, "rows": rows})
    lines = ["# benchmarks run, suite speed", "", f"```\n{command}\n\n{jsonable(about)}\n```", ""]
    with atomic_path(folder / "report.md") as temporary:
        temporary.write_text("\n".join([*lines, markdown(as_text(COLUMNS, rows)), ""]), encoding="utf-8")


def network_variants(score: ScoreModel) -> dict[str, ScoreModel]:
    """The model as it is, in bfloat16, and on a GPU compiled too."""
    half = copy.copy(score)
    half.precision = "bfloat16"
    variants = {"network": score, "network, bfloat16": half}
    if score.device.type == "cuda":
        compiled = copy.copy(half)
        compiled.network = torch.compile(score.network)
        variants["network, bfloat16, compiled"] = compiled
    return variants


def _measured(
    objective: PoissonObjective, score: ScoreModel, size: Size, device: torch.device
) -> Iterator[tuple[str, dict[str, float]]]:
    image = objective.uniform_image().expand(size.samples, -1, -1, -1).contiguous()

    def best(function: Callable[[], Any]) -> float:
        return timed(function, REPEATS, device)[1]

    yield "forward projection", {"seconds": best(lambda: objective.value(image))}
    yield "forward and back projection", {"seconds": best(lambda: objective.gradient(image))}
    planes = "alternating" if size.planes >= 15 else "transverse"
    scale = float(image.max())
    for name, variant in network_variants(score).items():
        bound = variant.on(objective.geometry, scale, planes)
        latent = bound.to_latent(image.to(score.device))
        yield name, {"seconds": best(lambda b=bound, u=latent: b.predict(u, 0.5))}  # type: ignore[misc]
    for name, settings in METHODS.items():
        bound = score.on(objective.geometry, scale, planes)
        sampler = build_reconstructor(
            name,
            objective,
            SAMPLERS[name].with_settings({**settings, "num_steps": _LOOP_STEPS}, speed="accurate"),
            model=bound,
            intensity_scale=scale,
            num_samples=size.samples,
        )
        sampler.set_up()
        sampler.process()
        seconds = sampler.record["seconds"]
        total = seconds["total"]
        yield (
            f"{_LOOP_STEPS} steps of {name}",
            {
                "seconds": total,
                "projector": seconds["projector"] / total,
                "network": seconds["network"] / total,
                "other": seconds["other"] / total,
            },
        )


def _problem(size: Size, device: torch.device) -> PoissonObjective:
    """A cylinder in a scanner of the Siemens mMR's radius, two subsets."""
    projdata, side = mmr_of(size.planes, size.views, oblique=False), size.side
    spacing = projdata.scanner.ring_spacing / 2
    geometry = ImageGeometry((size.planes, side, side), (spacing, 256 / side, 256 / side))
    model = AcquisitionModel(Projector(geometry, projdata, device))
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, size.side) for _ in range(2)), indexing="ij")
    truth = (x.square() + y.square() < 0.6).float().expand(geometry.shape).contiguous().to(device)
    counts = model.forward(truth)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.poisson(counts.cpu() * (1e5 * size.planes / float(counts.sum())), generator=generator)
    return PoissonObjective(model, prompts.to(device), num_subsets=2)
