"""DICOM series: slices where their own tags put them, each with its slope; what is no single volume is refused."""

import logging
import os

import numpy as np
import pytest
from patient_images import dicom_file, dicom_series, lps_of, phantom, points_of

from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.patient import AnatomicalImage, UnusableImage, read_source

pydicom = pytest.importorskip("pydicom")

STORED = np.random.default_rng(1).integers(1, 30000, (6, 8, 5)).astype(np.uint16)
POSITIONS = np.asarray([(-10.0, -20.0, -30.0 + 4 * k) for k in range(6)])
SLOPES = (1.0, 0.5, 0.003, 2.5, 0.7, 1.1)


def multiframe(folder, kind="enhanced PT", slopes=SLOPES, positions=POSITIONS, times=(None,) * 6, **tags):
    """All slices in one enhanced file, position, slope and time in the frames, the rest shared."""

    def group(**macros):
        data = pydicom.Dataset()
        for name, values in macros.items():
            item = pydicom.Dataset()
            for tag, value in values.items():
                setattr(item, tag, value)
            setattr(data, name, [item])
        return data

    shared = group(
        PixelMeasuresSequence={"PixelSpacing": [2, 3], "SliceThickness": 4},
        PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
    )
    frames = []
    for position, slope, time in zip(positions, slopes, times, strict=True):
        macros = {"PlanePositionSequence": {"ImagePositionPatient": list(position)}}
        if slope is not None:
            macros["PixelValueTransformationSequence"] = {"RescaleSlope": slope, "RescaleIntercept": 0}
        if time is not None:
            macros["FrameContentSequence"] = {"TemporalPositionIndex": time}
        frames.append(group(**macros))
    tags = {"PerFrameFunctionalGroupsSequence": frames, "SharedFunctionalGroupsSequence": [shared]} | tags
    folder.mkdir()
    dicom_file(folder / "all.dcm", STORED, kind, NumberOfFrames=len(STORED), **tags)
    return folder


@pytest.mark.parametrize("signs", [1, -1], ids=["ascending", "descending"])
@pytest.mark.parametrize("kind", ["PT", "CT", "MR", "NM"])
def test_slices_lie_where_their_tags_say_and_have_their_own_slopes(tmp_path, kind, signs):
    def change(k, tags):
        tags["RescaleSlope"], tags["RescaleIntercept"] = SLOPES[k], -3 * k  # the first of slope 1 cuts nothing off

    image = read_source(dicom_series(tmp_path / "s", STORED, signs * POSITIONS, change, kind=kind))
    expected = STORED * np.reshape(SLOPES, (6, 1, 1)) - 3 * np.arange(6)[:, None, None]
    np.testing.assert_allclose(image.values, expected[::signs], rtol=1e-6)
    corner = (signs * POSITIONS)[::signs][0]
    np.testing.assert_allclose((image.affine @ [0, 0, 0, 1])[:3], corner)
    np.testing.assert_allclose((image.affine @ [5, 2, 3, 1])[:3], np.add(corner, (9, 4, 20)))
    assert image.modality == kind


def test_slices_of_a_tilted_gantry_stay_where_they_are(tmp_path, caplog):
    angle, (n, rows, columns) = np.radians(15), (25, 40, 36)
    axes = np.asarray([1, 0, 0, 0, np.cos(angle), -np.sin(angle)])
    affine = np.eye(4)
    affine[:3] = np.stack([(0, 0, 3.0), 2 * axes[3:], 2.5 * axes[:3], (-42, -38, -28)], 1)
    stored = np.round(1e4 * phantom(points_of((n, rows, columns), affine))).astype(np.int16)
    positions = [(affine @ [k, 0, 0, 1])[:3] for k in range(n)]
    folder = dicom_series(
        tmp_path / "s", stored, positions, kind="CT", PixelSpacing=[2, 2.5],
        ImageOrientationPatient=[f"{v:.8f}" for v in axes],
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, "sirf_diffusion"):
        image = read_source(folder)
    assert "tilted by 15.0 degrees" in caplog.text
    np.testing.assert_allclose((image.affine @ [n - 1, 0, 0, 1])[:3], positions[-1], atol=1e-3)
    geometry = ImageGeometry((20, 20, 20), (2.5, 2.5, 2.5), (-25.0, 0.0, 0.0))
    found = AnatomicalImage(image).on(geometry).numpy()
    expected = 1e4 * phantom(lps_of(geometry))
    assert np.abs(found - expected).max() < 0.05 * expected.max()


