"""The atlas: velocities, the mean shape of deformed and moving subjects, curves, and what it is used for."""

from functools import lru_cache

import numpy as np
import pytest
import torch

from sirf_diffusion.cli import main
from sirf_diffusion.files.interfile import read_image
from sirf_diffusion.patient import read_source
from sirf_diffusion.priors import AnchorPenalty
from sirf_diffusion.study.metrics import nrmse
from sirf_diffusion.training.data.volume_file import VolumeFile

sitk = pytest.importorskip("SimpleITK")
pytest.importorskip("scipy")

from scipy.ndimage import gaussian_filter  # noqa: E402

from sirf_diffusion.patient.deformable import image_of  # noqa: E402
from sirf_diffusion.patient.velocity import as_transform, compose, exponential, logarithm  # noqa: E402
from sirf_diffusion.personalise.atlas import Atlas  # noqa: E402
from sirf_diffusion.personalise.groupwise import Subject, build_atlas  # noqa: E402
from sirf_diffusion.simulation.parametric_head import simulate_parametric_head  # noqa: E402

MM, SHAPE = 8.0, (28, 32, 28)
CURVES = {1: (1.0, 0.7), 2: (0.4, 0.5), 3: (0.6, 1.3)}
LIKE = image_of(np.zeros(SHAPE, np.float32), (MM,) * 3)


def velocity(seed: int, size: float = 10.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    field = np.stack([gaussian_filter(rng.standard_normal(SHAPE), 4.0) for _ in range(3)], -1)
    still_outside = np.pad(np.ones([n - 8 for n in SHAPE]), 4)
    return size * gaussian_filter(still_outside, 2.0)[..., None] * field / np.sqrt((field**2).sum(-1).mean())


def test_exponential_and_logarithm_undo_each_other():
    v = velocity(0)
    np.testing.assert_allclose(logarithm(exponential(v, LIKE), LIKE), v, atol=0.3)
    assert np.abs(compose(exponential(v, LIKE), exponential(-v, LIKE), LIKE)).max() < 1.0
    assert np.abs(exponential(v, LIKE) - v).max() > 0.5


@lru_cache
def shape():
    """Regions of the known mean shape: grey, white, deep and cerebellum."""
    labels = simulate_parametric_head(60, SHAPE, MM).labels
    regions = np.zeros(SHAPE, np.uint8)
    for region, kinds in {1: (6,), 2: (5,), 3: (7, 8)}.items():
        regions[np.isin(labels, kinds)] = region
    return regions, (labels > 0).astype(np.float32)


def frame(number: int) -> np.ndarray:
    regions, body = shape()
    image = 0.2 * body
    for region, curve in CURVES.items():
        image = np.where(regions == region, curve[number], image)
    return gaussian_filter(image.astype(np.float32), 0.4)


@lru_cache
def dynamic():
    """Four deformed, moving, noisy subjects and the displacements from the mean shape to each."""
    rng = np.random.default_rng(3)
    velocities = [velocity(seed) for seed in range(4)]
    velocities = [v - np.mean(velocities, axis=0) for v in velocities]
    subjects, truth = [], []
    for v in velocities:
        back, frames = as_transform(exponential(-v, LIKE), LIKE), []
        for number in range(2):
            motion = sitk.Euler3DTransform()
            motion.SetParameters([*rng.normal(0, 0.02, 3), *rng.normal(0, 2.0, 3)])
            moved = sitk.Resample(image_of(frame(number), (MM,) * 3), LIKE, sitk.CompositeTransform([back, motion]))
            frames.append(np.clip(sitk.GetArrayFromImage(moved) + 0.03 * rng.standard_normal(SHAPE), 0, None))
        regions = sitk.Resample(image_of(shape()[0], (MM,) * 3), LIKE, back, sitk.sitkNearestNeighbor)
        labels = sitk.GetArrayFromImage(regions).astype(np.uint8)
        subjects.append(Subject(np.stack(frames).astype(np.float32), labels=labels))
        truth.append(exponential(v, LIKE))
    return subjects, truth


def shape_error(subjects, truth):
    inside = shape()[0] > 0
    pairs = zip(subjects, truth, strict=True)
    return np.mean([np.linalg.norm(s.displacement(LIKE) - t, axis=-1)[inside].mean() for s, t in pairs])


@lru_cache
def made():
    subjects, truth = dynamic()
    build_atlas(subjects, (MM,) * 3, rounds=0)
    affine = shape_error(subjects, truth)
    atlas = build_atlas(subjects, (MM,) * 3, rounds=2)
    return atlas, affine, shape_error(subjects, truth)


def test_the_template_is_nearer_to_the_mean_shape_than_an_affine_mean():
    _, affine, deformed = made()
    assert deformed < 0.7 * affine


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
    patient = build_atlas([dynamic()[0][1]], (MM,) * 3, rounds=0)
    patient.write_images(tmp_path / "patient")
    early, geometry = read_image(tmp_path / "patient" / "mean.hv")
    frames, quality = again.onto(read_source(tmp_path / "patient" / "mean.hv"), geometry)
    assert quality.jacobian > 0
    before, after = (nrmse(torch.from_numpy(f.mean(0)), early) for f in (again.frames * 1.0, frames))
    assert after < 0.6 * before
    assert len(table) == 1 + len(again.curves)


def test_the_command_reads_dynamic_images(tmp_path, capsys):
    nibabel = pytest.importorskip("nibabel")
    for number, subject in enumerate(dynamic()[0][:2]):
        values = np.moveaxis(subject.frames, 0, -1).transpose(2, 1, 0, 3)
        nibabel.save(nibabel.Nifti1Image(values, np.diag([-MM, -MM, MM, 1])), tmp_path / f"{number}.nii.gz")
    files = [str(tmp_path / f"{number}.nii.gz") for number in range(2)]
    arguments = ["--voxel-size", str(MM), "--rounds", "0", "--out", str(tmp_path / "A.h5")]
    assert main(["atlas", "--subjects", *files, *arguments, "--images", str(tmp_path / "images")]) == 0
    assert len(Atlas.load(tmp_path / "A.h5").frames) == 2
    assert main(["atlas", "--subjects", *files, *arguments]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["atlas", "--subjects", *files, *arguments, "--overwrite", "--mr", files[0]]) == 2
    assert "1 images for 2 subjects" in capsys.readouterr().err


def test_what_is_no_set_of_subjects_is_refused():
    one, two = np.ones((2, *SHAPE), np.float32), np.ones((3, *SHAPE), np.float32)
    with pytest.raises(ValueError, match=r"numbers of frames \[2, 3\]"):
        build_atlas([Subject(one), Subject(two)], (MM,) * 3)
    with pytest.raises(ValueError, match="subject 2 has a frame that is empty"):
        build_atlas([Subject(one), Subject(one * [[[[1]]], [[[0]]]])], (MM,) * 3)
