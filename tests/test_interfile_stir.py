"""Interfile against the real STIR: each reads what the other writes, with the same values in the same places."""

import numpy as np
import pytest
from header_variations import our_numbers, stir_numbers
from interfile_files import EXAM, asymmetric, warnings_of

from sirf_diffusion.files.interfile import read_image, read_projection_data, write_image, write_projection_data
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.geometry.projdata import ProjDataGeometry

pytestmark = pytest.mark.requires_stir


def stir_values(projdata):
    """[sinogram, view, tangential] of STIR's projection data, segments 0, +1, -1, ..."""
    values = projdata.as_array()
    assert values.shape[0] == 1
    return values[0]


def assert_same_layout(info, geometry):
    """All of STIR's coordinates of some bins in each segment are ours."""
    import stir

    assert info.get_num_segments() == len(geometry.segments)
    assert info.get_num_views() == geometry.num_views
    assert info.get_num_tangential_poss() == geometry.num_tangential_positions
    assert info.get_scanner().get_num_rings() == geometry.scanner.num_rings
    assert info.get_scanner().get_num_detectors_per_ring() == geometry.scanner.num_detectors_per_ring
    for segment in geometry.segments:
        assert info.get_num_axial_poss(segment.num) == segment.num_axial_positions
        assert info.get_min_ring_difference(segment.num) == segment.min_ring_difference
        assert info.get_max_ring_difference(segment.num) == segment.max_ring_difference
        for a, view, k in ((0, geometry.num_views - 1, 0), (segment.num_axial_positions - 1, 1, 1)):
            bin_ = stir.Bin(segment.num, view, a, k - geometry.num_tangential_positions // 2)
            assert info.get_phi(bin_) == pytest.approx(geometry.view_angles()[view].item(), abs=2e-6)
            assert info.get_s(bin_) == pytest.approx(geometry.tangential_positions()[k].item(), rel=1e-5)
            assert info.get_m(bin_) == pytest.approx(geometry.axial_positions(segment)[a].item(), rel=1e-5, abs=1e-4)
            assert info.get_tantheta(bin_) == pytest.approx(geometry.tan_theta(segment)[k].item(), rel=1e-5)


def stir_scanner(name):
    import stir

    return stir.Scanner.get_scanner_from_name(name)


def pet_exam():
    import stir

    return stir.ExamInfo(stir.ImagingModality(stir.ImagingModality.PT))


# STIR's names of number types, and how many steps of an image's range they resolve at least. Not for doubles: STIR
# gives images of doubles a scale factor of 0.
STIR_TYPES = {"SCHAR": 120, "UCHAR": 250, "SHORT": 3e4, "USHORT": 6e4, "INT": 1e5, "FLOAT": 1e6}

LAYOUTS = [  # scanner, span, max ring difference, mashing, tangential size, arc-corrected
    ("Siemens mMR", 11, 16, 18, 35, False),
    ("Siemens Vision 600", 1, 2, 19, 40, False),
    ("GE Discovery 690", 2, 23, 32, 31, False),
    ("GE Signa PET/MR", 2, 5, 14, 36, False),
    ("ECAT 962", 9, 22, 24, 33, True),
    ("ECAT 966", 3, 4, 18, 40, False),
    ("ECAT 953", 7, 15, 12, 21, True),
    ("RATPET", 3, 4, 1, 17, True),
]


class TestAgainstSTIR:
    @pytest.mark.parametrize(("name", "span", "most", "mashing", "bins", "arc_corrected"), LAYOUTS)
    def test_stir_reads_our_projection_data(self, tmp_path, name, span, most, mashing, bins, arc_corrected):
        import stir

        views = stir_scanner(name).get_num_detectors_per_ring() // 2 // mashing
        geometry = ProjDataGeometry.from_scanner(name, span, most, views, bins, arc_corrected)
        data = asymmetric(geometry.shape)
        write_projection_data(tmp_path / "ours.hs", data, geometry)
        read = stir.ProjData.read_from_file(str(tmp_path / "ours.hs"))
        assert np.array_equal(stir_values(read), data.numpy())
        assert_same_layout(read.get_proj_data_info(), geometry)

    def test_stir_reads_our_shorts(self, tmp_path):
        import stir

        geometry = ProjDataGeometry.from_scanner("ECAT 962", 3, 4, 24, 9)
        data = asymmetric(geometry.shape)
        write_projection_data(tmp_path / "ours.hs", data, geometry, number_format="short")
        read = stir.ProjData.read_from_file(str(tmp_path / "ours.hs"))
        np.testing.assert_allclose(stir_values(read), read_projection_data(tmp_path / "ours.hs")[0].numpy(), rtol=1e-6)
        grid = ImageGeometry((3, 4, 5), (2.0, 1.0, 1.5))
        write_image(tmp_path / "ours.hv", asymmetric(grid.shape), grid, number_format="short")
        image = stir.FloatVoxelsOnCartesianGrid.read_from_file(str(tmp_path / "ours.hv"))
        np.testing.assert_allclose(image.as_array(), read_image(tmp_path / "ours.hv")[0].numpy(), rtol=1e-6)

    @pytest.mark.parametrize(("name", "span", "most", "mashing", "bins", "arc_corrected"), LAYOUTS)
    def test_we_read_stir_projection_data(self, tmp_path, caplog, name, span, most, mashing, bins, arc_corrected):
        import stir

        scanner = stir_scanner(name)
        views = scanner.get_num_detectors_per_ring() // 2 // mashing
        info = stir.ProjDataInfo.construct_proj_data_info(scanner, span, most, views, bins, arc_corrected)
        its = stir.ProjDataInMemory(pet_exam(), info)
        values = asymmetric(its.as_array().shape[1:]).numpy()
        its.fill(values.flat)
        its.write_to_file(str(tmp_path / "stirs.hs"))
        data, geometry = read_projection_data(tmp_path / "stirs.hs")
        assert np.array_equal(data.numpy(), values)
        assert_same_layout(info, geometry)
        ours = ProjDataGeometry.from_scanner(name, span, most, views, bins, arc_corrected)
        assert ours.differences(geometry) == []
        assert geometry.scanner.blocks == ours.scanner.blocks
        assert warnings_of(caplog) == []

    @pytest.mark.parametrize("number", [*STIR_TYPES, "DOUBLE"], ids=lambda n: n.lower())
    @pytest.mark.parametrize("byte_order", ["little_endian", "big_endian"])
    @pytest.mark.parametrize("order", ["Segment_View_AxialPos_TangPos", "Segment_AxialPos_View_TangPos"])
    @pytest.mark.parametrize("arc_corrected", [False, True])
    def test_we_read_every_kind_of_file_stir_writes(self, tmp_path, caplog, number, byte_order, order, arc_corrected):
        import stir

        geometry = ProjDataGeometry.from_scanner("ECAT 962", 3, 4, 24, 9, arc_corrected)
        info = stir.ProjDataInfo.construct_proj_data_info(stir_scanner("ECAT 962"), 3, 4, 24, 9, arc_corrected)
        its = stir.ProjDataInterfile(
            pet_exam(),
            info,
            str(tmp_path / "stirs.hs"),
            16,  # std::ios::out
            getattr(stir.ProjDataInterfile, order),
            stir.NumericType(getattr(stir.NumericType, number)),
            stir.ByteOrder(getattr(stir.ByteOrder, byte_order)),
            1.0 if number == "FLOAT" else 0.25,  # STIR writes floats without scaling, whatever it says in the header
        )
        values = (np.arange(geometry.num_bins).reshape(geometry.shape) % 101 * 0.25).astype(np.float32)
        its.fill(values[None])
        del its  # closes the file
        data, read_geometry = read_projection_data(tmp_path / "stirs.hs")
        assert np.array_equal(data.numpy(), values)
        assert geometry.differences(read_geometry) == []
        assert warnings_of(caplog) == []

    @pytest.mark.parametrize("shape", [(3, 4, 5), (4, 7, 6), (1, 1, 2)])
    def test_stir_reads_our_images(self, tmp_path, shape):
        import stir

        geometry = ImageGeometry(shape, (2.03125, 1.7, 2.08626), (-3.0, 4.5, 0.25))
        image = asymmetric(shape)
        write_image(tmp_path / "ours.hv", image, geometry)
        read = stir.FloatVoxelsOnCartesianGrid.read_from_file(str(tmp_path / "ours.hv"))
        assert np.array_equal(read.as_array(), image.numpy())
        last = (shape[0] - 1, (shape[1] - 1) // 2, (shape[2] - 1) // 2)  # STIR's indices of the last voxel
        place = read.get_physical_coordinates_for_indices(stir.Int3BasicCoordinate(last))
        expected = [o + n * d for o, n, d in zip(geometry.origin, last, geometry.voxel_size, strict=True)]
        assert [place.z(), place.y(), place.x()] == pytest.approx(expected, rel=1e-5, abs=1e-5)

    @pytest.mark.parametrize(("number", "steps"), STIR_TYPES.items(), ids=lambda n: str(n).lower())
    @pytest.mark.parametrize("byte_order", ["little_endian", "big_endian"])
    def test_we_read_stir_images(self, tmp_path, caplog, number, steps, byte_order):
        import stir

        shape = (3, 4, 5)
        values = asymmetric(shape).abs().numpy()
        its = stir.FloatVoxelsOnCartesianGrid(
            pet_exam(), stir.IndexRange3D(stir.Int3BasicCoordinate((0, -2, -2)), stir.Int3BasicCoordinate((2, 1, 2))),
            stir.FloatCartesianCoordinate3D(1.5, -2, 3), stir.FloatCartesianCoordinate3D(2.03125, 2.5, 2.08626),
        )  # fmt: skip
        its.fill(values.flat)
        output_format = stir.InterfileOutputFileFormat()
        output_format.set_type_of_numbers(stir.NumericType(getattr(stir.NumericType, number)))
        output_format.set_byte_order(stir.ByteOrder(getattr(stir.ByteOrder, byte_order)))
        output_format.write_to_file(str(tmp_path / "stirs.hv"), its)
        image, geometry = read_image(tmp_path / "stirs.hv")
        np.testing.assert_allclose(image.numpy(), values, atol=values.max() / steps)
        read = stir.FloatVoxelsOnCartesianGrid.read_from_file(str(tmp_path / "stirs.hv"))
        np.testing.assert_allclose(image.numpy(), read.as_array(), rtol=1e-6)
        assert geometry.shape == shape
        assert geometry.voxel_size == pytest.approx((2.03125, 2.5, 2.08626), rel=1e-5)
        assert geometry.origin == pytest.approx((1.5, -2, 3), abs=1e-4)
        assert warnings_of(caplog) == []

    def test_stir_finds_our_exam_information(self, tmp_path):
        grid = ImageGeometry((2, 3, 3), (2.0, 1.0, 1.0))
        layout = ProjDataGeometry.from_scanner("ECAT 962", 1, 0, 24, 9)
        write_image(tmp_path / "ours.hv", asymmetric(grid.shape), grid, exam=EXAM)
        write_projection_data(tmp_path / "ours.hs", asymmetric(layout.shape), layout, exam=EXAM)
        for name, kind in (("ours.hv", "image"), ("ours.hs", "projdata")):
            ours, its = our_numbers(tmp_path / name, kind), stir_numbers(tmp_path / name, kind)
            assert its == pytest.approx(ours, rel=1e-5, abs=1e-4)
