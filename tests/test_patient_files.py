"""NIfTI and ECAT7 read in the scanner's coordinates; NIfTI and DICOM PET written where STIR puts the patient."""

import logging
from datetime import datetime, timezone

import numpy as np
import pytest
import torch
from patient_images import LPS_OF_RAS, NAME, PATIENT_ID, SIGNS, dicom_series, lps_of, phantom, points_of, write_ecat

from sirf_diffusion.files.interfile import write_image
from sirf_diffusion.geometry.exam import ExamInfo, Radionuclide
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.patient import UnusableImage, read_source, write_dicom, write_nifti

nibabel = pytest.importorskip("nibabel")
sitk = pytest.importorskip("SimpleITK")
pydicom = pytest.importorskip("pydicom")

GRID = ImageGeometry((13, 18, 21), (5.0, 4.25, 4.5), (-31.0, 3.0, -2.0))
VALUES = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
SCANNER = np.asarray([[-2, 0, 0, 40], [0, 2.5, 0, -30], [0, 0, 3, -50], [0, 0, 0, 1.0]])


def moved(by):
    return SCANNER + np.outer([by, 0, 0, 0], [0, 0, 0, 1.0])


def nifti(path, qform=None, sform=None, values=VALUES, units="mm"):
    """NIfTI with (affine, code) of qform and sform."""
    image = nibabel.Nifti1Image(values, None)
    image.set_qform(*(qform or (None, 0)))
    image.set_sform(*(sform or (None, 0)))
    image.header.set_xyzt_units(units)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize(("qform", "sform", "said"), [
    ((SCANNER, 1), (moved(25), 4), "the scanner's is taken"), ((moved(25), 4), (SCANNER, 1), "the scanner's is taken"),
    ((SCANNER, 1), (moved(0.1), 2), ""), ((SCANNER, 2), None, ""), (None, (SCANNER, 4), "coordinates of a template"),
])  # fmt: skip
def test_scanner_coordinates_of_nifti_are_taken(tmp_path, caplog, qform, sform, said):
    with caplog.at_level(logging.INFO, "sirf_diffusion"):
        image = read_source(nifti(tmp_path / "a.nii.gz", qform, sform))
    np.testing.assert_allclose(image.affine, LPS_OF_RAS @ SCANNER, atol=0.2)
    np.testing.assert_array_equal(image.values, VALUES)
    assert said in caplog.text
    assert said or not caplog.text


@pytest.mark.parametrize("codes", [(1, 1), (1, 2), (2, 4), (4, 4)])
def test_two_places_without_one_scanner_are_refused(tmp_path, codes):
    path = nifti(tmp_path / "a.nii", (SCANNER, codes[0]), (moved(25), codes[1]))
    with pytest.raises(UnusableImage, match=r"qform \(code.*sform \(code|sform \(code.*qform \(code") as error:
        read_source(path)
    assert "25 mm apart" in str(error.value)


@pytest.mark.parametrize(("units", "factor"), [("meter", 1e-3), ("micron", 1e3), ("mm", 1), ("unknown", 1)])
def test_units_of_nifti_are_read(tmp_path, units, factor):
    scale = np.diag([factor] * 3 + [1.0])
    path = nifti(tmp_path / "a.nii", (scale @ SCANNER, 1), (scale @ SCANNER, 1), units=units)
    np.testing.assert_allclose(read_source(path).affine, LPS_OF_RAS @ SCANNER, rtol=1e-5)


@pytest.mark.parametrize("size", [0.0, -2.0, float("nan")])
@pytest.mark.parametrize("place", ["qform", "sform"])
def test_voxel_sizes_that_are_none_are_not_made_up(tmp_path, size, place):
    path = nifti(tmp_path / "a.nii", **{place: (SCANNER, 1)})
    content = bytearray(path.read_bytes())
    content[80:84] = np.float32(size).tobytes()
    path.write_bytes(content)
    with pytest.raises(UnusableImage, match="must be positive"):
        read_source(path)


