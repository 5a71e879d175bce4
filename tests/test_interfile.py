"""Interfile: STIR's files are read with the same values and places, written ones come back, errors are clear."""

import dataclasses
import math
import os

import numpy as np
import pytest
import torch
from interfile_files import (
    NUM_BINS,
    NUMBER_TYPES,
    SCANNER,
    SCANNERS,
    asymmetric,
    replace_in,
    warnings_of,
    write_image_files,
    write_projdata_files,
)
from refused_changes import refused

from sirf_diffusion.files.interfile import (
    InterfileError,
    UnsupportedError,
    read_image,
    read_projection_data,
    write_image,
    write_projection_data,
)
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.geometry.projdata import ProjDataGeometry


class TestReadImage:
    @pytest.mark.parametrize("byte_order", ["<", ">"])
    @pytest.mark.parametrize("number", NUMBER_TYPES, ids=lambda n: n[2])
    @pytest.mark.parametrize("offset", [0, 13])
    def test_values_of_every_number_type(self, tmp_path, caplog, byte_order, number, offset):
        values = np.arange(60).reshape(3, 4, 5) - (30 if number[2][0] in "if" else 0)
        image, geometry = read_image(
            write_image_files(tmp_path, values, byte_order=byte_order, number=number, offset=offset)
        )
        assert image.dtype == torch.float32
        assert np.array_equal(image.numpy(), values)
        assert geometry.shape == (3, 4, 5)
        assert warnings_of(caplog) == []

    def test_grid_and_origin(self, tmp_path):
        _, geometry = read_image(write_image_files(tmp_path, np.zeros((3, 4, 5))))
        assert geometry.voxel_size == (2.03125, 2.5, 2.08626)
        assert geometry.origin == pytest.approx((1.5, 0.0, 0.0), abs=1e-6)

    def test_rounding_in_the_header_is_no_shift(self, tmp_path):
        header = write_image_files(tmp_path, np.zeros((3, 4, 5)))
        replace_in(header, ":= -4.17252\n", ":= -4.1725\n")
        assert read_image(header)[1].origin == (1.5, 0.0, 0.0)

    @pytest.mark.parametrize(("more", "expected"), [
        ("image scaling factor[1] := 0.25\n", [0.25, 0.25, 0.25]),
        ("image scaling factor[1] := {1, 2,0.5}\n", [1.0, 2.0, 0.5]), ("quantification units := 3\n", [3.0, 3.0, 3.0]),
        ("image scaling factor[1] := 3\nquantification units := 3\n", [3.0, 3.0, 3.0]),
    ])  # fmt: skip
    def test_scale_factors(self, tmp_path, more, expected):
        image, _ = read_image(write_image_files(tmp_path, np.ones((3, 4, 5)), more=more))
        assert image[:, 1, 2].tolist() == expected

    def test_data_may_follow_the_header_in_one_file(self, tmp_path):
        header = write_image_files(tmp_path, np.arange(60), data="image.hv", more="data offset in bytes[1] := 2048\n")
        text = header.read_bytes()
        header.write_bytes(text + b"\0" * (2048 - len(text)) + np.arange(60, dtype="<f4").tobytes())
        assert read_image(header)[0].flatten().tolist() == list(range(60))

    def test_environment_variables_are_expanded(self, tmp_path, monkeypatch):
        header = write_image_files(tmp_path, np.arange(60), data="${WHERE}/image.v")
        monkeypatch.setenv("WHERE", str(tmp_path))
        assert read_image(header)[0][0, 0, 4] == 4
        monkeypatch.delenv("WHERE")
        with pytest.raises(InterfileError, match="environment variable 'WHERE'"):
            read_image(header)

    def test_unknown_keys_are_said_once(self, tmp_path, caplog):
        read_image(write_image_files(tmp_path, np.zeros(60), more="decay corrected := yes\nsecond oddity := 1\n"))
        assert len(warnings_of(caplog)) == 1
        assert "'decay corrected', 'second oddity'" in warnings_of(caplog)[0]

    def test_bytes_that_are_no_text_are_written_out_in_messages(self, tmp_path, caplog):
        header = write_image_files(tmp_path, np.zeros(60), more="oddity := 1\n")
        header.write_bytes(header.read_bytes().replace(b"oddity", b"odd\xffity"))
        read_image(header)
        assert r"'odd\xffity'" in warnings_of(caplog)[0]


