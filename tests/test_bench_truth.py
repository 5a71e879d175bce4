"""The user's own truth in a benchmark, and the NEMA image-quality phantom."""

import csv
import json
import math

import nibabel
import numpy as np
import pytest
import torch
from bench_cases import tiny_case

from benchmarks.__main__ import main
from benchmarks.bench import campaign
from benchmarks.bench.cases import CaseSpec, make_case
from benchmarks.bench.measures import image_measures
from benchmarks.bench.truth import Given, nema_iq
from sirf_diffusion.geometry.images import ImageGeometry


def test_the_phantom_has_the_volumes_and_activities_of_its_description():
    geometry = ImageGeometry((21, 128, 128), (2.0, 2.5, 2.5))
    truth, mu, masks, rois = nema_iq(geometry)
    voxel = math.prod(geometry.voxel_size)
    for diameter in (37, 28, 22, 17):
        volume = float(masks[f"hot, {diameter} mm"].sum()) * voxel
        assert volume == pytest.approx(math.pi / 6 * diameter**3, rel=0.12)
    assert truth[masks["hot, 37 mm"]].median() == 4
    assert truth[masks["white"]].unique().tolist() == [1.0]
    assert truth[masks["lung insert"]].max() <= 1
    area = float(masks["head"][10].sum()) * 6.25
    assert area == pytest.approx(math.pi / 2 * 147**2 + math.pi / 2 * 77**2 + 140 * 77, rel=0.01)
    assert mu.max() == pytest.approx(0.096)
    assert 8 <= int(rois["37 mm"].max()) <= 12
    assert bool(masks["white"][rois["37 mm"] > 0].all())
    assert set((rois["10 mm"] > 0).any(-1).any(-1).nonzero().flatten().tolist()) == {0, 5, 10, 15, 20}


def test_recovery_and_variability_of_the_truth_itself():
    case = make_case(CaseSpec("nema-iq", 9000, 2e5, Given.of("nema-iq")))
    found = image_measures(case.truth, case)
    assert found["crc hot, 37 mm"] == pytest.approx(1)
    assert found["crc lung insert"] == pytest.approx(1)
    assert found["variability 37 mm"] == pytest.approx(0, abs=1e-6)
    noisy = image_measures(case.truth + torch.rand(case.truth.shape, generator=torch.Generator().manual_seed(0)), case)
    assert noisy["variability 10 mm"] > 2 * noisy["variability 37 mm"] > 0


def test_an_image_anywhere_in_space_becomes_the_truth_in_the_middle(tmp_path):
    values = np.zeros((70, 80, 1), np.float32)
    values[20:50, 25:60] = 5
    values[30:34, 40:44] = 15
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = 400, -300, 77
    nibabel.Nifti1Image(values, affine).to_filename(tmp_path / "my truth.nii.gz")
    given = Given.of(str(tmp_path / "my truth.nii.gz"))
    assert given.kind == "my-truth"
    case = make_case(CaseSpec(given.kind, 9000, 2e5, given))
    assert case.geometry.shape == (1, 128, 128)
    assert float(case.truth.sum()) == pytest.approx(float(values.sum()), rel=0.01)
    rows, columns = (case.truth[0] > 0).nonzero(as_tuple=True)
    assert int(rows.max() - rows.min()) + 1 in (35, 36)
    assert abs(float(columns.double().mean()) - 64) < 6
    mean = case.multiplicative * 0 + case.additive * case.multiplicative
    assert float(mean.sum()) == pytest.approx(0.3 * 2e5, rel=0.02)
    nibabel.Nifti1Image(values, np.diag([4.0, 4.0, 3.0, 1.0])).to_filename(tmp_path / "my truth.nii.gz")
    assert Given.of(str(tmp_path / "my truth.nii.gz")).contents != given.contents
    values[0, 0] = 1
    nibabel.Nifti1Image(values, affine).to_filename(tmp_path / "my truth.nii.gz")
    assert Given.of(str(tmp_path / "my truth.nii.gz")).contents != given.contents


def test_the_command_measures_it_and_says_what_cannot_be_run(small_model, tmp_path, monkeypatch, capsys):
    """Tuned on another kind of case, here a small one."""
    monkeypatch.setattr(campaign, "make_case", lambda spec: (make_case if spec.given else tiny_case)(spec))
    words = ["run", "--truth", "nema-iq", "--counts", "2e5", "--methods", "osem", "map-bowsher", "--subjects", "1"]
    words += ["--realisations", "1", "--model", str(small_model), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "not run: map-bowsher: needs an MR image (--mr)" in said
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["variant"] in ("1", "1.0")]
    assert {row["case"] for row in rows} == {"nema-iq"} or "nema-iq" in json.dumps(rows)
    assert 0.3 < float(rows[0]["crc hot, 37 mm"]) < 1.3
    assert float(rows[0]["variability 10 mm"]) > 0


@pytest.mark.parametrize(("words", "said"), [
    (["--mu", "mu.hv"], "belong to --truth"), (["--truth", "nema-iq", "--mu", "mu.hv"], "has its own attenuation"),
    (["--truth", "absent.nii"], "no such file"),
    (["--suite", "speed", "--truth", "nema-iq", "--counts", "2e5"], "--truth, --mu, --mr, --template, --counts"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(tmp_path, capsys, words, said):
    assert main(["run", "--out", str(tmp_path / "out"), *words]) == 2
    assert said in capsys.readouterr().err
