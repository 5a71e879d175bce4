"""Anatomical images on the grid of a reconstruction: orientation, identity, averaging, CT, what is refused."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from patient_images import (
    LPS_OF_RAS,
    SHAPE,
    SIGNS,
    VOXEL,
    activity,
    lps_of,
    phantom,
    points_of,
    write_dicom,
    write_interfile,
)

from sirf_diffusion.files.interfile import write_image
from sirf_diffusion.geometry.exam import ExamInfo
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.patient import AnatomicalImage, load_anatomical
from sirf_diffusion.patient.registration import rigid_matrix
from sirf_diffusion.patient.resampling import coverage, in_common, stir_grid

pytest.importorskip("SimpleITK")

GRID = ImageGeometry((31, 36, 40), (3.3, 2.5, 2.2), (-45.0, 4.0, -3.0))
SMALL = ImageGeometry((4, 8, 8), (2.0, 2.0, 2.0))


def write_oblique(path, degrees, order=(0, 1, 2), flips=(1, 1, 1), form="sform"):
    """The phantom sampled by a turned, mirrored grid of exchanged axes, as NIfTI."""
    nibabel = pytest.importorskip("nibabel")
    voxel = (1.5, 1.2, 2.0)
    shape = [int(100 / v) for v in voxel]
    affine = rigid_matrix(degrees, (0, 0, 0), (0, 0, 0))[:, [*order, 3]] * (*np.multiply(flips, voxel), 1)
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape) - 1) / 2) + (1, -2, 3)
    image = nibabel.Nifti1Image(phantom(points_of(shape, affine)).astype(np.float32), LPS_OF_RAS @ affine)
    if form == "qform":
        image.set_qform(image.affine, 1)
        image.set_sform(None, 0)
    nibabel.save(image, path)
    return path


def wrong(found, signs=(1, 1, -1)):
    """Largest error, relative to the maximum, without the corners of the grid, which are outside turned images."""
    expected = phantom(lps_of(GRID, signs))
    return np.abs(np.asarray(found) - expected)[6:-6, 6:-6, 6:-6].max() / expected.max()


def lying(path, position):
    """The image of a file for data of a patient who lay so."""
    return AnatomicalImage.read(path).lying_as(None if position is None else ExamInfo(*position))


@pytest.mark.parametrize(("degrees", "order", "flips", "form", "position"), [
    ((0, 0, 0), (2, 0, 1), (-1, 1, -1), "sform", None),
    ((25, -15, 35), (0, 1, 2), (1, 1, 1), "sform", ("head_in", "supine")),
    ((25, -15, 35), (1, 2, 0), (1, -1, 1), "sform", ("feet_in", "supine")),
    ((-40, 20, 10), (0, 1, 2), (1, 1, -1), "qform", ("head_in", "prone")),
    ((0, 0, 0), (0, 1, 2), (1, 1, 1), "qform", ("feet_in", "prone")),
])  # fmt: skip
def test_an_oblique_nifti_lands_where_it_is_in_a_patient_of_any_position(
    tmp_path, degrees, order, flips, form, position
):
    path = write_oblique(tmp_path / "mr.nii.gz", degrees, order, flips, form=form)
    found, signs = (
        load_anatomical(lying(path, position), GRID).values.numpy(),
        SIGNS[position or ("head_in", "supine")],
    )
    assert wrong(found, signs) < 0.05
    assert min(wrong(np.flip(found, axis), signs) for axis in range(3)) > 0.3


@pytest.mark.parametrize("shape", [(5, 12, 13), (1, 12, 13), (4, 1, 7)])
def test_on_its_own_grid_it_is_the_same_numbers(tmp_path, shape, generator):
    geometry = ImageGeometry(shape, (3.27, 2.08626, 2.1), (-17.3, 0.4, 5.0))
    values = torch.rand(shape, generator=generator) * 1e3
    write_image(tmp_path / "mr.hv", values, geometry)
    for source in (values, AnatomicalImage.of(values, geometry), tmp_path / "mr.hv"):
        placed = load_anatomical(source, geometry)
        assert torch.equal(placed.values, values)
        assert not placed.record["resampled"]


def test_cropping_keeps_every_voxel(tmp_path, generator):
    geometry = ImageGeometry((6, 20, 22), (4.0, 2.0, 2.0), (8.0, 0.0, 0.0))
    values = torch.rand(geometry.shape, generator=generator)
    part = ImageGeometry((3, 10, 8), (4.0, 2.0, 2.0), (16.0, 4.0, -6.0))
    found = AnatomicalImage.of(values, geometry).on(part)
    # voxel n // 2 is at the origin in y and x, voxel 0 in z
    assert torch.equal(found, values[2:5, 10 + 2 - 5 : 10 + 2 + 5, 11 - 3 - 4 : 11 - 3 + 4])


def test_a_plane_of_a_wide_field_of_view_has_a_whole_head_in_common():
    grids = ImageGeometry((1, 100, 100), (4.0, 4.0, 4.0)), ImageGeometry((60, 40, 50), (3.0, 3.0, 3.0), (-90.0, 0, 0))
    plane, head = map(stir_grid, grids)
    assert max(coverage(plane, head), coverage(head, plane)) < 0.2
    assert in_common(plane, head) == in_common(head, plane) == pytest.approx(1, abs=0.02)
    for origin, share in (((-90.0, 0.0, 200.0), 0.5), ((8.0, 0.0, 0.0), 0.0)):
        assert in_common(plane, stir_grid(replace(grids[1], origin=origin))) == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("data", [None, ("head_in", "supine"), ("feet_in", "supine")])
@pytest.mark.parametrize("image", [None, ("head_in", "supine"), ("feet_in", "supine")])
def test_interfile_is_in_the_scanners_coordinates_unless_both_tell_the_position(tmp_path, image, data):
    path = write_interfile(tmp_path / "mr.hv", activity(), image)
    geometry = ImageGeometry(SHAPE, (VOXEL,) * 3, (0.0, 0.0, 0.0))
    stored = AnatomicalImage.read(path).image.values
    if image is None or data is None or image == data:
        np.testing.assert_array_equal(load_anatomical(lying(path, data), geometry).values, stored)
        return
    with pytest.raises(ValueError, match="overlap by only"):  # z runs from 0 the other way
        load_anatomical(lying(path, data), geometry)
    turned = ImageGeometry(SHAPE, (VOXEL,) * 3, (-(SHAPE[0] - 1) * VOXEL, 0.0, VOXEL))
    found = load_anatomical(lying(path, data), turned).values
    np.testing.assert_array_equal(found, stored[::-1, :, ::-1])


def test_larger_voxels_get_averages_and_not_picks(generator):
    fine = ImageGeometry((1, 60, 60), (2.0, 1.0, 1.0))
    noise = 10 + torch.randn(fine.shape, generator=generator)
    coarse = AnatomicalImage.of(noise, fine).on(ImageGeometry((1, 14, 14), (2.0, 4.0, 4.0)))
    assert float(coarse.mean()) == pytest.approx(10, rel=0.01)
    assert float(coarse[:, 2:-2, 2:-2].std()) < 0.4


def test_the_record_of_a_dicom_series_has_no_name(tmp_path):
    pytest.importorskip("pydicom")
    record = AnatomicalImage.read(write_dicom(tmp_path / "series", activity())).describe(GRID)
    assert (record["format"], record["modality"]) == ("DICOM", "PT")
    assert "DOE" not in str(record)


def test_ct_becomes_density_and_mr_stays(tmp_path, caplog, generator):
    hounsfield = 2000 * torch.rand(SMALL.shape, generator=generator) - 1100
    mr = 500 * torch.rand(SMALL.shape, generator=generator) - 5
    for name, values in (("ct", hounsfield), ("mr", mr)):
        write_image(tmp_path / f"{name}.hv", values, SMALL)
    with caplog.at_level(logging.INFO, "sirf_diffusion"):
        ct = load_anatomical(tmp_path / "ct.hv", SMALL)
    assert "Hounsfield" in caplog.text
    assert ct.record["modality"] == "CT"
    torch.testing.assert_close(ct.values, (hounsfield / 1000 + 1).clamp(min=0))
    assert torch.equal(load_anatomical(tmp_path / "mr.hv", SMALL).values, mr)


def test_resampling_is_logged_once_per_grid(caplog, generator):
    image = AnatomicalImage.of(torch.rand(SMALL.shape, generator=generator), SMALL)
    with caplog.at_level(logging.INFO, "sirf_diffusion"):
        for _ in range(3):
            image.on(SMALL)
            image.on(ImageGeometry((2, 5, 5), (4.0, 3.0, 3.0), (1.0, 0.0, 0.0)))
    assert caplog.text.count("is resampled: ") == 1


def test_what_cannot_be_used_names_the_file_and_the_reason(tmp_path):
    write_image(tmp_path / "flat.hv", torch.ones(SMALL.shape), SMALL)
    (tmp_path / "mr.txt").write_text("no image")
    for name, reason in (("none.hv", "no such file"), ("flat.hv", "same value"), ("mr.txt", "unknown kind of file")):
        with pytest.raises(ValueError, match=rf"{name} cannot be used: .*{reason}"):
            load_anatomical(tmp_path / name, SMALL)
    with pytest.raises(ValueError, match="NaN"):
        load_anatomical(torch.full(SMALL.shape, float("nan")), SMALL)
    with pytest.raises(ValueError, match=r"\(4, 8, 9\), expected \(4, 8, 8\)"):
        load_anatomical(torch.ones(4, 8, 9), SMALL)