@pytest.mark.parametrize(("tag", "value", "from_slice", "reason"), [
    ("ImagePositionPatient", None, 0, r"ImagePositionPatient \(0020,0032\) is missing"),
    ("ImagePositionPatient", None, 3, r"ImagePositionPatient \(0020,0032\) is missing"),
    ("ImageOrientationPatient", None, 0, r"ImageOrientationPatient \(0020,0037\) is missing"),
    ("PixelSpacing", None, 0, r"PixelSpacing \(0028,0030\) is missing"),
    ("RescaleSlope", None, 3, "RescaleSlope is missing in some"),
    ("RescaleIntercept", None, 3, "RescaleIntercept is missing in some"),
    ("FrameOfReferenceUID", "1.2.3.9", 3, "differ in FrameOfReferenceUID: 1.2.3.4.6 and 1.2.3.9"),
    ("Units", "CNTS", 3, "differ in Units"), ("ImagePositionPatient", [1, 2], 0, "must be 3 numbers"),
    ("PixelSpacing", [0, 3], 0, "PixelSpacing .* positive"),
    ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0], 0, "unit vectors at right angles"),
    ("ImageOrientationPatient", [-1, 0, 0, 0, -1, 0], 3, "differ in ImageOrientationPatient"),
    ("PixelSpacing", [4, 6], 3, "differ in PixelSpacing"),
    ("ImagePositionPatient", [-3, -20, -10], 5, "do not lie in a row: .* aside"),
    ("ImagePositionPatient", [-10, -20, -5], 5, "slices are missing"),
    ("ImagePositionPatient", [-10, -20, -9.5], 5, "do not lie in a row"),
    ("SeriesInstanceUID", "1.2.3.9", 5, "holds 2 series"), ("SamplesPerPixel", 3, 0, "colour images"),
    ("RescaleType", "HU", 3, "differ in RescaleType"), ("HighBit", 14, 0, "HighBit 14 does not suit BitsStored 16"),
])  # fmt: skip
def test_what_is_missing_or_contradicts_itself_is_refused_by_name(tmp_path, tag, value, from_slice, reason):
    def change(k, tags):
        if k >= from_slice:
            tags[tag] = value
            if value is None:
                del tags[tag]

    with pytest.raises(UnusableImage, match=reason):
        read_source(dicom_series(tmp_path / "s", STORED, POSITIONS, change))


@pytest.mark.parametrize("digits", [1, 2, 6])
def test_positions_may_be_rounded(tmp_path, digits):
    positions = np.round(np.linspace((0, 0, 0), (0.7, 0, 5 * 2.03125), 6), digits)
    image = read_source(dicom_series(tmp_path / "s", STORED, positions))
    np.testing.assert_allclose(image.affine[:3, 0], (0.14, 0, 2.03125), atol=0.02)


def test_a_missing_slice_of_a_small_animal_is_seen(tmp_path):
    positions = [(0, 0, 0.1 * (k + (k > 2))) for k in range(6)]
    with pytest.raises(UnusableImage, match=r"slices are missing: .* vary from 0.1 to 0.2 mm"):
        read_source(dicom_series(tmp_path / "s", STORED, positions, PixelSpacing=[0.1, 0.1]))


@pytest.mark.parametrize("enhanced", [False, True])
def test_values_by_a_mapping_to_real_world_values_alone(tmp_path, enhanced):
    def mapping(k):
        item = pydicom.Dataset()
        item.RealWorldValueSlope, item.RealWorldValueIntercept = SLOPES[k], -3.0 * k
        return [item]

    def change(k, tags):
        del tags["RescaleSlope"], tags["RescaleIntercept"]
        tags["RealWorldValueMappingSequence"] = mapping(k)

    if enhanced:
        multiframe(tmp_path / "s", slopes=(None,) * 6)
        data = pydicom.dcmread(tmp_path / "s" / "all.dcm")
        for k, frame in enumerate(data.PerFrameFunctionalGroupsSequence):
            frame.RealWorldValueMappingSequence = mapping(k)
        data.save_as(tmp_path / "s" / "all.dcm")
    else:
        dicom_series(tmp_path / "s", STORED, POSITIONS, change)
    expected = STORED * np.reshape(SLOPES, (6, 1, 1)) - 3 * np.arange(6)[:, None, None]
    np.testing.assert_allclose(read_source(tmp_path / "s").values, expected, rtol=1e-6)


@pytest.mark.parametrize("planes", [1, 2, 3])
def test_two_time_frames_are_refused_as_such(tmp_path, planes):
    positions = np.concatenate([POSITIONS[:planes]] * 2)
    with pytest.raises(UnusableImage, match=r"several slices at one place.*time frames"):
        read_source(dicom_series(tmp_path / "s", STORED[: 2 * planes], positions))


