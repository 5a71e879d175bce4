"""The atlas: velocities, the mean shape of deformed and moving subjects, curves, and what it is used for."""

import signal
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fresh import DieAt, exit_code

from sirf_diffusion.cli import main
from sirf_diffusion.files.interfile import read_image, write_image
from sirf_diffusion.geometry.exam import ExamInfo
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.patient import read_source
from sirf_diffusion.priors import AnchorPenalty
from sirf_diffusion.study.metrics import nrmse
from sirf_diffusion.training.data.volume_file import VolumeFile

pytest.importorskip("SimpleITK")
pytest.importorskip("scipy")
pytest.importorskip("nibabel")

import nibabel

from benchmarks.atlas import cohort
from sirf_diffusion.patient.velocity import compose, exponential, logarithm
from sirf_diffusion.personalise.atlas import Atlas
from sirf_diffusion.personalise.groupwise import Subject, build_atlas, read_subjects

MM = 8.0


@lru_cache
def known():
    """Four deformed, moving, noisy subjects."""
    return cohort(4, 2, MM, deformation=10.0, noise=0.05)


def test_exponential_and_logarithm_undo_each_other():
    like, displacement = known().like, known().displacements[0]
    v = logarithm(displacement, like)
    np.testing.assert_allclose(exponential(v, like), displacement, atol=0.5)
    assert np.abs(compose(displacement, exponential(-v, like), like)).max() < 1.5
    assert np.abs(displacement - v).max() > 0.5


@lru_cache
def made():
    parts = {}

    def kept(name, make):
        if name not in parts:
            parts[name] = make()
        return parts[name]

    build_atlas(known().subjects, (MM,) * 3, rounds=0, kept=kept)
    affine = known().shape_error()
    atlas = build_atlas(known().subjects, (MM,) * 3, rounds=1, kept=kept)
    return atlas, affine, known().shape_error()


def test_the_template_is_nearer_to_the_mean_shape_than_an_affine_mean():
    _, affine, deformed = made()
    assert deformed < 0.75 * affine


