"""Results on disk: whole or not at all, and never over another one."""

import signal

import h5py
import numpy as np
import pytest
import torch

from sirf_diffusion.files import atomic
from sirf_diffusion.files.atomic import atomic_path
from sirf_diffusion.files.outputs import OutputError, OutputFolder, write_json
from sirf_diffusion.files.stopping import Stopped, stoppable
from sirf_diffusion.files.versions import read_record


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "x.json"
    write_json(target, {"a": 1})

    def fail_while_writing():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_while_writing()
    assert read_record(target) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_json_takes_tensors_paths_and_numbers_that_are_not_finite(tmp_path):
    value = {"t": torch.tensor([1.5, float("inf")]), "path": tmp_path, "n": (1, None, True)}
    write_json(tmp_path / "x.json", value)
    expected = {"t": [1.5, None], "path": str(tmp_path), "n": [1, None, True]}
    assert read_record(tmp_path / "x.json") == expected


def result(folder: OutputFolder, **files: str) -> None:
    with folder.staged({"nrmse": 0.2}) as staging:
        for name, text in files.items():
            (staging / name).write_text(text)


def contents(path):
    return {p.name: p.read_bytes() for p in path.iterdir()}


def test_the_same_settings_may_be_run_again_and_others_are_refused(tmp_path):
    folder = OutputFolder(tmp_path / "new" / "run", {"seed": 1, "method": "dds"}).check()
    result(folder, image="1")
    record = read_record(folder.record_path)
    assert record == {"settings": {"seed": 1, "method": "dds"}, "nrmse": 0.2, "files": ["image"]}
    OutputFolder(folder.path, {"seed": 1, "method": "dds"}).check()
    before = contents(folder.path)
    with pytest.raises(OutputError, match=r"another result: seed.*1 there, 2 asked"):
        OutputFolder(folder.path, {"seed": 2, "method": "dds"}).check()
    assert contents(folder.path) == before


def test_overwriting_replaces_the_files_of_the_result_and_no_others(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result(OutputFolder(tmp_path, {"seed": 1}, overwrite=True).check(), image="1", samples="1")
    result(OutputFolder(tmp_path, {"seed": 2}, overwrite=True).check(), image="2")
    assert sorted(contents(tmp_path)) == ["image", "notes.txt", "record.json"]
    assert (tmp_path / "image").read_text(encoding="utf-8") == "2"


def test_of_a_record_only_files_below_the_folder_are_removed(tmp_path):
    out, others = tmp_path / "out", tmp_path / "mine"
    (out / "series").mkdir(parents=True)
    for path in (others, out / "series" / "a"):
        path.write_text("mine")
    write_json(out / "record.json", {"settings": {}, "files": ["../mine", str(others), "..", "", "series", 3]})
    with OutputFolder(out, {}, overwrite=True).check().staged({}) as staging:
        (staging / "dicom").mkdir()
        (staging / "dicom" / "b").write_text("1")
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()) == [
        "mine", "out/dicom/b", "out/record.json", "out/series/a"
    ]  # fmt: skip
    result(OutputFolder(out, {}).check(), image="2")
    assert not (out / "dicom" / "b").exists()


def test_a_failure_while_writing_keeps_the_earlier_result(tmp_path):
    folder = OutputFolder(tmp_path, {"seed": 1}).check()
    result(folder, image="1")
    before = contents(tmp_path)

    def fail_halfway():
        with folder.staged({}) as staging:
            (staging / "image").write_text("2")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail_halfway()
    assert contents(tmp_path) == before


def write_four(path):
    with atomic.new_hdf5(path) as file:
        for name in "abcd":
            file.create_dataset(name, data=np.arange(5000), compression="gzip")


@pytest.mark.parametrize("at", range(1, 9))
def test_a_signal_while_hdf5_is_written_waits_for_the_whole_file(tmp_path, monkeypatch, at):
    calls, write = [], atomic._Disk.write

    def stopped(self, content):
        calls.append(1)
        if len(calls) == at:
            signal.raise_signal(signal.SIGTERM)
        return write(self, content)

    monkeypatch.setattr(atomic._Disk, "write", stopped)
    with stoppable(), pytest.raises(Stopped):
        write_four(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5") as file:
        assert all((file[name][:] == np.arange(5000)).all() for name in "abcd")


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="not empty"):
        OutputFolder(tmp_path, {}).check()
    (tmp_path / "record.json").write_text("[1, 2")
    with pytest.raises(OutputError, match="cannot be read"):
        OutputFolder(tmp_path, {}).check()