def test_one_slice_has_the_thickness_of_its_tags(tmp_path, caplog):
    image = read_source(dicom_series(tmp_path / "s", STORED[:1], POSITIONS[:1], SliceThickness=4.5))
    np.testing.assert_allclose(np.linalg.norm(image.affine[:3, :3], axis=0), (4.5, 2, 3))
    assert "give the folder" not in caplog.text
    read_source(tmp_path / "s" / sorted(os.listdir(tmp_path / "s"))[0])
    assert "give the folder" in caplog.text
    with pytest.raises(UnusableImage, match=r"SliceThickness \(0018,0050\) is missing"):
        read_source(dicom_series(tmp_path / "t", STORED[:1], POSITIONS[:1], SliceThickness=None))


@pytest.mark.parametrize(("kind", "slopes"), [("enhanced PT", SLOPES), ("enhanced MR", (None,) * 6)])
@pytest.mark.parametrize("order", [1, -1])
def test_enhanced_files_have_position_and_slope_in_each_frame(tmp_path, kind, slopes, order):
    image = read_source(multiframe(tmp_path / "s", kind, slopes, POSITIONS[::order]))
    expected = STORED * np.reshape([s or 1 for s in slopes], (6, 1, 1))
    np.testing.assert_allclose(image.values, expected[::order], rtol=1e-6)
    np.testing.assert_allclose((image.affine @ [5, 2, 3, 1])[:3], (-1, -16, -10))


def test_frames_are_told_apart_by_their_time(tmp_path):
    positions, times = np.concatenate([POSITIONS[:2]] * 3), (1, 1, 2, 2, 3, 3)
    multiframe(tmp_path / "s", slopes=(None,) * 6, positions=positions, times=times)
    np.testing.assert_array_equal(read_source(f"{tmp_path}/s/all.dcm#3").values, STORED[4:])


def test_frames_without_a_place_and_frames_in_time_are_refused_by_their_names(tmp_path):
    with pytest.raises(UnusableImage, match=r"multi-frame file \(Enhanced PET Image Storage\) with 6 frames"):
        read_source(multiframe(tmp_path / "s", PerFrameFunctionalGroupsSequence=[]))
    with pytest.raises(UnusableImage, match="several slices at one place, 3 places for 6 slices: time frames"):
        read_source(multiframe(tmp_path / "t", positions=np.concatenate([POSITIONS[:3]] * 2)))


@pytest.mark.parametrize("codec", ["RLE", "JPEG lossless"])
@pytest.mark.parametrize("shown", ["MONOCHROME1", "MONOCHROME2"])
def test_compressed_slices_have_the_same_values(tmp_path, codec, shown):
    sitk = pytest.importorskip("SimpleITK")
    stored = np.random.default_rng(2).integers(1, 30000, (3, 16, 16)).astype(np.uint16)
    folder = dicom_series(tmp_path / "s", stored, POSITIONS[:3], RescaleSlope=0.5)
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(tmp_path / "compressed.dcm"))
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG")
    for file in folder.iterdir():
        data = pydicom.dcmread(file)
        data.PhotometricInterpretation = shown
        if codec == "RLE":
            data.compress(pydicom.uid.RLELossless)
        else:  # pydicom cannot decode it
            writer.Execute(sitk.GetImageFromArray(data.pixel_array))
            compressed = pydicom.dcmread(writer.GetFileName())
            data["PixelData"] = compressed["PixelData"]
            data.file_meta.TransferSyntaxUID = compressed.file_meta.TransferSyntaxUID
        assert data.file_meta.TransferSyntaxUID.is_compressed
        data.save_as(file)
    np.testing.assert_allclose(read_source(folder).values, 0.5 * stored, rtol=1e-6)


def test_one_file_and_damaged_files(tmp_path):
    image = read_source(multiframe(tmp_path / "s") / "all.dcm")
    assert image.values.shape == STORED.shape
    folder = dicom_series(tmp_path / "t", STORED, POSITIONS)
    (folder / "readme.txt").write_text("no DICOM file is left aside")
    assert read_source(folder).values.shape == STORED.shape
    damaged = folder / "slice07.dcm"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    with pytest.raises(UnusableImage, match=r"no readable DICOM pixels \(slice07.dcm"):
        read_source(folder)
    with pytest.raises(UnusableImage, match="no DICOM series"):
        read_source(tmp_path)


def test_no_memory_is_taken_for_what_a_header_says(tmp_path):
    import tracemalloc

    folder = dicom_series(tmp_path, np.ones((2, 8, 8), np.int16), [(0, 0, 0), (0, 0, 4)])
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.Rows = dataset.Columns = 12_000
        dataset.save_as(file)
    tracemalloc.start()
    with pytest.raises(UnusableImage):
        read_source(folder)
    assert tracemalloc.get_traced_memory()[1] < 2e7
    tracemalloc.stop()
