"""The scripts for a GPU, rehearsed on the CPU at small size."""

import json
from dataclasses import replace

import pytest
import torch
from training_file import write_training_file

from benchmarks import gpu, gpu_train
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.models.networks import build_network
from sirf_diffusion.training import RECIPES
from sirf_diffusion.training.data.volume_file import VolumeFile


def rows_of(folder):
    content = json.loads((folder / "gpu.json").read_text("utf-8"))
    return content["rows"]


def test_a_rehearsal_writes_table_and_numbers(tmp_path):
    parts = ["projections", "trainings"]
    assert gpu.main(["--out", str(tmp_path), "--device", "cpu", "--small", "--parts", *parts]) == 0
    rows = rows_of(tmp_path)
    assert {row["what"].split(",")[0] for row in rows} == {"projector", "forward", "back", "training step"}
    assert all(row["seconds"] > 0 for row in rows)
    text = (tmp_path / "gpu.md").read_text("utf-8")
    assert len([line for line in text.splitlines() if line.startswith("|")]) == 2 + len(rows)


def test_what_there_is_no_time_for_and_what_fails_are_rows(tmp_path, monkeypatch):
    def broken(machine):
        yield {"what": "one", "case": "fine"}
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu, "PARTS", (broken, gpu.samplers))
    monkeypatch.setattr(gpu, "objective_of", lambda *_: gpu.load_example("brain2d").acquisition.objective(2))
    assert gpu.main(["--out", str(tmp_path), "--device", "cpu", "--small", "--minutes", "0"]) == 1
    first, second, *rest = rows_of(tmp_path)
    assert first["case"] == "fine"
    assert "no such kernel" in second["remark"]
    assert rest
    assert {row["remark"] for row in rest} == {"left out: no time"}


def test_differences_are_seen():
    x = torch.tensor([1.0, -4.0])
    assert gpu.relative(x + torch.tensor([0.0, 0.4]), x) == pytest.approx(0.1)
    with gpu.rounded(True):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_wider_network_is_no_larger_than_sixteen_megabytes():
    network = build_network(gpu_train.recipe_of(100, 8).architecture, device="meta")
    number = sum(p.numel() for p in network.parameters())
    assert sum(p.numel() for p in build_network(RECIPES["brain"].architecture, device="meta").parameters()) < number
    assert 2 * number < 16e6


def test_a_small_file_holds_volumes_of_all_splits_and_is_trained_on(tmp_path, monkeypatch):
    big = write_training_file(tmp_path / "big.h5", ("train",) * 6 + ("validation",) * 4)
    small = tmp_path / "small.h5"
    mib = 0.3 * big.stat().st_size / 2**20
    assert 2 <= gpu_train.sample(big, small, mib) < 10
    assert small.stat().st_size <= mib * 2**20
    assert {info.split for info in VolumeFile(small).infos} == {"train", "validation"}
    brain = RECIPES["brain"]
    architecture = replace(
        brain.architecture, attention_levels=(False, False), num_res_blocks=1, channels=(8, 8), num_head_channels=8
    )
    monkeypatch.setitem(gpu_train.RECIPES, "brain", replace(brain, architecture=architecture, crops=(32,)))
    monkeypatch.setattr(gpu_train, "CHANNELS", (8, 16))
    monkeypatch.setattr(gpu_train, "steps_in", lambda *_: 4)
    model = gpu_train.trained(small, tmp_path / "out", 1.0, 2, "cpu", False)
    assert ScoreModel.load(model).architecture.channels == (8, 16)
    work = tmp_path / "out" / "work"
    assert (work / "log.csv").read_text("utf-8").count("\n") >= 4
    assert list(work.glob("checkpoint*.safetensors"))
