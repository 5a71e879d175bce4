"""Exam information: read from headers of data and images, and written back as STIR does."""

from datetime import datetime, timezone

import pytest
import torch
from interfile_files import SCANNERS, replace_in, write_projdata_files

from sirf_diffusion.files.interfile import (
    InterfileError,
    read_exam_info,
    read_image,
    write_image,
    write_projection_data,
)
from sirf_diffusion.geometry.exam import ExamInfo, Radionuclide
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.geometry.projdata import ProjDataGeometry

EXAM = ExamInfo(
    orientation="feet_in",
    rotation="prone",
    originating_system="Siemens mMR",
    time_frames=((30.0, 600.5),),
    start_time=datetime(2017, 3, 27, 17, 0, 35, 250000, tzinfo=timezone.utc),
    radionuclide=Radionuclide("^18^Fluorine", half_life=6584.04, branching_ratio=0.967),
    calibration_factor=1.25e-3,
    energy_window=(430.0, 610.0),
)
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


@pytest.mark.parametrize(("key", "word"), [("orientation", "sideways"), ("rotation", "upright")])
def test_words_without_meaning_are_refused(tmp_path, key, word):
    header = replace_in(write_projdata_files(tmp_path), "!GENERAL DATA", f"patient {key} := {word}\n!GENERAL DATA")
    with pytest.raises(InterfileError, match=f"patient {key}.*{word}"):
        read_exam_info(header)
    with pytest.raises(ValueError, match=f"{key} must be one of"):
        ExamInfo(**{key: word})
