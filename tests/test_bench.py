"""The benchmark: complete, repeatable, able to go on where it was stopped, and with a report that stands alone."""

import json
import math
import re
import sys
from dataclasses import replace

import pytest
import torch
from bench_cases import TINY, tiny_case

from benchmarks.__main__ import main
from benchmarks.bench import LINES, SUITES, Campaign, campaign
from benchmarks.bench.builders import Draws, build
from benchmarks.bench.cases import TUNING_SUBJECTS, CaseSpec, make_case
from benchmarks.bench.measures import expected_ranks, image_measures, posterior_measures
from benchmarks.bench.mismatch import MISMATCHES, mismatched
from benchmarks.bench.page import write_report
from benchmarks.bench.problem import Problem
from benchmarks.bench.runs import RunSpec
from benchmarks.bench.search import best_of, search
from benchmarks.bench.speed import Size, measure_speed
from benchmarks.bench.store import read_results
from benchmarks.bench.table import Range
from benchmarks.bench.tables import changes
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.reconstructors import methods as defaults
from sirf_diffusion.reconstructors.diffusion.chain import balanced
from sirf_diffusion.reconstructors.methods import METHODS
from sirf_diffusion.study.execution import Execution

SPEC = CaseSpec("slice", 9000, 2e4)


@pytest.fixture(scope="module")
def model(small_model):
    return str(small_model)


