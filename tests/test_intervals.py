"""Intervals that are right: the factors of a model's table, how they are found, and what a run does with them."""

import csv
import json

import pytest
import torch

from benchmarks.intervals import factors_of, level
from sirf_diffusion.cli import main
from sirf_diffusion.files.interfile import read_image, write_image
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.models.intervals import Factors, IntervalTable, NotCalibrated, comparable, table_path, write_table
from sirf_diffusion.models.storage import BUNDLED
from sirf_diffusion.reconstructors.methods import get_method
from sirf_diffusion.reconstructors.settings import SPEEDS
from sirf_diffusion.study import intervals
from sirf_diffusion.study.execution import Execution

pytestmark = pytest.mark.usefixtures("undrawn")
VALUES = {"num_steps": 4, "noise": "independent"}
ENTRY = {"method": "lisch", "kind": "slices", "num_samples": 5, "voxel_size_mm": (4.0, 2.0, 2.0), "values": VALUES,
         "trues_per_plane": (1e4, 1e5, 1e6), "voxels": (2.0, 3.0, 5.0), "vois": (4.0, 4.0, 4.0),
         "cases": ("slice:800",)}  # fmt: skip


def run_of(errors, sd, subject):
    ratio = (errors / sd).abs().sort().values.tolist()
    return {"method": "lisch", "kind": "slices", "num_samples": 5, "voxel_size_mm": [4, 2, 2], "values": VALUES,
            "prompts": 2e5, "counts": 1.4e5, "voxels": ratio, "vois": {"square 5": ratio, "tissue": [1e3]},
            "case": f"slice:{subject}"}  # fmt: skip


@pytest.mark.parametrize("wrong", [0.3, 1.0, 2.0])
def test_factors_make_the_coverage_right_whatever_the_standard_deviation_is_worth(wrong):
    generator = torch.Generator().manual_seed(0)
    errors = torch.randn(3, 20_000, generator=generator)
    (entry,) = factors_of([run_of(errors[k], wrong * torch.ones(20_000), 800 + k) for k in (0, 1)])
    voxels, vois = entry.at(1.4e5)
    assert voxels == pytest.approx(1.96 / wrong, rel=0.02)
    assert vois == pytest.approx(voxels, rel=1e-3)  # whole tissues have no part
    assert float((errors[2].abs() <= voxels * wrong).float().mean()) == pytest.approx(0.95, abs=0.006)
    assert factors_of([run_of(errors[0], torch.ones(20_000), 800)]) == []  # one image is no evidence


def test_groups_have_the_same_weight():
    assert level([[1.0] * 1000, [2.0, 3.0]], 0.5) == 1
    assert level([[1.0] * 1000, [2.0, 3.0]], 0.75) == 2
    assert level([[1.0] * 1000, [2.0, 3.0]], 0.76) == 3


@pytest.mark.parametrize(
    ("trues", "voxels"), [(1e4, 2), (10**4.5, 2.5), (10**5.5, 4), (1.4e6, 5), (7e3, 2), (6e3, None), (1.6e6, None)]
)
def test_factors_between_count_levels_and_beyond_them(trues, voxels):
    if voxels is None:
        with pytest.raises(NotCalibrated, match=r"measured from 1e\+04 to 1e\+06 trues"):
            Factors(**ENTRY).at(trues)
    else:
        assert Factors(**ENTRY).at(trues) == pytest.approx((voxels, 4))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"method": "dds"}, "nothing was measured of dds in slices"),
        ({"kind": "volumes"}, "nothing was measured of lisch in volumes"),
        ({"num_samples": 8}, "measured with 5 samples, and there are 8"),
        ({"voxel_size": (4.0, 2.5, 2.0)}, "voxels of 4 x 2 x 2 mm, and these are 4 x 2.5 x 2 mm"),
        ({"values": VALUES | {"num_steps": 5}}, "other settings: num_steps differ"),
        ({"voxel_size": (2.0, 2.1, 2.0)}, None),  # a slice may be as thick as it likes
    ],
)
def test_what_was_not_measured_has_no_factor(change, why):
    table = IntervalTable(entries=(Factors(**ENTRY),))
    run = {"method": "lisch", "kind": "slices", "num_samples": 5, "voxel_size": (4.0, 2.0, 2.0), "values": VALUES}
    if why is None:
        assert table.factors(**run | change) == Factors(**ENTRY)
        return
    with pytest.raises(NotCalibrated, match=why):
        table.factors(**run | change)


class Model:
    """What a table asks of a model."""

    hash = "5" * 64

    def __init__(self, folder):
        self.path = folder / "own.safetensors"


def test_a_table_is_read_as_it_was_written_and_belongs_to_one_model(tmp_path):
    model = Model(tmp_path)
    assert IntervalTable.of(model).entries == () == IntervalTable.of(None).entries
    assert write_table(model, [Factors(**ENTRY)]) == tmp_path / "own.intervals.json"
    table = IntervalTable.of(model)
    assert table.entries == (Factors(**ENTRY),)
    assert len(table.sha256) == 64
    write_table(model, [Factors(**ENTRY | {"method": "dds"})])
    write_table(model, [Factors(**ENTRY | {"vois": (5, 5, 5)})])
    assert [(entry.method, entry.vois[0]) for entry in IntervalTable.of(model).entries] == [("dds", 4), ("lisch", 5)]
    model.hash = "6" * 64
    with pytest.raises(NotCalibrated, match=r"own.intervals.json is of another model"):
        IntervalTable.of(model).factors("lisch", "slices", 5, (4, 2, 2), VALUES)


