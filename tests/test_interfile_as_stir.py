"""Interfile by STIR's rules: variations of headers against what the real STIR made of them, and headers of others."""

import csv
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from header_variations import cell, cells_agree, our_numbers, variations, write_base
from interfile_files import replace_in, warnings_of, write_image_files, write_projdata_files

from sirf_diffusion.files.interfile import (
    InterfileError,
    UnsupportedError,
    read_exam_info,
    read_image,
    read_projection_data,
    read_projection_data_geometry,
    write_image,
)
from sirf_diffusion.patient import UnusableImage, read_source

TABLE = list(csv.DictReader((Path(__file__).parent / "reference" / "header_table.csv").open(encoding="utf-8")))


@pytest.mark.parametrize("kind", ["image", "projdata"])
def test_a_header_gives_stirs_numbers_or_is_refused(tmp_path, kind):
    rows = {row["variation"]: row for row in TABLE if row["file"] == kind}
    header = write_base(tmp_path, kind)
    text, base = header.read_text(encoding="utf-8"), our_numbers(header, kind)
    wrong, refused = [], 0
    for name, changed in variations(text):
        header.write_bytes(changed.encode())
        try:
            ours = cell(our_numbers(header, kind), base)
        except InterfileError:
            ours, refused = "refused", refused + 1
        if not cells_agree(ours, rows[name]["ours"]) or not (
            ours == "refused" or cells_agree(ours, rows[name]["STIR"])
        ):
            wrong.append((name, ours, rows[name]))
    assert wrong == []
    assert len(rows) > 300
    assert refused < len(rows) / 2


def test_the_table_has_no_silent_difference():
    assert [row for row in TABLE if row["ours"] != "refused" and not cells_agree(row["ours"], row["STIR"])] == []


@pytest.mark.parametrize("dialect", ["pet-rd-tools", "Siemens"])
@pytest.mark.parametrize("units", ["1/cm", "Bq/ml"])
def test_mu_maps_of_siemens_and_their_tools(tmp_path, dialect, units):
    values = np.arange(60.0).reshape(3, 4, 5)
    header = write_image_files(tmp_path, values, more=f"quantification units := {units}\n")
    if dialect == "Siemens":
        header = header.rename(tmp_path / "mu.v.hdr")
        replace_in(header, "scaling factor", "scale factor")
        replace_in(header, "!version of keys", "%SMS-MI version number := 3.4\n!version of keys")
        replace_in(header, "image duration (sec)[1] := 60", "image duration (sec) := 0\ndata offset in bytes[2] := 0")
    image, geometry = read_image(header)
    assert np.array_equal(image.numpy(), values)
    assert geometry.voxel_size == (2.03125, 2.5, 2.08626)
    position = "FFP" if units == "1/cm" else "HFDR"
    replace_in(header, "patient orientation := head_in", f"%patient orientation := {position}")
    if position == "FFP":
        assert read_source(header).position == ("feet_in", "prone")
    else:
        with pytest.raises(UnusableImage, match=r"must be one of .*HFS.*'HFDR'"):
            read_source(header)


INTERFILE_33 = """!INTERFILE :=
!imaging modality := nucmed
{program}!version of keys := 3.3
!name of data file := a.i33
data offset in bytes := 0
!GENERAL IMAGE DATA :=
!type of data := Tomographic
!total number of images := 3
imagedata byte order := LITTLEENDIAN
!number format := {number}
!number of bytes per pixel := {bytes}
!process status := Reconstructed
!matrix size [1] := 5
!matrix size [2] := 6
scaling factor (mm/pixel) [1] := +2.000000+00
scaling factor (mm/pixel) [2] := +3.000000e+00
!number of slices := 3
slice thickness (pixels) := +1.500000
NUD/Patient Weight [kg] := 70.0
!END OF INTERFILE :=
"""