def test_what_is_damaged_or_no_image_is_refused(tmp_path):
    good = nifti(tmp_path / "a.nii", (SCANNER, 1)).read_bytes()
    huge = bytearray(good)
    huge[40:48] = np.asarray([3, 30000, 30000, 30000], "<i2").tobytes()  # dim
    nifti(tmp_path / "c.nii", (SCANNER, 1), values=VALUES.astype(np.complex64))
    hole = VALUES.copy()
    hole[1, 1, 1] = np.nan
    nifti(tmp_path / "n.nii", (SCANNER, 1), values=hole)
    for name, data, reason in (
        ("half.nii", good[: len(good) // 2], "no readable NIfTI"),
        ("huge.nii", bytes(huge), "no readable NIfTI image: 1.08e.14 bytes in a file"),
        ("c.nii", None, "values of type complex64"),
        ("n.nii", None, "1 values that are not finite"),
    ):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(UnusableImage, match=reason):
            read_source(tmp_path / name)


@pytest.mark.parametrize(("code", "position"), [(3, ("head_in", "supine")), (0, ("feet_in", "prone"))])
def test_ecat7_lies_where_its_offsets_in_cm_say(tmp_path, code, position):
    stored = np.random.default_rng(1).integers(0, 30000, (4, 6, 5)).astype(">i2")  # [z, y, x]
    path = write_ecat(tmp_path / "a.v", [stored], code)
    image = read_source(path)
    np.testing.assert_allclose(image.values, stored.transpose(2, 1, 0))
    signs = np.asarray(SIGNS[position])
    centre = (image.affine @ [2, 2.5, 1.5, 1])[:3]
    np.testing.assert_allclose(centre, signs * (10, -20, 30), rtol=1e-6)
    np.testing.assert_allclose(image.affine[:3, :3], np.diag(signs * (2.0, 3.0, 4.0)), rtol=1e-6)


@pytest.mark.parametrize("form", ["nii", "nii.gz", "DICOM"])
@pytest.mark.parametrize("position", SIGNS)
def test_written_images_lie_in_the_patient_for_simpleitk_and_for_us(tmp_path, position, form):
    exam = ExamInfo(orientation=position[0], rotation=position[1])
    expected = phantom(lps_of(GRID, SIGNS[position]))
    image = torch.from_numpy(expected).float()
    if form == "DICOM":
        write_dicom(path := tmp_path / "series", image, GRID, exam)
        itk = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)), sitk.sitkFloat64)
    else:
        write_nifti(path := tmp_path / f"x.{form}", image, GRID, exam)
        itk = sitk.ReadImage(str(path), sitk.sitkFloat64)
    affine = np.eye(4)
    affine[:3] = np.c_[np.reshape(itk.GetDirection(), (3, 3)) * itk.GetSpacing(), itk.GetOrigin()]
    ours = read_source(path)
    write_image(tmp_path / "x.hv", image, GRID, exam=exam)
    stirs = read_source(tmp_path / "x.hv")
    found = (sitk.GetArrayFromImage(itk).transpose(2, 1, 0), affine), (ours.values, ours.affine)
    for values, place in (*found, (stirs.values, stirs.affine)):
        assert np.abs(values - phantom(points_of(values.shape, place))).max() < 1e-4 * expected.max()


def test_a_dicom_series_has_its_patient_from_the_reference_and_the_rest_from_the_exam(tmp_path, caplog):
    tracer = pydicom.Dataset()
    tracer.RadionuclideTotalDose = 3e8
    shape = (4, 10, 12)
    geometry = ImageGeometry(shape, (4.0, 2.0, 3.0), (0.0, 10.0, 18.0))  # LPS from (0, 0, -12) to (33, 18, 0)
    exam = ExamInfo(
        orientation="feet_in", time_frames=((60.0, 600.0),), start_time=datetime(2026, 1, 2, 10, 0, 0),
        radionuclide=Radionuclide("^18^Fluorine", 6586.2, 0.967),
    )  # fmt: skip
    stored = np.random.default_rng(3).integers(1, 99, shape).astype(np.int16)
    tags = {"PatientPosition": "FFS", "StudyDate": "20260102", "RadiopharmaceuticalInformationSequence": [tracer]}
    image = torch.from_numpy(stored).float()
    for name, z, step, lay, why in (
        ("near", 0.0, 4.0, "FFS", ""),
        ("far", 900.0, 4.0, "FFS", "0% of them in common"),
        ("turned", 0.0, 4.0, "HFS", "feet_in supine in the data, head_in supine there"),
        ("frames", 0.0, 0.0, "FFS", "several slices at one place"),
    ):
        positions = [(-33, 0, z + step * k) for k in range(4)]
        like = dicom_series(tmp_path / name, stored, positions, **(tags | {"PatientPosition": lay}))
        caplog.clear()
        with caplog.at_level(logging.WARNING, "sirf_diffusion"):
            write_dicom(tmp_path / f"out {name}", image, geometry, exam, like, units="BQML")
        written = [pydicom.dcmread(f) for f in sorted((tmp_path / f"out {name}").iterdir())]
        reference = pydicom.dcmread(like / "slice00.dcm")
        first = written[0]
        assert first.PatientPosition == "FFS"
        for tag in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDate"):
            assert first[tag].value == reference[tag].value, tag
        assert why in caplog.text
        assert (first.FrameOfReferenceUID == reference.FrameOfReferenceUID) == (not why) == (not caplog.records)
        assert first.RadiopharmaceuticalInformationSequence[0].RadionuclideTotalDose == 3e8
        assert (first.Units, first.ActualFrameDuration, first.AcquisitionTime) == ("BQML", 600000, "100100")
        assert first.SeriesInstanceUID != reference.SeriesInstanceUID
        assert len({d.SOPInstanceUID for d in written}) == 4
    caplog.clear()
    tracer.RadionuclideHalfLife = 4062.6
    like = dicom_series(tmp_path / "gallium", stored, [(-33, 0, 4 * k) for k in range(4)], **tags)
    write_dicom(tmp_path / "other tracer", image, geometry, exam, like)
    nuclide = pydicom.dcmread(tmp_path / "other tracer" / "00001.dcm").RadiopharmaceuticalInformationSequence[0]
    assert "another radionuclide (4062.6 s)" in caplog.text
    assert "RadionuclideTotalDose" not in nuclide
    assert float(nuclide.RadionuclideHalfLife) == pytest.approx(6586.2)
    write_dicom(tmp_path / "plain", image, geometry, exam)
    plain = pydicom.dcmread(tmp_path / "plain" / "00001.dcm")
    assert plain.RadiopharmaceuticalInformationSequence[0].RadionuclideHalfLife == pytest.approx(6586.2)
    assert (plain.StudyDate, plain.StudyTime, plain.SeriesTime) == ("20260102", "100000", "100000")
    decay = np.exp2(-np.linspace(0, 600, 6001) / 6586.2)  # the mean activity of the frame is that of this moment
    assert plain.FrameReferenceTime == pytest.approx(1e3 * (60 - 6586.2 * np.log2(decay.mean())), rel=1e-4)
    assert (NAME, PATIENT_ID) != (str(plain.PatientName), plain.PatientID) == ("", "")