@pytest.mark.parametrize(
    "change",
    [
        {"entries": {}}, {"entries": [7]}, {"entries": [ENTRY | {"more": 1}]}, {"entries": [ENTRY] * 201},
        {"probability": 0.9}, {"more": 1}, {"schema_version": 2}, {"entries": [ENTRY | {"voxels": [2.0, 3.0]}]},
        *({"entries": [ENTRY | {"voxels": [2.0, 3.0, bad]}]} for bad in (0, -1, 1e4, "3", None, True, [3.0])),
        {"entries": [ENTRY | {"trues_per_plane": [1e5, 1e4, 1e6]}]}, {"entries": [ENTRY | {"vois": []}]},
        {"entries": [ENTRY | {"voxel_size_mm": [0, 2, 2]}]}, {"entries": [ENTRY | {"num_samples": 1}]},
        {"entries": [ENTRY | {"values": [1]}]}, {"entries": [ENTRY | {"cases": "slice:800"}]},
    ],
)  # fmt: skip
def test_tables_that_are_none_are_refused_by_name(tmp_path, change):
    model = Model(tmp_path)
    content = {"schema_version": 1, "model_sha256": model.hash, "probability": 0.95, "entries": [ENTRY]}
    table_path(model.path).write_text(json.dumps(content | change))
    with pytest.raises(ValueError, match=r"own\.intervals\.json cannot be"):
        IntervalTable.of(model)


@pytest.mark.parametrize("path", sorted(BUNDLED.glob("*.intervals.json")), ids=lambda path: path.name)
def test_tables_that_come_with_the_package_are_of_their_models_and_of_the_defaults(path):
    table = IntervalTable.of(ScoreModel.load(path.name.removesuffix(".intervals.json")))
    found = set()
    for entry in table.entries:
        method, volume = get_method(entry.method), entry.kind == "volumes"
        known = {s: comparable(method.with_settings({}, volume=volume, speed=s)) for s in SPEEDS}
        speeds = [speed for speed, values in known.items() if values == comparable(entry.values)]
        assert speeds, "measure again: python -m benchmarks.intervals --out DIR --write"
        found |= {(entry.method, entry.kind, speed) for speed in speeds}
    expected = {(method, "slices", speed) for method in ("lisch", "hqs", "dds") for speed in ("accurate", "balanced")}
    assert found >= expected | {("lisch", "volumes", "balanced")}


def test_recon_applies_the_table_and_says_so_or_says_why_not(small_scan, small_model, tmp_path, caplog, monkeypatch):
    model = tmp_path / "own.safetensors"
    model.write_bytes(small_model.read_bytes())
    _, geometry = read_image(small_scan.mu_hv)
    labels = torch.zeros(geometry.shape)
    labels[:, 10:14, 12:18] = 3
    write_image(tmp_path / "labels.hv", labels, geometry)
    words = ["recon", "--verbose", "--model", str(model), "--method", "dds", "--samples", "3", "--set", "num_steps=4"]
    words += [*small_scan.options, "--vois", str(tmp_path / "labels.hv")]

    def run(out, *more):
        assert main([*words, *more, "--out", str(tmp_path / out)]) == 0
        record = json.loads((tmp_path / out / "record.json").read_text())
        with (tmp_path / out / "vois.csv").open() as file:
            (row,) = csv.DictReader(file)
        row = {name: float(row[name]) for name in ("mean", "sd", "low", "high")}
        return record, read_image(tmp_path / out / "uncertainty.hv")[0], row, caplog.text

    intervals._say_once.cache_clear()
    run("earlier")
    record, raw, raw_row, said = run("raw")
    assert record["intervals"]["why"] == "this model has no table of factors"
    assert said.count("intervals are not calibrated: this model has no table of factors") == 1
    trues, kind = record["intervals"]["trues_per_plane"], "volumes" if geometry.shape[0] > 1 else "slices"
    assert 0 < trues * geometry.shape[0] < record["data"]["prompts"]
    own = {"method": "dds", "kind": kind, "num_samples": 3, "voxel_size_mm": geometry.voxel_size}
    own |= {"values": record["values"], "trues_per_plane": [trues], "voxels": [3.92], "vois": [9.8]}
    write_table(ScoreModel.load(model), [Factors(**ENTRY | own)])

    record, calibrated, row, said = run("calibrated")
    assert record["intervals"].items() >= {"calibrated": True, "voxels": 3.92, "vois": 9.8}.items()
    assert len(record["intervals"]["table"]["sha256"]) == 64
    assert "uncertainty is 2 x the samples' SD (own.intervals.json)" in said
    assert torch.allclose(calibrated, 2 * raw)
    assert row["sd"] == pytest.approx(5 * raw_row["sd"])
    assert row["high"] - row["mean"] == pytest.approx(1.96 * row["sd"], rel=1e-4)
    # Shares are the same wherever they are made: here they need no new processes.
    monkeypatch.setattr(Execution, "results", lambda self, function, jobs: map(function, jobs))
    record, again, *_ = run("workers", "--workers", "2")
    assert record["intervals"]["calibrated"]
    assert torch.allclose(again, calibrated, rtol=1e-3, atol=1e-4)
    record, _, _, said = run("changed", "--set", "eta=0.5")
    assert "other settings: eta differ" in record["intervals"]["why"]
    assert record["intervals"]["why"] in said
    monkeypatch.setattr("sirf_diffusion.study.intervals.OUT", record["distribution"]["verdict"])
    record, unlike, *_ = run("unlike")
    assert "out of distribution" in record["intervals"]["why"]
    assert torch.equal(unlike, raw)


def test_a_companion_at_lower_noise_levels_is_another_setting():
    assert comparable({"crop": True, "coarse_above": None}) == comparable({})
    assert comparable({"coarse_above": 1.0}) != comparable({})
