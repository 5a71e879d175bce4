"""Files of earlier versions stay readable, and those of later ones are refused: one rule for every kind.

The files are those that ``tests/fixtures/make.py`` made.
"""

import json
import shutil
from pathlib import Path

import h5py
import pytest
import torch

from benchmarks.bench.cases import CaseSpec
from benchmarks.bench.runs import RunSpec
from benchmarks.bench.store import Store, read_results, read_run
from sirf_diffusion.cli.stir_scan import Point
from sirf_diffusion.files.outputs import OutputFolder
from sirf_diffusion.files.versions import read_record
from sirf_diffusion.files.weights import WeightsFormat, write_tensors
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.models.enhancement import EnhancementModel
from sirf_diffusion.models.h_transform import HTransform
from sirf_diffusion.models.intervals import IntervalTable
from sirf_diffusion.models.lora import Adapter
from sirf_diffusion.reconstructors.checkpoint import Checkpoint
from sirf_diffusion.training.checkpoint import digest, read_checkpoint
from sirf_diffusion.training.data.volume_file import VolumeFile
from sirf_diffusion.training.data.volume_parts import PartStore

FIXTURES = Path(__file__).with_name("fixtures")
IMAGE = torch.arange(8.0).reshape(2, 2, 2)
SETTINGS = {"method": "dds", "seed": 1}


def read_unfinished(folder):
    with OutputFolder(folder, SETTINGS).held() as held:
        assert [p.name for p in held.unfinished({"workers": 1}).glob("*.safetensors")] == ["0.safetensors"]


def read_training(folder):
    tensors, metadata = read_checkpoint(folder)
    assert torch.equal(tensors["average/w"], IMAGE)
    assert metadata == {"step": "7", "description": "{}", "losses": "[0.5, 1]"}


def read_parts(folder):
    with PartStore(folder.parent / folder.stem, "images", {"crop": True}, (4.0, 4.0, 4.0)).held():
        pass


def read_bench(folder):
    result = Store(folder, {"suite": {"name": "tiny"}}).get(RunSpec(CaseSpec("slice", 9000, 2e4), "mlem", {}, 1))
    assert result is None or torch.equal(result.image, IMAGE)  # a method's new default is another run


#: Every kind: what reads it (a file or folder), and the file that has the version.
READERS = {
    "model.safetensors": (lambda path: ScoreModel.load(path), ""),
    "model.intervals.json": (lambda path: IntervalTable.of(ScoreModel.load(path.with_name("model.safetensors"))), ""),
    "enhancement.safetensors": (lambda path: EnhancementModel.load(path, "cpu"), ""),
    "adapter.safetensors": (lambda path: Adapter.load(path, ScoreModel.load(path.with_name("model.safetensors"))), ""),
    "h-transform.safetensors": (
        lambda path: HTransform.load(path, ScoreModel.load(path.with_name("model.safetensors"))),
        "",
    ),
    "checkpoint.safetensors": (lambda path: Checkpoint.load(path), ""),
    "training": (read_training, "checkpoint.safetensors"),
    "training.h5": (lambda path: VolumeFile(path).close(), ""),
    "training-2.h5.parts": (read_parts, "settings.json"),
    "result": (lambda path: OutputFolder(path, SETTINGS).check(), "record.json"),
    "unfinished": (read_unfinished, ".unfinished/settings.json"),
    "scan.json": (lambda path: [Point(**point) for point in read_record(path)["points"]], ""),
    "bench": (read_bench, "bench.json"),
    "bench/runs": (lambda path: read_run(next(path.iterdir())), "*.h5"),
    "bench/results.h5": (read_results, ""),
}
KEYS = ("format_version", "version", "schema_version")


def change_version(path, version):
    """Write another version into a file, or none."""

    def changed(content):
        key = next(key for key in KEYS if key in content)
        content = {name: value for name, value in content.items() if name != key}
        return content if version is None else content | {key: version}

    if path.suffix == ".json":
        path.write_text(json.dumps(changed(json.loads(path.read_text()))))
    elif path.suffix == ".h5":
        with h5py.File(path, "a") as file:
            attributes = changed(dict(file.attrs))
            del file.attrs["schema_version"]
            file.attrs.update(attributes)
    else:
        tensors, metadata = WeightsFormat("a file").read_any(path)
        if metadata.pop("sha256", None):
            metadata = {name: str(value) for name, value in changed(metadata).items()}
            metadata |= {"sha256": digest(tensors, metadata)}
        else:
            metadata = {name: json.dumps(changed(json.loads(text))) for name, text in metadata.items()}
        write_tensors(path, tensors, metadata)


@pytest.fixture(params=READERS)
def kind(request, tmp_path):
    """What reads one of the kinds, with its file or folder, and the file that has the version."""
    folder = tmp_path / "version-1"
    shutil.copytree(FIXTURES / "version-1", folder)
    read, name = READERS[request.param]
    path = folder / request.param
    return read, path, next(path.glob(name)) if name else path


def test_files_of_version_1_are_read(kind):
    read, path, _ = kind
    read(path)


def test_files_of_a_newer_version_are_refused_by_name(kind):
    read, path, versioned = kind
    change_version(versioned, 2)
    before = {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=r"made by a newer version of sirf-diffusion \(.*version 2, .* up to 1\)") as e:
        read(path)
    assert versioned.name in str(e.value) or path.name in str(e.value)
    assert before == {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file()}


def test_files_from_before_there_were_versions_are_read(kind):
    read, path, versioned = kind
    change_version(versioned, None)
    # These kinds had one from the beginning: without it, they are damaged.
    if path.suffix == ".safetensors" or path.name == "training.h5":
        with pytest.raises(ValueError, match="version"):
            read(path)
    else:
        read(path)


def test_every_fixture_is_read_by_a_test_and_small():
    files = [p.relative_to(FIXTURES / "version-1") for p in (FIXTURES / "version-1").rglob("*") if p.is_file()]
    assert all((FIXTURES / "version-1" / p).stat().st_size < 20_000 for p in files)
    assert {p.parts[0] for p in files} == {Path(name).parts[0] for name in READERS}