class TestReadProjectionData:
    @pytest.mark.parametrize("number", NUMBER_TYPES, ids=lambda n: n[2])
    @pytest.mark.parametrize("byte_order", ["<", ">"])
    def test_values_of_every_number_type(self, tmp_path, caplog, number, byte_order):
        values = np.arange(NUM_BINS) % 120 - (60 if number[2][0] in "if" else 0)
        header = write_projdata_files(tmp_path, values, number=number, byte_order=byte_order, view=2, axial=3)
        data, _ = read_projection_data(header)
        assert data.dtype == torch.float32
        assert np.array_equal(data[4 : 4 + 3].numpy().ravel(), values[7 * 56 :])
        assert warnings_of(caplog) == []

    @pytest.mark.parametrize("by_view", [True, False])
    def test_each_bin_is_found_in_both_storage_orders(self, tmp_path, by_view):
        order = {"view": 3, "axial": 2} if by_view else {"view": 2, "axial": 3}
        data, geometry = read_projection_data(write_projdata_files(tmp_path, offset=7, **order))
        assert [(s.num, s.min_ring_difference, s.num_axial_positions) for s in geometry.segments] == [
            (0, 0, 4),
            (1, 1, 3),
            (-1, -1, 3),
        ]
        starts = {-1: 0, 0: 3, 1: 7}  # planes before each segment in the file
        for segment, part in zip(geometry.segments, geometry.segment_slices(), strict=True):
            n = segment.num_axial_positions
            for a in range(n):
                for v in range(8):
                    first = starts[segment.num] * 56 + ((v * n + a) if by_view else (a * 8 + v)) * 7
                    assert data[part][a, v].tolist() == list(range(first, first + 7))

    @pytest.mark.parametrize("system", ["Siemens mMR", "siemens_mmr", "2008"])
    def test_scanner_from_name(self, tmp_path, caplog, system):
        _, geometry = read_projection_data(write_projdata_files(tmp_path, system=system, scanner=""))
        assert geometry.scanner.name == "Siemens mMR"
        assert geometry.scanner.num_detectors_per_ring == 504
        assert len(warnings_of(caplog)) == 1  # 8 views are no divisor of 252
        assert "views" in warnings_of(caplog)[0]

    def test_header_wins_over_the_named_scanner_with_one_warning(self, tmp_path, caplog):
        _, geometry = read_projection_data(write_projdata_files(tmp_path, system="ECAT 962"))
        assert geometry.scanner.num_rings == 4
        assert geometry.scanner.ring_spacing == 4
        assert len(warnings_of(caplog)) == 1
        for text in ("ECAT 962", "'number of rings' gives num_rings 4 (usually 32)", "ring_spacing 4 (usually 4.85)"):
            assert text in warnings_of(caplog)[0]

    def test_missing_view_offset_is_zero_and_said(self, tmp_path, caplog):
        scanner = "number of detectors per ring := 576\n"
        header = write_projdata_files(tmp_path, system="GE Discovery 690", scanner=scanner)
        assert read_projection_data(header)[1].scanner.view_offset == 0
        assert any("-5.021 degrees" in text for text in warnings_of(caplog))

    @pytest.mark.parametrize("missing", ["number of rings", "Inner ring diameter", "Average depth", "Distance between"])
    def test_an_unknown_scanner_needs_its_parameters(self, tmp_path, missing):
        scanner = "\n".join(line for line in SCANNER.splitlines() if missing.lower() not in line.lower())
        with pytest.raises(InterfileError, match=rf"data\.hs.*{missing.lower()}.*names no known scanner"):
            read_projection_data(write_projdata_files(tmp_path, scanner=scanner + "\n"))

    def test_missing_and_short_data_files(self, tmp_path):
        header = write_projdata_files(tmp_path)
        data = tmp_path / "data.s"
        data.write_bytes(data.read_bytes()[:-1])
        with pytest.raises(InterfileError) as raised:
            read_projection_data(header)
        for text in (str(header), str(data), "expected 2240 bytes", "found 2239"):
            assert text in str(raised.value)
        data.unlink()
        with pytest.raises(InterfileError) as raised:
            read_projection_data(header)
        for text in (str(header), str(data), "does not exist", "2240 bytes"):
            assert text in str(raised.value)

    @pytest.mark.parametrize("name", [".", "../nowhere/data.s", "a" * 5000, "da\0ta.s"])
    def test_impossible_data_file_names(self, tmp_path, name):
        with pytest.raises(InterfileError, match="does not exist"):
            read_projection_data(write_projdata_files(tmp_path, data=name))

    def test_a_longer_data_file_is_said(self, tmp_path, caplog):
        read_projection_data(write_projdata_files(tmp_path, np.zeros(NUM_BINS + 1)))
        assert "4 bytes more" in warnings_of(caplog)[0]

    @pytest.mark.parametrize(
        ("bad", "number"), [(math.nan, NUMBER_TYPES[6]), (math.inf, NUMBER_TYPES[6]), (1e39, NUMBER_TYPES[7])]
    )
    def test_values_that_are_not_finite_are_refused(self, tmp_path, bad, number):
        values = np.zeros(NUM_BINS)
        values[9] = bad
        header = write_projdata_files(tmp_path, values, number=number)
        with pytest.raises(InterfileError, match=r"data\.s holds 1 values that are not finite.*\(8, 0, 2\)"):
            read_projection_data(header)

    @pytest.mark.parametrize("content", [b"", b"\0" * 3000000, b"!INTERFILE", os.urandom(4096)])
    def test_other_files_are_refused(self, tmp_path, content):
        path = tmp_path / "junk.hs"
        path.write_bytes(content)
        with pytest.raises(InterfileError, match=r"junk\.hs"):
            read_projection_data(path)

    def test_absent_headers_folders_and_data_files_given_as_headers(self, tmp_path):
        for path in (tmp_path / "absent.hs", tmp_path, tmp_path / "a\0b.hs"):
            with pytest.raises(InterfileError, match="cannot read header"):
                read_projection_data(path)
        with pytest.raises(InterfileError, match=r"give its header \(.hs\)"):
            read_projection_data(tmp_path / "data.s")


