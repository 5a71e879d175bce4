"""Questions that have an answer: each prints a table.

::

    python -m benchmarks.predictions                    # all, with `brain`, about a quarter of an hour of one core
    python -m benchmarks.predictions crossing samples

``crossing``     at which MLEM iteration the truth's likelihood is reached
``samples``      what averaging more samples of LiSch gains
``eta``          fresh noise at every level (1), or none after the first (0)
``scale``        what a wrong intensity scale costs
``attenuation``  whether wrong attenuation shows in the likelihood

Ordinary slices of three reported subjects, one noise realisation each, all settings the defaults of the methods.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import torch

from benchmarks.bench.builders import Draws, build
from benchmarks.bench.cases import Case, CaseSpec, make_case
from benchmarks.bench.measures import likelihood_measures, posterior_measures
from benchmarks.bench.problem import Problem
from benchmarks.bench.tables import print_head, print_row
from sirf_diffusion.engines.em import em_update
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.study.metrics import nrmse

SUBJECTS, REALISATION, NUM_SAMPLES = (9002, 9003, 9004), 1, 5
_MOST_ITERATIONS = 200


def problems(model: ScoreModel, prompts: float, kind: str = "slice") -> list[Problem]:
    """One of each subject."""
    return [Problem(make_case(CaseSpec(kind, s, prompts)), REALISATION, {"score": model}, torch.device("cpu"))
            for s in SUBJECTS]  # fmt: skip


def runs(
    model: ScoreModel, prompts: float, method: str = "lisch", number: int = NUM_SAMPLES, kind: str = "slice",
    scale_error: float = 1.0, **settings: float,
) -> dict[str, float]:  # fmt: skip
    """Means over the subjects: NRMSE, coverage of the intervals, likelihood."""
    found: dict[str, float] = {}
    for given in problems(model, prompts, kind):
        case: Case = replace(given.case, scale_error=scale_error)
        problem = replace(given, case=case)
        made = build(method, problem, {"speed": "accurate", **settings}, Draws(number, REALISATION)).process()
        measures = {"nrmse": nrmse(made.get_output(), case.truth)}
        measures |= likelihood_measures(problem.objective(), made.get_output(), case.truth)
        if number > 1:
            measures |= posterior_measures(made.get_samples(), case, made.noise)[0]
        for name, value in measures.items():
            found[name] = found.get(name, 0.0) + value / len(SUBJECTS)
    return found


def crossing(model: ScoreModel) -> None:
    """First MLEM iteration whose log-likelihood is that of the truth, or that expected of it."""
    names = "reaches the truth's", "reaches what is expected of it", "NRMSE there", "least NRMSE, at iteration"
    print_head("prompts", *names)
    for prompts in (5e4, 2e5, 1e6, 2e6):
        found = []
        for problem in problems(model, prompts):
            objective, truth = problem.objective(), problem.truth
            targets = [float(objective.value(truth)), objective.expected_log_likelihood(truth)[0]]
            x, values, errors = objective.uniform_image(), [], []
            for _ in range(_MOST_ITERATIONS):
                x = em_update(objective, x)
                values.append(float(objective.value(x)))
                errors.append(nrmse(x, truth))
                if values[-1] > max(targets) and errors[-1] > 1.1 * min(errors):
                    break
            first = [next(i for i, value in enumerate(values, 1) if value >= target) for target in targets]
            best = min(errors)
            found.append((first, errors[first[0] - 1], f"{best:.3f} at {errors.index(best) + 1}"))
        iterations = [", ".join(str(f[0][k]) for f in found) for k in (0, 1)]
        errors = ", ".join(f"{f[1]:.3f}" for f in found), ", ".join(f[2] for f in found)
        print_row(f"{prompts:g}", *iterations, *errors)


def samples(model: ScoreModel) -> None:
    """Error of the mean of so many samples."""
    numbers = (1, 2, 5, 10, 20)
    print_head("prompts", *(f"{n} samples" if n > 1 else "1 sample" for n in numbers))
    print_row("2e5", *(runs(model, 2e5, number=n)["nrmse"] for n in numbers))


def eta(model: ScoreModel) -> None:
    """Error and calibration with and without fresh noise."""
    print_head("prompts", "method", "NRMSE, eta 0", "eta 1", "a sample's, eta 0", "eta 1", "coverage, eta 0", "eta 1")
    for prompts in (5e4, 1e6):
        for method in ("lisch", "hqs"):
            found = [runs(model, prompts, method, eta=value) for value in (0.0, 1.0)]
            numbers = [f[name] for name in ("nrmse", "samples_nrmse", "coverage") for f in found]
            print_row(f"{prompts:g}", method, *numbers)


def scale(model: ScoreModel) -> None:
    """Error of a model that is bound to a wrong intensity scale."""
    factors = (1 / 1.2, 1 / 1.05, 1.0, 1.05, 1.2)
    print_head("prompts", *(f"scale x {factor:.2f}" for factor in factors))
    print_row("2e5", *(runs(model, 2e5, scale_error=factor)["nrmse"] for factor in factors))


def attenuation(model: ScoreModel) -> None:
    """Log-likelihood, in standard deviations from what is expected, of the truth and of what is reconstructed."""
    print_head("attenuation", "truth", "LiSch", "NRMSE")
    for kind in ("slice", "wrong-attenuation", "moved-attenuation"):
        truths = [likelihood_measures(p.objective(), p.truth, p.truth) for p in problems(model, 2e5, kind)]
        found = runs(model, 2e5, kind=kind)
        print_row(kind, sum(t["likelihood_z"] for t in truths) / len(truths), found["likelihood_z"], found["nrmse"])


QUESTIONS = {question.__name__: question for question in (crossing, samples, eta, scale, attenuation)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", default="all", choices=["all", *QUESTIONS], metavar="QUESTION")
    parser.add_argument("--model", default="brain", metavar="NAME|FILE", help="default: %(default)s")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = ScoreModel.load(options.model, precision="auto")
    for name in QUESTIONS if "all" in options.questions else options.questions:
        QUESTIONS[name](model)


if __name__ == "__main__":
    main()