class TestInterfile33:
    @pytest.mark.parametrize(
        ("number", "dtype", "program", "dz"),
        [
            ("short float", "<f4", "", 1.5),
            ("long float", "<f8", "", 1.5),
            ("signed integer", "<i2", "conversion program := (X)MedCon\n", 3.75),  # in mean pixels, as the standard
        ],
    )
    def test_single_images_are_read(self, tmp_path, caplog, number, dtype, program, dz):
        values = np.arange(90).reshape(3, 6, 5)
        header = self.write(tmp_path, values.astype(dtype), number=number, program=program)
        image, geometry = read_image(header)
        assert np.array_equal(image.numpy(), values)
        assert geometry.voxel_size == (dz, 3.0, 2.0)
        assert "slice thickness (pixels)" in warnings_of(caplog)[0]  # how it was understood
        assert read_exam_info(replace_in(header, "!GENERAL", "patient rotation := prone\n!GENERAL")).rotation == "prone"

    @pytest.mark.parametrize(("old", "new", "message"), [
        ("images := 3", "images := 6", "differ"),
        ("status := Reconstructed", "status := Acquired", "acquisition in Interfile 3.3"),
        ("images := 3", "images := 3\nnumber of energy windows := 2", "number of energy windows := 2"),
        ("images := 3", "images := 3\nslice orientation := Sagittal", "Sagittal"),
        ("images := 3", "images := 3\nmatrix initial element [1] := left", "left"),
        ("images := 3", "images := 3\nNUD/rescale slope := 2", "rescale slope"),
        ("(pixels) := +1.500000", "(pixels) := 1.0", "one pixel, or 1 mm"),
    ])  # fmt: skip
    def test_what_is_no_single_image_is_refused_by_name(self, tmp_path, old, new, message):
        header = replace_in(self.write(tmp_path, np.zeros(90, "<f4")), old, new)
        with pytest.raises(InterfileError, match=message):
            read_image(header)

    @staticmethod
    def write(folder, values, number="short float", program=""):
        values.tofile(folder / "a.i33")
        header = folder / "a.h33"
        header.write_text(INTERFILE_33.format(number=number, bytes=values.dtype.itemsize, program=program))
        return header


@pytest.mark.parametrize("key", ["data rescale slope := 0.5", "data rescale offset := 3", "rescale slope[2] := 2"])
def test_scales_that_stir_does_not_know_are_refused(tmp_path, key):
    with pytest.raises(InterfileError, match="is not obeyed"):
        read_image(write_image_files(tmp_path, np.ones(60), more=key + "\n"))


def test_zeros_that_stir_wrote_as_shorts(tmp_path):
    more = "image scaling factor[1] := -0\nquantification units := -0\n"
    image, _ = read_image(write_image_files(tmp_path, np.zeros(60), number=("signed integer", 2, "i2"), more=more))
    assert (image == 0).all()
    write_image(tmp_path / "zeros", torch.zeros(image.shape), read_image(tmp_path / "image.hv")[1], "short")
    assert (read_image(tmp_path / "zeros.hv")[0] == 0).all()


@pytest.mark.parametrize("name", ["data.hs", "absent.s"])
def test_templates_whose_data_are_the_header_or_absent(tmp_path, name):
    header = write_projdata_files(tmp_path)
    geometry = read_projection_data(header)[1]
    replace_in(header, "data.s", name)
    assert read_projection_data_geometry(header) == geometry
    with pytest.raises(InterfileError, match=r"too short|does not exist"):
        read_projection_data(header)


class TestHostileHeaders:
    @pytest.mark.parametrize(("kind", "old", "new"), [
        ("image", "matrix size [3] := 3", "matrix size [3] := 100000000"),
        ("image", "matrix size [1] := 5", "matrix size [1] := 99999999999999999"),
        ("projdata", "Number of rings                          := 4", "Number of rings := 1000000000"),
        ("projdata", "per ring             := 32", "per ring := 2000000000"),
        ("projdata", "{ 3,4,3}", "{ 3,2000000000,3}"),
    ])  # fmt: skip
    def test_sizes_are_checked_before_memory_is_taken(self, tmp_path, kind, old, new):
        import resource

        header = replace_in(write_base(tmp_path, kind), old, new)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(InterfileError):
            read_image(header) if kind == "image" else read_projection_data(header)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB

    @pytest.mark.parametrize("line", ["[" * 400_000, "a:" * 200_000, "${" * 200_000, ("x\\\n") * 200_000])
    def test_long_lines_take_no_longer_than_their_length(self, tmp_path, line, caplog):
        caplog.set_level(logging.ERROR)
        header = write_image_files(tmp_path, np.zeros(60), more=line + "\n")
        assert (read_image(header)[0] == 0).all()

    def test_only_regular_files_of_bounded_headers(self, tmp_path):
        import os

        os.mkfifo(tmp_path / "pipe.hv")
        with pytest.raises(InterfileError, match="no regular file"):
            read_image(tmp_path / "pipe.hv")
        header = write_image_files(tmp_path, np.zeros(60), more="; note\n" * 200_000)
        with pytest.raises(InterfileError, match="END OF INTERFILE"):
            read_image(header)


def test_time_of_flight_is_refused_and_its_scanners_key_is_not(tmp_path):
    old = "number of dimensions"
    header = replace_in(write_projdata_files(tmp_path), old, f"TOF mashing factor := 13\n{old}")
    assert read_projection_data(header)[1].num_views == 8
    with pytest.raises(UnsupportedError, match="number of dimensions := 5"):
        read_projection_data(replace_in(header, "number of dimensions := 4", "number of dimensions := 5"))


def test_words_do_not_replace_a_number_that_was_given_before(tmp_path):
    lines = "energy window lower level[1] := 425\nenergy window lower level[1] := junk\n"
    header = write_image_files(tmp_path, np.zeros(60), more=f"{lines}energy window upper level[1] := 650\n")
    assert read_exam_info(header).energy_window == (425, 650)