@pytest.mark.parametrize(("file", "old", "new", "kind", "words"), refused("interfile"))
def test_a_header_that_cannot_be_read_is_refused_by_name_and_key(tmp_path, file, old, new, kind, words):
    image = file == "image"
    header = write_image_files(tmp_path, np.zeros(60)) if image else write_projdata_files(tmp_path)
    with pytest.raises(UnsupportedError if kind == "unsupported" else InterfileError) as raised:
        (read_image if image else read_projection_data)(replace_in(header, old, new))
    for word in [str(header), *words]:
        assert word in str(raised.value)


class TestWrite:
    @pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 5), (4, 7, 6)])
    def test_images_come_back(self, tmp_path, caplog, shape):
        image, geometry = asymmetric(shape), ImageGeometry(shape, (2.03125, 1.7, 2.08626), (-3.0, 4.5, 0.25))
        write_image(tmp_path / "image", image, geometry)
        read, read_geometry = read_image(tmp_path / "image.hv")
        assert torch.equal(read, image)
        assert read_geometry.shape == geometry.shape
        assert read_geometry.voxel_size == pytest.approx(geometry.voxel_size)
        assert read_geometry.origin == pytest.approx(geometry.origin)
        assert warnings_of(caplog) == []

    @pytest.mark.parametrize("scanner", SCANNERS.values(), ids=SCANNERS)
    @pytest.mark.parametrize(("span", "most", "views", "bins"), [(1, 5, 24, 24), (3, 4, 12, 23), (2, 5, 24, 9)])
    @pytest.mark.parametrize("spacing", [None, 2.345])
    def test_projection_data_come_back(self, tmp_path, scanner, span, most, views, bins, spacing):
        geometry = dataclasses.replace(
            ProjDataGeometry.from_scanner(scanner, span, most, views, bins),
            arc_corrected=spacing is not None,
            tangential_spacing=spacing,
            bed_position=(1.5, -200.0),
        )
        data = asymmetric(geometry.shape)
        write_projection_data(tmp_path / "data.hs", data, geometry)
        read, read_geometry = read_projection_data(tmp_path / "data.hs")
        assert torch.equal(read, data)
        assert geometry.differences(read_geometry) == []
        assert read_geometry.bed_position == geometry.bed_position
        assert read_geometry.scanner.blocks == geometry.scanner.blocks
        torch.testing.assert_close(read_geometry.tangential_positions(), geometry.tangential_positions())
        torch.testing.assert_close(read_geometry.view_angles(), geometry.view_angles())

    def test_segments_written_in_another_order_come_back_sorted(self, tmp_path):
        sorted_geometry = ProjDataGeometry.from_scanner(SCANNERS["by parameters"], 1, 2, 24, 9)
        order = [4, 2, 0, 1, 3]
        geometry = dataclasses.replace(sorted_geometry, segments=[sorted_geometry.segments[i] for i in order])
        data = asymmetric(geometry.shape)
        write_projection_data(tmp_path / "data", data, geometry)
        read, read_geometry = read_projection_data(tmp_path / "data.hs")
        assert sorted_geometry.differences(read_geometry) == []
        slices = geometry.segment_slices()
        assert torch.equal(read, torch.cat([data[slices[order.index(i)]] for i in range(5)]))

    @pytest.mark.parametrize("offset", [0, 1])
    def test_shorts_are_exact_for_counts_and_close_for_others(self, tmp_path, offset):
        grid = ImageGeometry((3, 4, 5), (2.0, 1.0, 1.0))
        counts = torch.arange(60.0).reshape(grid.shape) - 7
        layout = ProjDataGeometry.from_scanner(SCANNERS["by parameters"], 1, offset, 24, 9)
        prompts = asymmetric(layout.shape).mul(3).round()
        for scale in (1.0, 1e-6, 12345.6):
            write_image(tmp_path / "image", counts * scale, grid, number_format="short")
            write_projection_data(tmp_path / "data", prompts * scale, layout, number_format="short")
            for read, written in (
                (read_image(tmp_path / "image.hv")[0], counts * scale),
                (read_projection_data(tmp_path / "data.hs")[0], prompts * scale),
            ):
                step = 0.0 if scale == 1 else written.abs().max().item() / 32767
                assert (read - written).abs().max() <= 0.51 * step
        assert (tmp_path / "image.v").stat().st_size == 2 * counts.numel()
        with pytest.raises(InterfileError, match="'float' or 'short', found 'bit'"):
            write_image(tmp_path / "image", counts, grid, number_format="bit")

    def test_a_failure_leaves_the_old_pair(self, tmp_path, monkeypatch):
        geometry = ImageGeometry((2, 3, 3), (1, 1, 1))
        write_image(tmp_path / "image", torch.ones(geometry.shape), geometry)
        with pytest.raises(InterfileError, match="not finite"):
            write_image(tmp_path / "image", torch.full(geometry.shape, math.nan), geometry)

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(InterfileError, match="No space left"):
            write_image(tmp_path / "image", torch.zeros(geometry.shape), geometry)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["image.hv", "image.v"]
        assert (read_image(tmp_path / "image.hv")[0] == 1).all()

    def test_what_cannot_be_written_is_said(self, tmp_path):
        geometry = ImageGeometry((2, 3, 3), (1, 1, 1))
        image = torch.ones(geometry.shape)
        with pytest.raises(InterfileError, match="does not match"):
            write_image(tmp_path / "image", image[:1], geometry)
        with pytest.raises(InterfileError, match=r"must end in '\.hv'"):
            write_image(tmp_path / "image.v", image, geometry)
        with pytest.raises(InterfileError, match=r"folder .*absent does not exist"):
            write_image(tmp_path / "absent" / "image.hv", image, geometry)
        (tmp_path / "taken.v").mkdir()
        with pytest.raises(InterfileError, match=r"taken\.v: it is a folder"):
            write_image(tmp_path / "taken.hv", image, geometry)
        with pytest.raises(InterfileError, match="cannot hold the line"):
            write_image(tmp_path / "two\nlines.hv", image, geometry)
        assert [path.name for path in tmp_path.iterdir()] == ["taken.v"]

    def test_written_files_have_ordinary_permissions(self, tmp_path):
        (tmp_path / "reference").touch()
        write_image(tmp_path / "image", torch.ones(1, 1, 1), ImageGeometry((1, 1, 1), (1, 1, 1)))
        expected = (tmp_path / "reference").stat().st_mode
        assert (tmp_path / "image.hv").stat().st_mode == expected == (tmp_path / "image.v").stat().st_mode
