"""One run: a case, a method, its parameters and a realisation; made anywhere, the same everywhere."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench.builders import Draws, build
from benchmarks.bench.cases import Case, CaseSpec
from benchmarks.bench.measures import image_measures, likelihood_measures, posterior_measures
from benchmarks.bench.problem import Problem
from benchmarks.bench.table import get_line
from benchmarks.bench.timing import peak_memory, reset_peak_memory
from sirf_diffusion.files.outputs import jsonable
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.reconstructors.diffusion.chain import posterior_sd
from sirf_diffusion.study.fitness import IN, check_distribution

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSpec:
    """What a run depends on.

    Parameters
    ----------
    case
        The scan.
    line
        Name of a line of the table.
    settings
        Tuned settings, besides those of the line.
    realisation
        Which noise; the seed of the samples too.
    num_samples
        Posterior samples, of methods that draw some.
    models
        Files or names of the score models by role.
    variant
        Of the tuned value of the first parameter, for the curve of bias against standard deviation: 1 is tuned.
    """

    case: CaseSpec
    line: str
    settings: Mapping[str, Any]
    realisation: int
    num_samples: int = 1
    models: Mapping[str, str] = field(default_factory=dict)
    variant: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return jsonable({**vars(self), "case": asdict(self.case)})

    @property
    def name(self) -> str:
        """Name of its file: what it is, and a hash of all that it depends on."""
        depends = {**self.to_dict(), "fixed": jsonable(get_line(self.line).fixed)}
        digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]
        return f"{self.case.name}-{self.line}-r{self.realisation}-{digest}"


@dataclass
class RunResult:
    """What came out: numbers, the image, and of a sampling method the samples' SD and the histogram of ranks."""

    spec: RunSpec
    measures: dict[str, float]
    image: Tensor | None = None
    sd: Tensor | None = None
    ranks: list[int] | None = None
    failure: str = ""
    where: str = ""


def perform(
    spec: RunSpec, case: Case, device: str = "cpu", keep_images: bool = True, precision: str = "float32"
) -> RunResult:
    """Reconstruct and measure. A method that diverges, or that refuses its settings, gives a result that says so."""
    line, torch_device = get_line(spec.line), torch.device(device)
    models = {role: _model(name, device, precision) for role, name in spec.models.items() if role in line.models}
    problem = Problem(case, spec.realisation, models, torch_device)
    settings = {**line.settings, **spec.settings}
    if line.oracle:
        settings["target"] = float(problem.objective().value(problem.truth))
    draws = Draws(spec.num_samples if line.samples else 1, spec.realisation)
    where = f"{platform.node()} {os.getpid()}"
    reset_peak_memory(torch_device)
    try:
        reconstructor = build(line.builder, problem, settings, draws)
        reconstructor.process()
        image = reconstructor.get_output().detach()
        if not bool(torch.isfinite(image).all()):
            raise FloatingPointError("the image is not finite")
    except (FloatingPointError, ValueError) as error:
        logger.info("%s failed: %s", spec.name, error)
        return RunResult(spec, {"nrmse": math.inf}, failure=f"{type(error).__name__}: {error}", where=where)
    measures = _cost(reconstructor.record, problem)
    measures["peak_memory_mib"] = peak_memory(torch_device) / 2**20
    measures |= likelihood_measures(problem.objective(), image, problem.truth)
    measures |= image_measures(image.cpu(), case)
    result = RunResult(spec, measures, where=where)
    if line.samples and draws.num_samples > 1:
        samples = reconstructor.get_samples().detach().cpu()  # type: ignore[attr-defined]
        noises = reconstructor.noise  # type: ignore[attr-defined]
        found, ranks = posterior_measures(samples, case, noises)
        result.measures |= found
        if "score" in line.models:
            fit = {"objective": problem.objective(), "log_likelihood": measures["log_likelihood"]}
            check = check_distribution(problem.model(), image, samples=samples.to(torch_device), **fit)
            result.measures["warned"] = float(check.verdict != IN)
        result.ranks, result.sd = ranks.tolist(), posterior_sd(samples, noises)
    result.image = image.cpu()
    if not keep_images:
        result.image = result.sd = None
    return result


def _cost(record: dict[str, Any], problem: Problem) -> dict[str, float]:
    """Projections, network evaluations and seconds, the early image included where it was used."""
    projections, seconds = record["projections"], record["seconds"]
    early = problem.__dict__.get("early")
    extra = early.record if early is not None else {"projections": {"forward": 0.0, "back": 0.0}, "seconds": {}}
    return {
        "forward": projections["forward"] + extra["projections"]["forward"],
        "back": projections["back"] + extra["projections"]["back"],
        "network_evaluations": float(record["network_evaluations"]),
        "seconds": seconds["total"] + extra["seconds"].get("total", 0.0),
        "seconds_projector": seconds["projector"] + extra["seconds"].get("projector", 0.0),
        "seconds_network": seconds["network"],
    }


@lru_cache(maxsize=2)
def _model(name: str, device: str, precision: str) -> ScoreModel:
    return ScoreModel.load(name, device, precision)
