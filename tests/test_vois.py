"""VOI means and their intervals: from Python and by ``recon --vois``."""

import csv
import json
import shutil

import nibabel
import numpy as np
import pytest
import torch

from sirf_diffusion.cli import main
from sirf_diffusion.files.interfile import read_image, write_image
from sirf_diffusion.geometry.exam import ExamInfo
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.patient import stir_grid
from sirf_diffusion.patient.image import LPS_OF_RAS
from sirf_diffusion.patient.readers import read_labels
from sirf_diffusion.study.vois import interval_factor, place_vois, voi_table

GEOMETRY = ImageGeometry((3, 8, 10), (2.0, 4.0, 5.0))


def labels_on(geometry):
    labels = torch.zeros(geometry.shape)
    labels[1, 2:5, 3:7] = 1
    labels[:, 6, 1] = 7
    return labels


def test_means_volumes_and_intervals_are_those_of_the_definition():
    generator = torch.Generator().manual_seed(0)
    samples = torch.rand(4, *GEOMETRY.shape, generator=generator)
    labels = labels_on(GEOMETRY).long()
    first, second = voi_table(labels, samples.mean(0), GEOMETRY, samples, unit="Bq/ml")
    assert (first["voi"], first["voxels"], second["voi"], second["voxels"]) == (1, 12, 7, 3)
    assert first["volume_ml"] == pytest.approx(12 * 0.04)
    means = samples[:, labels == 1].double().mean(1)
    assert first["mean"] == pytest.approx(float(means.mean()))
    assert first["sd"] == pytest.approx(float(means.std()))
    assert first["high"] - first["mean"] == pytest.approx(3.18245 * 1.25**0.5 * float(means.std()), rel=1e-5)
    assert first["unit"] == "Bq/ml"
    assert voi_table(labels, samples[0], GEOMETRY)[0]["sd"] is None


def test_intervals_hold_the_truth_as_often_as_they_say():
    generator = torch.Generator().manual_seed(1)
    truth, samples = torch.randn(20000, generator=generator), torch.randn(5, 20000, generator=generator)
    inside = (truth - samples.mean(0)).abs() <= interval_factor(5) * samples.std(0)
    assert float(inside.double().mean()) == pytest.approx(0.95, abs=0.006)


@pytest.mark.parametrize("position", [("head_in", "supine"), ("feet_in", "supine"), ("head_in", "prone")])
def test_labels_in_the_patients_coordinates_find_their_voxels(tmp_path, position):
    labels = labels_on(GEOMETRY)
    affine = LPS_OF_RAS @ stir_grid(GEOMETRY, position).affine
    nibabel.Nifti1Image(labels.numpy().astype(np.int16), affine).to_filename(tmp_path / "labels.nii.gz")
    exam = ExamInfo(orientation=position[0], rotation=position[1])
    assert torch.equal(place_vois(read_labels(tmp_path / "labels.nii.gz"), GEOMETRY, exam), labels.long())


def test_labels_of_a_finer_grid_stay_labels(tmp_path):
    fine = ImageGeometry((6, 16, 20), (1.0, 2.0, 2.5), (-0.5, -1.0, -1.25))
    labels = torch.zeros(fine.shape)
    labels[:, 4:10, 6:14] = 5
    write_image(tmp_path / "labels.hv", labels, fine)
    placed = place_vois(read_labels(tmp_path / "labels.hv"), GEOMETRY)
    assert set(placed.unique().tolist()) == {0, 5}
    assert int((placed == 5).sum()) * 0.04 == pytest.approx(6 * 6 * 8 * 0.005, rel=0.35)


def test_a_region_that_lies_partly_outside_is_said(tmp_path, caplog):
    labels = labels_on(GEOMETRY)
    write_image(tmp_path / "labels.hv", labels, ImageGeometry(GEOMETRY.shape, GEOMETRY.voxel_size, (0.0, -12.0, 0.0)))
    place_vois(read_labels(tmp_path / "labels.hv"), GEOMETRY)
    assert "lie partly outside" in caplog.text
    caplog.clear()
    write_image(tmp_path / "inside.hv", labels, GEOMETRY)
    place_vois(read_labels(tmp_path / "inside.hv"), GEOMETRY)
    assert not caplog.text


def test_voxels_that_the_scanner_does_not_see_are_not_counted(tmp_path, caplog):
    labels = labels_on(GEOMETRY)
    write_image(tmp_path / "labels.hv", labels, GEOMETRY)
    seen = torch.ones(GEOMETRY.shape, dtype=torch.bool)
    seen[:, :, 3] = False
    placed = place_vois(read_labels(tmp_path / "labels.hv"), GEOMETRY, None, seen)
    assert torch.equal(placed, (labels * seen).long())
    assert "as far as they lie inside: 1 (75%)" in caplog.text
    seen[:, :, 1] = False
    with pytest.raises(ValueError, match="VOIs 7 have no voxel in the field of view"):
        place_vois(read_labels(tmp_path / "labels.hv"), GEOMETRY, None, seen)


def test_what_is_no_label_image_or_lies_elsewhere_is_refused(tmp_path):
    labels = labels_on(GEOMETRY)
    write_image(tmp_path / "half.hv", labels * 0.5, GEOMETRY)
    with pytest.raises(ValueError, match="must hold whole numbers"):
        read_labels(tmp_path / "half.hv")
    write_image(tmp_path / "labels.hv", labels, ImageGeometry(GEOMETRY.shape, GEOMETRY.voxel_size, (0.0, 0.0, -30.0)))
    with pytest.raises(ValueError, match="VOIs 7 have no voxel"):
        place_vois(read_labels(tmp_path / "labels.hv"), GEOMETRY)


def test_recon_writes_the_table(small_scan, small_model, tmp_path, capsys):
    _, geometry = read_image(small_scan.mu_hv)
    labels = torch.zeros(geometry.shape)
    labels[0, 10:14, 12:18] = 3
    write_image(tmp_path / "labels.hv", labels, geometry)
    words = ["recon", "--model", str(small_model), "--method", "dds", "--set", "num_steps=4", "--samples", "3"]
    words += [*small_scan.options, "--out", str(tmp_path / "out"), "--calibration", "2"]
    assert main([*words, "--vois", str(tmp_path / "labels.hv")]) == 0
    with (tmp_path / "out" / "vois.csv").open() as file:
        (row,) = csv.DictReader(file)
    image, _ = read_image(tmp_path / "out" / "reconstruction.hv")
    assert float(row["mean"]) == pytest.approx(float(image[labels == 3].mean()), rel=1e-5)
    assert row["unit"] == "Bq/ml"
    assert float(row["low"]) < float(row["mean"]) < float(row["high"])
    assert "voi" in capsys.readouterr().out
    assert "vois.csv" in json.loads((tmp_path / "out" / "record.json").read_text())["files"]
    shutil.rmtree(tmp_path / "out")
    write_image(tmp_path / "labels.hv", labels, ImageGeometry(geometry.shape, geometry.voxel_size, (0.0, 0.0, 9e3)))
    assert main([*words, "--vois", str(tmp_path / "labels.hv")]) == 2
    assert "have no voxel" in capsys.readouterr().err
