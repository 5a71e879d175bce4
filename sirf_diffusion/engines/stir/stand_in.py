"""Data and acquisition model of an objective function of STIR's Python module, for the embedded engine to project."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ...files.parfile import ParFile, fold
from ...files.parfile.keys import PROJECTION_DATA
from ..embedded.stand_in import ToolkitData, refusal
from .counts import StirCounts


def toolkit_data(obj: Any, counts_of: Callable[[], StirCounts], to_image: Callable[[Any], Any]) -> ToolkitData:
    """The data; ValueError for list mode, and for what the embedded engine has no counterpart of."""
    if not hasattr(obj, "get_proj_data"):
        raise refusal("list mode data have no sinograms")
    if obj.get_zero_seg0_end_planes():
        raise refusal("'zero end planes of segment 0' has no counterpart")
    data = obj.get_proj_data()
    if data.get_num_tof_poss() > 1:
        raise refusal("these are time-of-flight data")
    text = f"OSMAPOSLParameters :=\nobjective function type := {PROJECTION_DATA}\n{obj.parameter_info()}END :=\n"
    par = ParFile.parse(text, "objective function", strict=False)
    pair = par.objective().key("projector pair type")
    if pair is None or pair.block is None or fold(pair.value) != "matrix":
        raise refusal(f"the projector pair is {'none' if pair is None else pair.value}, not Matrix")
    matrix = pair.block.key("matrix type")
    counts = counts_of()
    factors, background = counts.detected(np.ones(data.size_all())), torch.from_numpy(counts.background)
    return ToolkitData(
        data.write_to_file,
        "matrix type := None" if matrix is None else par.lines_of(matrix),
        torch.from_numpy(counts.prompts),
        torch.from_numpy(factors),
        background,
        lambda x: torch.from_numpy(counts.expected(to_image(x))) - background,
        obj.get_max_segment_num_to_process(),
    )
