"""Exam information: read from headers of data and images, and written back as STIR does."""

import pytest
import torch
from interfile_files import EXAM, SCANNERS, replace_in, write_image_files, write_projdata_files

from sirf_diffusion.files.interfile import (
    InterfileError,
    read_exam_info,
    read_image,
    write_image,
    write_projection_data,
)
from sirf_diffusion.geometry.exam import ExamInfo
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.geometry.projdata import ProjDataGeometry

HEADER = """patient orientation := feet_in
patient rotation := prone
study date := 2017:03:27
study time := 17:00:35.25+0000
calibration factor := 0.00125
radionuclide name[1] := ^18^Fluorine
radionuclide halflife (sec)[1] := 6584.04
radionuclide branching factor[1] := 0.967
number of time frames := 1
image duration (sec)[1] := 600.5
image relative start time (sec)[1] := 30
number of energy windows := 1
energy window lower level[1] := 430
energy window upper level[1] := 610
"""


def test_it_is_read_from_a_header_as_stir_writes_it(tmp_path):
    header = write_projdata_files(tmp_path, system="Siemens mMR", more=HEADER)
    assert read_exam_info(header) == EXAM
    assert read_exam_info(write_projdata_files(tmp_path)) == ExamInfo(originating_system="unknown")


def test_images_and_projection_data_keep_it(tmp_path):
    grid = ImageGeometry((2, 3, 3), (2.0, 1.0, 1.0))
    write_image(tmp_path / "image", torch.ones(grid.shape), grid, exam=EXAM)
    assert read_exam_info(tmp_path / "image.hv") == EXAM
    assert (read_image(tmp_path / "image.hv")[0] == 1).all()
    layout = ProjDataGeometry.from_scanner("Siemens mMR", 1, 0, 12, 9)
    write_projection_data(tmp_path / "data", torch.ones(layout.shape), layout, exam=EXAM)
    assert read_exam_info(tmp_path / "data.hs") == EXAM


def test_an_image_without_any_says_nothing(tmp_path):
    layout = ProjDataGeometry.from_scanner(SCANNERS["by parameters"], 1, 0, 12, 9)
    write_projection_data(tmp_path / "data", torch.ones(layout.shape), layout)
    assert "patient" not in (tmp_path / "data.hs").read_text()


NUCLIDES = ["^18^Fluorine", "18F", "F-18", "f-18", "C-11", "13N", "O-15", "Ga-68", "68Ge", "Y-90", "Zr-89", "Tc-99m",
            "Lu-177", "67Ga", "default", "unknown"]  # fmt: skip


def told_nuclide(folder, name, modality):
    header = write_image_files(folder, range(60))
    numbers = "radionuclide halflife (sec)[1] := 6000\nradionuclide branching factor[1] := 0.5\n"
    replace_in(header, "!imaging modality := PT", f"!imaging modality := {modality}")
    return replace_in(header, "!PET STUDY", f"radionuclide name[1] := {name}\n{numbers}!PET STUDY")


@pytest.mark.parametrize(("modality", "name", "expected"), [
    ("PT", "F-18", ("^18^Fluorine", 6584.04, 0.9686)), ("PT", "18F", ("^18^Fluorine", 6584.04, 0.9686)),
    ("PT", "Zr-89", ("Zr-89", 6000, 0.5)), ("PT", "Tc-99m", ("Tc-99m", 6000, 0.5)), ("MR", "F-18", ("F-18", 6000, 0.5)),
    ("nucmed", "Tc-99m", ("^99m^Technetium", 21624.12, 0.885)), ("PT", "f-18", ("f-18", 6000, 0.5)),
])  # fmt: skip
def test_a_radionuclide_that_stir_knows_has_stirs_numbers(tmp_path, caplog, modality, name, expected):
    found = read_exam_info(told_nuclide(tmp_path, name, modality)).radionuclide
    assert (found.name, found.half_life, found.branching_ratio) == expected
    said = "'radionuclide halflife (sec) := 6000' is not used" in caplog.text
    assert said == (expected[1] != 6000)


@pytest.mark.requires_stir
@pytest.mark.parametrize("modality", ["PT", "nucmed"])
def test_radionuclides_are_those_of_stir(tmp_path, modality):
    import stir

    for name in NUCLIDES:
        header = told_nuclide(tmp_path, name, modality)
        theirs = stir.FloatVoxelsOnCartesianGrid.read_from_file(str(header)).get_exam_info().get_radionuclide()
        if name == "F-18" and modality == "PT" and theirs.get_name() == name:
            pytest.skip("this STIR was built without its data base of radionuclides")
        ours = read_exam_info(header).radionuclide
        found = [theirs.get_half_life(False), theirs.get_branching_ratio(False)]
        assert [ours.half_life, ours.branching_ratio] == pytest.approx(found, rel=1e-6), name
        assert ours.name.lower() == theirs.get_name().lower()


@pytest.mark.parametrize(("key", "word"), [("orientation", "sideways"), ("rotation", "upright")])
def test_words_without_meaning_are_refused(tmp_path, key, word):
    header = replace_in(write_projdata_files(tmp_path), "!GENERAL DATA", f"patient {key} := {word}\n!GENERAL DATA")
    with pytest.raises(InterfileError, match=f"patient {key}.*{word}"):
        read_exam_info(header)
    with pytest.raises(ValueError, match=f"{key} must be one of"):
        ExamInfo(**{key: word})
