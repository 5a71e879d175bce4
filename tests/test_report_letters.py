"""Letters at the edges of a report's views."""

import pytest

from sirf_diffusion.geometry.exam import ExamInfo
from sirf_diffusion.study.report import edge_letters


@pytest.mark.parametrize(("orientation", "rotation", "transverse", "coronal"), [
    ("head_in", "supine", "APRL", "HFRL"),
    ("head_in", "prone", "PALR", "HFLR"),
    ("feet_in", "supine", "APLR", "FHLR"),
    ("feet_in", "prone", "PARL", "FHRL"),
    ("head_in", "left", None, None),
    ("unknown", "unknown", None, None),
])  # fmt: skip
def test_top_bottom_left_and_right_of_views(orientation, rotation, transverse, coronal):
    found = edge_letters(ExamInfo(orientation=orientation, rotation=rotation))
    assert (found.get("transverse"), found.get("coronal")) == (transverse, coronal)
