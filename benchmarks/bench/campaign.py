"""A benchmark from its start, or from where it was stopped, to its tables: tune, run, summarise."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench.cases import Case, CaseSpec, make_case
from benchmarks.bench.runs import RunResult, RunSpec, perform
from benchmarks.bench.search import Settings, best_of, search
from benchmarks.bench.store import Store, run_rows, write_results, write_table
from benchmarks.bench.suites import Suite
from benchmarks.bench.summary import Maps, summarise
from benchmarks.bench.table import Line, get_line
from sirf_diffusion.environment import software_versions
from sirf_diffusion.files.lock import LOCK, locked
from sirf_diffusion.files.outputs import jsonable, write_json
from sirf_diffusion.study.execution import Execution

logger = logging.getLogger(__name__)


@dataclass
class Outcome:
    """All that a benchmark found.

    Parameters
    ----------
    about
        Suite, versions, models, command.
    summary
        A row for each kind of case, count level, method and variant: means over subjects and realisations.
    results
        The runs.
    maps
        By ``case/method``: ``mean``, ``bias`` and ``sd`` over realisations, and the samples' ``spread``.
    searches
        By ``method/prompts``: what the search tried.
    unavailable
        Methods that could not be run, and why.
    """

    about: dict[str, Any]
    summary: list[dict[str, Any]] = field(default_factory=list)
    results: list[RunResult] = field(default_factory=list)
    cases: dict[str, Case] = field(default_factory=dict)
    maps: Maps = field(default_factory=dict)
    searches: dict[str, list[tuple[Settings, float]]] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)


@dataclass
class Campaign:
    """One suite, into one folder.

    Parameters
    ----------
    suite
        Sizes; its methods are those of the table unless ``methods`` are given.
    folder
        Where results are kept; one that holds part of the same benchmark is completed.
    models
        Names or files of score models by role.
    execution
        Where runs are made.
    device
        Of the reconstructions.
    command
        For the record.
    precision
        In which the networks compute, see `ScoreModel.load`.
    """

    suite: Suite
    folder: Path
    models: Mapping[str, str]
    execution: Execution = field(default_factory=Execution)
    device: str = "cpu"
    command: str = ""
    precision: str = "float32"

    def __post_init__(self) -> None:
        identity = {
            "suite": {k: v for k, v in vars(self.suite).items() if k not in ("about", "methods")},
            "device": self.device,
            "precision": self.precision,
            "version": software_versions()["sirf-diffusion"],
            **{f"{role} model": _hash_of(name) for role, name in self.models.items()},
        }
        self.store = Store(self.folder, identity)
        self._cases: dict[CaseSpec, Case] = {}

    def run(self) -> Outcome:
        """Make what is missing, and write ``results.csv``, ``summary.csv``, ``search.json`` and ``results.h5``."""
        with locked(self.folder / LOCK, ValueError):
            return self._run()

    def _run(self) -> Outcome:
        lines, unavailable = available_lines(self.suite, self.models)
        outcome = Outcome(self._about(), unavailable=unavailable)
        best = self._tuned(lines, outcome)
        specs = self._report_specs(lines, best)
        outcome.results = self._complete(specs)
        reported = {spec.case for spec in specs}
        outcome.cases = {spec.name: self._case(spec) for spec in sorted(reported, key=lambda s: s.name)}
        outcome.summary, outcome.maps = summarise(outcome.results, outcome.cases)
        outcome.about |= {"unavailable": unavailable, "searches": _searches(outcome.searches)}
        self._write(outcome)
        return outcome

    def _about(self) -> dict[str, Any]:
        suite = self.suite
        return jsonable(
            {
                "suite": suite.name,
                "about": suite.about,
                "sizes": {k: v for k, v in vars(suite).items() if k not in ("name", "about", "overrides")},
                "models": {role: {"name": name, "sha256": _hash_of(name)} for role, name in self.models.items()},
                "device": self.device,
                "precision": self.precision,
                "threads": torch.get_num_threads(),
                "command": self.command,
                "software": software_versions(),
            }
        )

    def _tuned(self, lines: Sequence[Line], outcome: Outcome) -> dict[tuple[str, float], Settings]:
        """The best settings by method and count level; all searches advance together, so that workers have work."""
        running: dict[tuple[str, float], Any] = {}
        asked: dict[tuple[str, float], Settings] = {}
        best: dict[tuple[str, float], Settings] = {}
        for line in lines:
            for prompts in self.suite.prompts:
                key = (line.name, prompts)
                if not line.search:
                    best[key] = {}
                    continue
                running[key] = search(line.search, self.suite.budget)
                asked[key] = next(running[key])
        while running:
            errors = self._errors(asked)
            for key in list(running):
                try:
                    asked[key] = running[key].send(errors[key])
                except StopIteration as end:
                    best[key] = self._chosen(key, end.value, outcome)
                    del running[key], asked[key]
        return best

    def _chosen(self, key: tuple[str, float], tried: list[tuple[Settings, float]], outcome: Outcome) -> Settings:
        outcome.searches[f"{key[0]}/{key[1]:g}"] = tried
        try:
            chosen = best_of(tried)
        except ValueError:
            logger.warning("%s at %g prompts: no candidate of the search gave an image", *key)
            return tried[0][0]
        for name, r in get_line(key[0]).search.items():
            if chosen[name] in (r.low, r.high):
                logger.warning("%s at %g prompts: %s = %g is the limit of its range", *key, name, chosen[name])
        return chosen

    def _errors(self, asked: Mapping[tuple[str, float], Settings]) -> dict[tuple[str, float], float]:
        """Mean NRMSE over the tuning cases of the candidates in question."""
        specs = {
            key: [
                self._spec(case, key[0], settings, 0, self.suite.tuning_samples)
                for case in self.suite.tuning_cases(key[1])
            ]
            for key, settings in asked.items()
        }
        done = {r.spec.name: r for r in self._complete([s for group in specs.values() for s in group], images=False)}
        return {
            key: sum(done[spec.name].measures["nrmse"] for spec in group) / len(group) for key, group in specs.items()
        }

    def _report_specs(self, lines: Sequence[Line], best: Mapping[tuple[str, float], Settings]) -> list[RunSpec]:
        suite = self.suite
        specs = []
        for case in suite.cases():
            for line in lines:
                settings = best[(line.name, case.prompts)]
                for realisation in range(1, suite.num_realisations + 1):
                    specs.append(self._spec(case, line.name, settings, realisation, suite.num_samples))
                for variant in suite.variants if line.search else ():
                    name, r = next(iter(line.search.items()))
                    varied = {**settings, name: r.moved(settings[name], variant)}
                    for realisation in range(1, suite.num_variant_realisations + 1):
                        spec = self._spec(case, line.name, varied, realisation, suite.num_samples)
                        specs.append(replace(spec, variant=variant))
        return specs

    def _spec(
        self, case: CaseSpec, line: str, settings: Mapping[str, Any], realisation: int, num_samples: int
    ) -> RunSpec:
        chosen = get_line(line)
        models = {role: name for role, name in self.models.items() if role in chosen.models}
        settings = {**self.suite.overrides.get(line, {}), **settings}
        return RunSpec(case, line, settings, realisation, num_samples if chosen.samples else 1, models)

    def _complete(self, specs: Sequence[RunSpec], images: bool = True) -> list[RunResult]:
        """Results of all runs, those that are missing made first; each is kept as soon as it is there."""
        found = {spec.name: self.store.get(spec) for spec in specs}
        missing = {spec.name: spec for spec in specs if found[spec.name] is None}
        jobs = [(spec, self._case(spec.case), self.device, images, self.precision) for spec in missing.values()]
        for number, result in enumerate(self.execution.results(_perform, jobs), start=1):
            self.store.put(result)
            found[result.spec.name] = result
            logger.info(
                "%d of %d: %s, NRMSE %.4f, %.1f s",
                number,
                len(jobs),
                result.spec.name,
                result.measures["nrmse"],
                result.measures.get("seconds", math.nan),
            )
        return [found[spec.name] for spec in specs]  # type: ignore[misc]

    def _case(self, spec: CaseSpec) -> Case:
        if spec not in self._cases:
            self._cases[spec] = make_case(spec)
        return self._cases[spec]

    def _write(self, outcome: Outcome) -> None:
        rows = run_rows(outcome.results)
        write_table(self.folder / "results.csv", rows)
        write_table(self.folder / "summary.csv", outcome.summary)
        write_json(self.folder / "search.json", outcome.about["searches"])
        write_results(
            self.folder / "results.h5", outcome.about, outcome.summary, rows, outcome.cases.values(), outcome.maps
        )


def available_lines(suite: Suite, models: Mapping[str, str]) -> tuple[list[Line], dict[str, str]]:
    """Lines of a suite that can be run, and why the others cannot."""
    lines, unavailable = [], {}
    without_mr = suite.given is not None and suite.given.mr is None
    for name in suite.methods:
        line = get_line(name)
        lacking = [role for role in line.models if role not in models]
        if lacking:
            unavailable[name] = f"needs a {lacking[0]} model, and none is bundled or given"
        elif suite.tuning_kind not in line.planes:
            unavailable[name] = f"not made for a {suite.tuning_kind}"
        elif line.needs_mr and without_mr:
            unavailable[name] = "needs an MR image (--mr)"
        else:
            lines.append(line)
    return lines, unavailable


def _perform(job: tuple[RunSpec, Case, str, bool, str]) -> RunResult:
    return perform(*job)


def _searches(searches: Mapping[str, list[tuple[Settings, float]]]) -> dict[str, Any]:
    return {key: [{**settings, "nrmse": error} for settings, error in tried] for key, tried in searches.items()}


_hashes: dict[str, str] = {}


def _hash_of(name: str) -> str:
    if name not in _hashes:
        from sirf_diffusion.models import ScoreModel

        _hashes[name] = ScoreModel.load(name).hash
    return _hashes[name]