@pytest.mark.parametrize(("zone", "acquired", "offset", "said"), [
    ("+0200", ("20240401", "020020"), "+0200", ""),
    ("", ("20240401", "000020"), None, "does not name its zone"),
    (None, ("20240401", "000020"), "+0000", ""),
])  # fmt: skip
def test_times_are_those_of_the_zone_of_the_reference(tmp_path, caplog, zone, acquired, offset, said):
    """Interfile has UTC, DICOM the local time, and a time of injection that is copied decides on the SUV."""
    tracer = pydicom.Dataset()
    tracer.RadiopharmaceuticalStartDateTime = "20240401010000"
    tracer.private_block(0x41, "secret", create=True).add_new(1, "LO", "who")
    started = datetime(2024, 3, 31, 23, 58, 20, tzinfo=timezone.utc)
    exam = ExamInfo(orientation="head_in", time_frames=((120.0, 600.0),), start_time=started)
    stored = np.ones((4, 10, 12), np.int16)
    more = {"TimezoneOffsetFromUTC": zone} if zone else {}
    more |= {"RadiopharmaceuticalInformationSequence": [tracer], "PatientPosition": "HFS"}
    like = dicom_series(tmp_path / "like", stored, [(0, 0, 4 * k) for k in range(4)], **more)
    geometry = ImageGeometry((4, 10, 12), (4.0, 2.0, 3.0))
    write_dicom(tmp_path / "out", torch.ones(geometry.shape), geometry, exam, None if zone is None else like)
    found = pydicom.dcmread(tmp_path / "out" / "00001.dcm")
    assert (found.AcquisitionDate, found.AcquisitionTime) == acquired
    assert found.get("TimezoneOffsetFromUTC") == offset
    assert (said in caplog.text) if said else "zone" not in caplog.text
    assert ("60 minutes before the injection" in caplog.text) == (zone == "")
    assert not any(element.tag.is_private for element in found.iterall())
    tracer.RadiopharmaceuticalStartDateTime = "20240431990000"  # no time: not compared
    like = dicom_series(tmp_path / "odd", stored, [(0, 0, 4 * k) for k in range(4)], **more)
    write_dicom(tmp_path / "odd out", torch.ones(geometry.shape), geometry, exam, like)


def test_what_cannot_be_written_is_refused(tmp_path):
    image = torch.ones(GRID.shape)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(ValueError, match=r"must be called \.nii"):
        write_nifti(tmp_path / "x.img", image, GRID)
    for write in (write_nifti, write_dicom):
        with pytest.raises(ValueError, match=r"expected \(13, 18, 21\)"):
            write(tmp_path / "x.nii", image[1:], GRID)
        with pytest.raises(ValueError, match="none of head or feet first"):
            write(tmp_path / "x.nii", image, GRID, ExamInfo(rotation="left"))
    with pytest.raises(ValueError, match="units must be one of BQML"):
        write_dicom(tmp_path / "x", image, GRID, units="Bq/ml")
    with pytest.raises(ValueError, match="not an empty folder"):
        write_dicom(tmp_path / "taken", image, GRID)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken"]


@pytest.mark.requires_stir
@pytest.mark.parametrize("position", SIGNS)
def test_stir_gives_the_same_coordinates_in_the_patient(tmp_path, position):
    import stir

    exam = ExamInfo(orientation=position[0], rotation=position[1])
    write_image(tmp_path / "x.hv", torch.rand(GRID.shape), GRID, exam=exam)
    image = stir.FloatVoxelsOnCartesianGrid.read_from_file(str(tmp_path / "x.hv"))
    low = image.get_min_indices()
    index = [low[axis] + k for axis, k in ((1, 3), (2, 5), (3, 7))]
    place = image.get_LPS_coordinates_for_indices(stir.make_IntCoordinate(*index))
    np.testing.assert_allclose(lps_of(GRID, SIGNS[position])[:, 3, 5, 7], [place[k] for k in (3, 2, 1)], atol=1e-3)
