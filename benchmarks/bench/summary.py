"""From runs to a row for each method: means over subjects and realisations, and maps over realisations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench.cases import Case
from benchmarks.bench.measures import ensemble_measures, mean_measures
from benchmarks.bench.runs import RunResult
from benchmarks.bench.table import get_line
from sirf_diffusion.files.outputs import jsonable

Maps = dict[str, dict[str, Tensor]]


def summarise(results: Iterable[RunResult], cases: Mapping[str, Case]) -> tuple[list[dict[str, Any]], Maps]:
    """Means over subjects and realisations, and maps of bias and standard deviation over realisations."""
    groups: dict[tuple[str, float, str, float], list[RunResult]] = {}
    for result in results:
        spec = result.spec
        groups.setdefault((spec.case.kind, spec.case.prompts, spec.line, spec.variant), []).append(result)
    rows, maps = [], {}
    for (kind, prompts, line, variant), members in groups.items():
        good = [r for r in members if not r.failure]
        measures = mean_measures([r.measures for r in good])
        by_case: dict[str, list[RunResult]] = {}
        for r in good:
            by_case.setdefault(r.spec.case.name, []).append(r)
        ensembles = []
        for name, runs in by_case.items():
            found = _maps(runs, cases[name])
            if len(runs) > 1:
                ensembles.append(ensemble_measures(torch.stack([r.image for r in runs]), cases[name]))
            if variant == 1:
                maps[f"{name}/{line}"] = found
        ranks = [r.ranks for r in good if r.ranks]
        rows.append(
            {
                "case": kind,
                "prompts": prompts,
                "method": line,
                "title": get_line(line).title,
                "variant": variant,
                "runs": len(members),
                "failures": len(members) - len(good),
                "settings": json.dumps(jsonable(members[0].spec.settings)),
                **measures,
                **mean_measures(ensembles),
                "nrmse_sd": _spread([r.measures["nrmse"] for r in good]),
                "ranks": [sum(column) for column in zip(*ranks, strict=True)] if ranks else None,
            }
        )
    return rows, maps


def _maps(runs: Sequence[RunResult], case: Case) -> dict[str, Tensor]:
    images = torch.stack([r.image for r in runs])  # type: ignore[misc]
    found = {"first": images[0], "mean": images.mean(0), "bias": images.mean(0) - case.truth}
    if len(runs) > 1:
        found["sd"] = images.std(0)
    if runs[0].sd is not None:
        found["spread"] = runs[0].sd
    return found


def _spread(values: Sequence[float]) -> float | None:
    return float(torch.tensor(values, dtype=torch.float64).std()) if len(values) > 1 else None