def test_it_is_kept_and_used(tmp_path):
    atlas = made()[0]
    atlas.save(tmp_path / "A.h5", tracer="[18F]test")
    again = Atlas.load(tmp_path / "A.h5")
    np.testing.assert_allclose(again.frames, atlas.frames, rtol=2e-3, atol=2e-3)
    np.testing.assert_array_equal(again.labels, atlas.labels)
    assert VolumeFile(tmp_path / "A.h5").tracer == "[18F]test"
    paths = again.write_images(tmp_path / "images")
    assert [p.name for p in paths] == ["mean.hv", "frame-00.hv", "frame-01.hv", "curves.csv"]
    image, geometry = read_image(tmp_path / "images" / "frame-01.hv")
    assert float(AnchorPenalty(image).value(image)) == 0
    assert geometry.voxel_size == (MM,) * 3
    table = (tmp_path / "images" / "curves.csv").read_text().splitlines()
    assert table[0] == "label,frame 0,frame 1"
    patient = build_atlas([known().subjects[1]], (MM,) * 3, rounds=0)
    patient.write_images(tmp_path / "patient")
    early, geometry = read_image(tmp_path / "patient" / "mean.hv")
    frames, quality = again.onto(read_source(tmp_path / "patient" / "mean.hv"), geometry)
    assert quality.jacobian > 0
    before, after = (nrmse(torch.from_numpy(f.mean(0)), early) for f in (again.frames, frames))
    assert after < 0.7 * before
    exam = ExamInfo(orientation="feet_in", rotation="prone")
    write_image(tmp_path / "turned.hv", early.flip(0, 1), geometry, exam=exam)
    turned, _ = again.onto(read_source(tmp_path / "turned.hv"), geometry)
    np.testing.assert_allclose(turned, frames[:, ::-1, ::-1], rtol=1e-3, atol=1e-3 * frames.max())
    assert len(table) == 1 + len(again.curves)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Dynamic images of two subjects."""
    paths = [str(tmp_path_factory.mktemp("dynamic") / f"{number}.nii.gz") for number in range(2)]
    for path, subject in zip(paths, known().subjects, strict=False):
        values = np.moveaxis(subject.frames, 0, -1).transpose(2, 1, 0, 3)
        nibabel.save(nibabel.Nifti1Image(values, np.diag([-MM, -MM, MM, 1])), path)
    return paths


def test_killed_it_ends_at_the_same_bits(files, tmp_path, capsys):
    def words(name, *more):
        out = ["--out", str(tmp_path / f"{name}.h5"), "--images", str(tmp_path / name)]
        return ["atlas", "--subjects", *files, "--voxel-size", "12", "--rounds", "1", *out, *more]

    assert main(words("whole")) == 0
    for renamings in (4, 5, 9, 3):
        killed = exit_code(partial(main, words("killed")), DieAt(renamings, ("os.rename",), tmp_path))
        assert killed == -signal.SIGKILL
    kept = {path.name for path in (tmp_path / "killed.h5.atlas").iterdir()}
    assert {"motions-1.safetensors", "affine.safetensors", "velocity-0-1.safetensors"} <= kept
    assert main(words("killed", "--rounds", "2")) == 2
    assert "another run: rounds differ" in capsys.readouterr().err
    assert main(words("other", "--labels", *files)) == 2
    assert not (tmp_path / "other.h5.atlas").exists()
    assert main(words("killed")) == 0
    assert (tmp_path / "killed.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    for name in ("mean.v", "frame-01.v", "curves.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert {path.name for path in tmp_path.glob("killed*")} == {"killed", "killed.h5"}


def test_the_command_reads_dynamic_images(files, tmp_path, capsys):
    arguments = ["--voxel-size", str(MM), "--rounds", "0", "--out", str(tmp_path / "A.h5")]
    assert main(["atlas", "--subjects", *files, *arguments, "--images", str(tmp_path / "images")]) == 0
    assert len(Atlas.load(tmp_path / "A.h5").frames) == 2
    one = ["atlas", "--frames", f"{files[0]}#2", "--voxel-size", str(MM), "--out", str(tmp_path / "one.h5")]
    assert main(one) == 0
    assert main([*one[:2], f"{files[0]}#1", *one[3:], "--overwrite"]) == 0
    assert len(Atlas.load(tmp_path / "one.h5").frames) == 1
    for more in ([], ["--restart"]):
        assert main(["atlas", "--subjects", files[0], *arguments, *more]) == 2
    assert len(Atlas.load(tmp_path / "A.h5").frames) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["atlas", "--subjects", *files, *arguments, "--overwrite", "--mr", files[0]]) == 2
    assert "1 images for 2 subjects" in capsys.readouterr().err
    small = ImageGeometry((6, 30, 30), (2.0, 2.0, 2.0))
    write_image(tmp_path / "small.hv", torch.rand(small.shape), small)
    onto = ["--images", str(tmp_path / "onto"), "--onto", str(tmp_path / "small.hv")]
    assert main(["atlas", "--subjects", *files, *arguments, "--overwrite", *onto]) == 2
    assert "small.hv" in (said := capsys.readouterr().err)
    assert "give a smaller --voxel-size" in said
    image = nibabel.load(files[0])
    empty = image.get_fdata() * [0, 1]
    nibabel.save(nibabel.Nifti1Image(empty.astype(np.float32), image.affine), tmp_path / "empty.nii")
    assert main(["atlas", "--subjects", str(tmp_path / "empty.nii"), *arguments, "--overwrite"]) == 2
    assert "frame 1: all voxels have the same value" in capsys.readouterr().err


def test_frames_of_other_grids_are_told(files, tmp_path, caplog):
    image = nibabel.load(f"{files[0]}")
    moved = nibabel.Nifti1Image(image.get_fdata()[1:, ..., 0], image.affine)
    nibabel.save(moved, tmp_path / "moved.nii")
    frames = [Path(f"{files[0]}#1"), tmp_path / "moved.nii"]
    read_subjects([frames[:1]], (MM,) * 3)
    assert not caplog.text
    assert len(read_subjects([frames], (MM,) * 3)[0].frames) == 2
    assert "subject 1: 1 of 2 frames have another grid than the first" in caplog.text


def test_labels_keep_their_numbers(files, tmp_path):
    image = nibabel.load(files[0])
    frame = image.get_fdata()[..., 0]
    for name, scale in (("labels", 1), ("halves", 0.5)):
        kinds = np.where(frame > np.median(frame[frame > 0]), 1002, 2025) * (frame > 0) * scale
        nibabel.save(nibabel.Nifti1Image(kinds.astype(np.float32), image.affine), tmp_path / f"{name}.nii")
    words = ["atlas", "--subjects", files[0], "--voxel-size", str(MM), "--rounds", "0", "--out", str(tmp_path / "A.h5")]
    assert main([*words, "--labels", str(tmp_path / "halves.nii")]) == 2
    assert main([*words, "--labels", str(tmp_path / "labels.nii")]) == 0
    assert sorted(Atlas.load(tmp_path / "A.h5").curves) == [1002, 2025]


def test_what_is_no_set_of_subjects_is_refused():
    one, two = np.ones((2, 16, 16, 16), np.float32), np.ones((3, 16, 16, 16), np.float32)
    with pytest.raises(ValueError, match=r"numbers of frames \[2, 3\]"):
        build_atlas([Subject(one), Subject(two)], (MM,) * 3)
    with pytest.raises(ValueError, match="subject 2 has a frame that is empty"):
        build_atlas([Subject(one), Subject(one * [[[[1]]], [[[0]]]])], (MM,) * 3)