@pytest.fixture(autouse=True)
def tiny_cases(monkeypatch):
    monkeypatch.setattr(campaign, "make_case", tiny_case)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model):
    """A whole benchmark, and the folder it is in."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(campaign, "make_case", tiny_case)
        suite = replace(TINY, methods=(*TINY.methods, "lisch-mr", "dds-mr"))
        outcome = Campaign(suite, folder, {"score": model}, command="python -m benchmarks run --suite tiny").run()
    write_report(outcome, folder)
    return outcome, folder


def test_every_method_is_tuned_within_the_same_budget_on_other_subjects(finished):
    outcome, folder = finished
    tried = {key: len(candidates) for key, candidates in outcome.searches.items()}
    assert tried == {"mlem/20000": 3, "map-quadratic/20000": 3, "hqs/20000": 3}
    assert all(r.spec.case.subject >= 9000 for r in outcome.results)
    names = [p.name for p in (folder / "runs").iterdir()]
    assert sum(name.startswith("slice-800") for name in names) == 9
    recorded = json.loads((folder / "search.json").read_text())
    for row in outcome.summary:
        if row["variant"] == 1:
            candidates = recorded[f"{row['method']}/20000"]
            best = min(candidates, key=lambda c: c["nrmse"])
            best.pop("nrmse")
            assert json.loads(row["settings"]).items() >= best.items()


@pytest.mark.parametrize(("name", "table"), [("lisch", "METHODS"), ("steerable", "ADAPTATIONS")])
def test_a_run_made_with_other_defaults_is_another_run(name, table, monkeypatch):
    spec = RunSpec(CaseSpec("slice", 9000, 2e4), name, {}, 1)
    before = spec.name
    choice = getattr(defaults, table)[name]
    changed = {**choice.defaults(), "smoothing": 3.0}
    monkeypatch.setattr(choice, "defaults", classmethod(lambda cls, *kinds: changed))
    assert spec.name != before


def test_the_summary_has_all_numbers(finished):
    outcome, _ = finished
    rows = {r["method"]: r for r in outcome.summary if r["variant"] == 1}
    assert set(rows) == {"mlem", "map-quadratic", "hqs"}
    for row in rows.values():
        assert row["runs"] == 2
        for name in ("nrmse", "psnr", "ssim", "bias", "sd", "crc hot, in the MR", "cnr hot, in the MR", "mean grey",
                     "mean white", "petric_whole", "petric_background", "petric_voi", "likelihood_z", "forward", "back",
                     "network_evaluations", "seconds", "peak_memory_mib"):  # fmt: skip
            assert math.isfinite(row[name]), name
        # In the head, where bias and SD are taken, the error is most of that of the whole image.
        assert 0.5 * row["nrmse"] < math.hypot(row["bias"], row["sd"]) < 1.1 * row["nrmse"]
    assert sum(rows["hqs"]["ranks"]) == 2 * int(tiny_case(SPEC).masks["head"].sum())
    assert rows["hqs"]["network_evaluations"] == 6
    assert outcome.unavailable.keys() == {"lisch-mr", "dds-mr"}


def test_the_files_hold_what_the_report_says(finished):
    outcome, folder = finished
    about, summary = read_results(folder / "results.h5")
    assert about["command"] == "python -m benchmarks run --suite tiny"
    assert about["software"]["torch"] == torch.__version__
    assert [r["nrmse"] for r in summary] == [r["nrmse"] for r in outcome.summary]
    assert (folder / "results.csv").read_text().count("\n") == 1 + len(outcome.results)
    assert not list(folder.rglob("*.part*"))
    text = (folder / "report.md").read_text()
    for row in (r for r in summary if r["variant"] == 1):
        assert f"| {row['title']} | {row['nrmse']:.3f}" in text
    assert "lisch-mr" in text


def test_the_page_needs_nothing_else(finished):
    text = (finished[1] / "report.html").read_text(encoding="utf-8")
    references = re.findall(r"\b(?:src|href|action|data)\s*=\s*[\"']?([^\"'\s>]+)", text)
    assert len(references) >= 5
    assert all(reference.startswith("data:image/png;base64,") for reference in references)
    assert "http" not in text
    assert "<script" not in text


class Interrupted(Execution):
    """Stops like a user after some runs."""

    def __init__(self, after):
        self.after, self.done = after, 0

    def results(self, function, jobs):
        for result in super().results(function, jobs):
            if self.done == self.after:
                raise KeyboardInterrupt
            self.done += 1
            yield result


def test_a_stopped_benchmark_goes_on_and_ends_alike(finished, tmp_path, model, caplog):
    whole, _ = finished
    suite = replace(TINY, methods=("mlem", "hqs"))
    first = Interrupted(9)
    with pytest.raises(KeyboardInterrupt):
        Campaign(suite, tmp_path, {"score": model}, first).run()
    assert len(list((tmp_path / "runs").iterdir())) == 9
    second = Interrupted(1000)
    outcome = Campaign(suite, tmp_path, {"score": model}, second).run()
    assert second.done == len(list((tmp_path / "runs").iterdir())) - 9
    expected = {(r["method"], r["variant"]): r["nrmse"] for r in whole.summary}
    assert all(r["nrmse"] == expected[r["method"], r["variant"]] for r in outcome.summary)
    damaged = next((tmp_path / "runs").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:1000])
    third = Interrupted(1)
    Campaign(suite, tmp_path, {"score": model}, third).run()
    assert f"{damaged} is damaged" in caplog.text
    third = Interrupted(0)
    Campaign(suite, tmp_path, {"score": model}, third).run()


def test_a_folder_keeps_one_benchmark(finished, tmp_path, model):
    _, folder = finished
    with pytest.raises(ValueError, match=r"another benchmark: suite differ"):
        Campaign(replace(TINY, budget=4), folder, {"score": model})
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"not empty and holds no bench.json"):
        Campaign(TINY, tmp_path, {"score": model})


def test_what_changed_since_an_earlier_run(finished):
    outcome, folder = finished
    old = [dict(r) for r in outcome.summary]
    assert changes(old, outcome.summary) == []
    old[0]["nrmse"] = 2 * old[0]["nrmse"]
    (found,) = changes(old, outcome.summary)
    assert (found["number"], found["change"]) == ("nrmse", pytest.approx(-50))
    write_report(outcome, folder, old)
    assert "-50.0" in (folder / "report.md").read_text()


SETTINGS = {
    "mlem": {"num_iterations": 3}, "osem": {}, "mlem-filter": {"num_iterations": 2}, "dip": {"num_iterations": 3},
    "map-rdp": {"num_iterations": 2}, "map-rdp-kappa": {"num_iterations": 2}, "map-score": {"num_iterations": 2},
    "map-quadratic": {"num_iterations": 2}, "map-patch": {"num_iterations": 2}, "map-bowsher": {"num_iterations": 2},
    "map-pls": {"num_iterations": 2}, "pnp-nlm": {"num_iterations": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_every_line_of_the_table_reconstructs(name, model, tmp_path_factory):
    from small_scan import write_conditional_model

    line = LINES[name]
    own = line.builder in METHODS and METHODS[line.builder].default_model
    models = {"score": ScoreModel.load(own or model)}
    if "conditional" in line.models:
        models["conditional"] = ScoreModel.load(write_conditional_model(tmp_path_factory.mktemp("m") / "c.safetensors"))
    problem = Problem(tiny_case(SPEC), 1, models, torch.device("cpu"))
    settings = {**line.settings, **{k: r.start for k, r in line.search.items()}, **SETTINGS.get(name, {"num_steps": 2})}
    if name == "lisch-50":
        settings["num_em_iterations"] = 3.0
    run = build(line.builder, problem, settings, Draws(2, 0))
    image = run.process().get_output()
    assert image.shape == (1, 24, 24)
    assert bool(torch.isfinite(image).all())
    assert float(image.min()) >= 0
    # Guidance by a random network in two steps gets nowhere; data steps find the activity all the same.
    if name not in ("naive", "dps"):
        assert float(image.sum()) == pytest.approx(float(problem.truth.sum()), rel=0.6)


def test_perfect_images_get_perfect_numbers():
    case = tiny_case(SPEC)
    found = image_measures(case.truth, case)
    assert found["nrmse"] == 0
    assert found["ssim"] == pytest.approx(1)
    assert found["crc hot, in the MR"] == pytest.approx(1)
    for name in ("mean grey", "mean white", "petric_whole", "petric_background", "petric_voi"):
        assert found[name] == pytest.approx(0, abs=1e-9)
    doubled = image_measures(2 * case.truth, case)
    assert doubled["mean grey"] == pytest.approx(1)
    assert doubled["crc hot, in the MR"] == pytest.approx(1)


@pytest.mark.parametrize("noises", ["independent", "balanced"])
def test_samples_of_the_truths_own_distribution_are_calibrated(generator, noises):
    case = tiny_case(SPEC)
    centre = case.truth + torch.randn(case.truth.shape, generator=generator)
    noise = torch.randn((5, *case.truth.shape), generator=generator)
    samples = centre + (balanced(noise) if noises == "balanced" else noise)
    found, ranks = posterior_measures(samples, case, noises)
    assert found["coverage"] == pytest.approx(0.95, abs=0.03)
    shares = (ranks / ranks.sum()).tolist()
    assert shares == pytest.approx(expected_ranks(5, noises), abs=0.05)
    narrow, _ = posterior_measures(samples.mean(0) + 0.2 * (samples - samples.mean(0)), case, noises)
    assert narrow["coverage"] < 0.6
    assert narrow["spread"] == pytest.approx(0.2 * found["spread"], rel=1e-4)


def test_a_suite_can_be_made_smaller_not_larger():
    suite = SUITES["2d"].smaller(2, 3)
    assert (suite.subjects, len(suite.tuning_subjects)) == (SUITES["2d"].subjects[:2], 2)
    assert (suite.num_realisations, suite.num_variant_realisations) == (3, 3)
    assert suite.smaller() == suite
    for wrong in ((3, None), (0, None), (None, 4)):
        with pytest.raises(ValueError, match="asked for"):
            suite.smaller(*wrong)


def test_the_search_keeps_to_its_budget_and_finds_a_minimum_in_two_parameters():
    ranges = {"beta": Range(1.0, 1e-3, 1e3), "count": Range(3, 1, 50, 1.5, whole=True)}
    run, asked = search(ranges, 40), []
    candidate = next(run)
    try:
        while True:
            asked.append(candidate)
            error = abs(math.log(candidate["beta"] / 30)) + abs(math.log(candidate["count"] / 11))
            candidate = run.send(error if candidate["beta"] < 500 else math.inf)
    except StopIteration as end:
        tried = end.value
    assert len(tried) == len(asked) <= 40
    best = best_of(tried)
    assert 20 < best["beta"] < 45
    assert best["count"] in (10, 11, 12)
    assert all(isinstance(c["count"], int) for c in asked)
    assert len({tuple(c.items()) for c in asked}) == len(asked)


def test_the_suites_report_on_held_out_subjects_and_tune_on_others():
    for suite in SUITES.values():
        assert all(case.subject >= 9000 for case in suite.cases())
        assert all(s in TUNING_SUBJECTS for s in suite.tuning_subjects)
        assert set(suite.methods) <= set(LINES)
    for name in ("2d", "3d", "ood"):
        assert SUITES[name].num_realisations >= 10
        assert SUITES[name].num_samples >= 5
    with pytest.raises(ValueError, match="trained on"):
        make_case(CaseSpec("slice", 17, 1e5))


def test_the_speed_suite_measures_each_layer(model):
    rows = measure_speed(model, sizes=(Size(side=32, views=12), Size(side=32, views=12, planes=3, samples=2)))
    names = {r["what"] for r in rows}
    assert {"forward projection", "forward and back projection", "3 steps of dds"} <= names
    assert {"network", "network, bfloat16"} <= names
    for row in rows:
        assert row["seconds"] > 0
        if "steps" in row["what"]:
            assert row["projector"] + row["network"] + row["other"] == pytest.approx(1, abs=0.02)


def test_the_command_runs_a_suite_and_compares(tmp_path, monkeypatch, capsys, model):
    suite = replace(TINY, name="quick", methods=("mlem", "map-quadratic"), variants=())
    monkeypatch.setitem(SUITES, "quick", suite)
    command = ["run", "--suite", "quick", "--out", str(tmp_path / "a"), "--model", model, "--methods", "mlem"]
    assert main(command) == 0
    assert "| MLEM, best iteration |" in capsys.readouterr().out
    assert main([*command, "--compare", str(tmp_path / "a" / "results.h5")]) == 0
    assert "No number differs" in (tmp_path / "a" / "report.md").read_text()
    assert main([*command[:-1], "magic"]) == 2
    assert "unknown method 'magic'" in capsys.readouterr().err
    (tmp_path / "old.h5").write_bytes(b"no")
    assert main([*command, "--compare", str(tmp_path / "old.h5")]) == 2
    assert "not a results.h5" in capsys.readouterr().err


def test_a_method_that_fails_is_reported_and_the_others_go_on(tmp_path, monkeypatch, capsys, model):
    suite = replace(TINY, name="quick", methods=("mlem", "hqs"), variants=(), overrides={"hqs": {"num_steps": 0}})
    monkeypatch.setitem(SUITES, "quick", suite)
    assert main(["run", "--suite", "quick", "--out", str(tmp_path / "a"), "--model", model]) == 1
    assert "num_steps must be an integer" in capsys.readouterr().err
    assert "num_steps must be an integer" in (tmp_path / "a" / "report.md").read_text()
    rows = {row["method"]: row for row in read_results(tmp_path / "a" / "results.h5")[1]}
    assert (rows["hqs"]["failures"], rows["mlem"]["failures"]) == (2, 0)


def test_what_the_report_needs_is_asked_for_before_the_first_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main(["run", "--out", str(tmp_path / "a")]) == 2
    assert "sirf-diffusion[bench]" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_all_methods_are_listed(capsys):
    assert main(["run", "--list-methods"]) == 0
    listed = capsys.readouterr().out
    assert all(f"{name} " in listed for name in LINES)


#: By mismatch, what it changes: the least and the most that the expected counts differ from what the model makes of the
#: truth, relative to their norm.
DIFFERENCES = {
    "wrong-attenuation": (0.01, 0.1), "moved-attenuation": (0.004, 0.1), "wrong-scatter": (0.01, 0.1),
    "wrong-background": (0.02, 0.2), "wrong-psf": (0.001, 0.1), "wrong-scale": (0.0, 1e-6),
    "missing-views": (0.0, 1e-6), "dead-block": (0.1, 0.6), "stir-data": (0.004, 0.15),
}  # fmt: skip


@pytest.mark.parametrize("kind", [
    pytest.param(kind, marks=pytest.mark.requires_stir) if kind == "stir-data" else kind for kind in MISMATCHES
])  # fmt: skip
def test_a_mismatch_changes_what_is_counted_or_what_is_told_and_nothing_else(kind):
    right = tiny_case(SPEC)
    case = mismatched(kind, right, 0.096 * right.masks["head"].float())
    assert torch.equal(case.truth, right.truth)
    model = Problem(right, 0, {}, torch.device("cpu")).objective().model
    told = case.multiplicative * (model.projector.forward(case.truth) + case.additive)
    expected = told if case.expected is None else case.expected
    low, high = DIFFERENCES[kind]
    assert low <= float((expected - told).norm() / told.norm()) <= high
    assert case.scale_error == (1.2 if kind == "wrong-scale" else 1.0)
    lost = float((case.multiplicative == 0).float().mean() - (right.multiplicative == 0).float().mean())
    assert lost == pytest.approx(0.3 if kind == "missing-views" else 0.0, abs=0.02)


@pytest.mark.parametrize("kind", ["slice", "high-resolution"])
def test_real_cases_have_tissues_and_lesions_and_the_counts_asked_for(kind):
    pytest.importorskip("nilearn")
    case = make_case(CaseSpec(kind, 9000, 1e5))
    problem = Problem(case, 1, {}, torch.device("cpu"))
    assert float(problem.objective().prompts.sum()) == pytest.approx(1e5, rel=0.02)
    assert float(case.truth[case.masks["grey"]].mean()) > 1.2 * float(case.truth[case.masks["white"]].mean())
    assert all(int(case.masks[name].sum()) > 50 for name in ("head", "grey", "white"))
    if kind == "slice":
        assert len(case.lesions) == 4
    for lesion in case.lesions:
        inside, around = (float(case.truth[case.masks[name]].mean()) for name in (lesion, f"around {lesion}"))
        assert (inside > 1.2 * around) if lesion.startswith("hot") else (inside < 0.8 * around)
        assert not bool((case.masks[lesion] & case.masks[f"around {lesion}"]).any())
    mean = problem.objective().model.forward(case.truth)
    assert torch.equal(case.counts(mean, 1), case.counts(mean, 1))
    assert not torch.equal(case.counts(mean, 1), case.counts(mean, 2))
