"""Intervals of posterior samples that hold the truth as often as they say: factors of the model's table, applied."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from torch import Tensor

from ..engines.em import trues_per_plane
from ..engines.objective import Objective
from ..models.intervals import NOMINAL, IntervalTable, NotCalibrated
from .fitness import OUT

logger = logging.getLogger(__name__)

#: Standard deviations on each side of the mean that hold 95 % of a normal distribution.
NORMAL = 1.96


def interval_record(
    study: Any, table: IntervalTable, objective: Objective, image: Tensor, record: dict[str, Any]
) -> dict[str, Any]:
    """What holds of the intervals of a run, for its record; said in the log, too.

    ``voxels`` and ``vois`` are the factors with which ``mean +- factor SD`` of the samples covers 95 %, and
    ``uncertainty_over_sd`` is ``voxels / 1.96``. Where the table of the model does not hold, the record says ``why``.

    Parameters
    ----------
    study, table
        The `~sirf_diffusion.study.reconstruction.Study`, and the table of its model.
    objective, image
        The data, and the image handed out.
    record
        Of the run: its method, samples, settings, trace, and what the check said.
    """
    trues, grid = trues_per_plane(objective, image), objective.geometry
    told: dict[str, Any] = {"probability": NOMINAL, "trues_per_plane": trues}
    try:
        kind = "volumes" if grid.shape[0] > 1 else "slices"
        factors = table.factors(study.method, kind, record["num_samples"], grid.voxel_size, record["values"])
        voxels, vois = factors.at(trues)
        _check_alike(study, record)
    except NotCalibrated as reason:
        if study.members is None:  # a share is a part of a run, and what puts the parts together says what holds
            _say_once(str(reason))
        return told | {"calibrated": False, "why": str(reason), "uncertainty_over_sd": 1.0}
    ratio = voxels / NORMAL
    logger.info("intervals are calibrated: uncertainty is %.3g x the samples' SD (%s)", ratio, table.file)
    used = {"voxels": voxels, "vois": vois, "uncertainty_over_sd": ratio}
    return told | {"calibrated": True, **used, "table": {"file": table.file, "sha256": table.sha256}}


@cache
def _say_once(reason: str) -> None:
    logger.warning("intervals are not calibrated: %s; uncertainty is the samples' SD alone", reason)


def _check_alike(study: Any, record: dict[str, Any]) -> None:
    """NotCalibrated if the run is unlike those of every table, which settings do not tell."""
    check = record["distribution"]
    reasons = {
        "the network was adapted to the data": "adaptation" in record or study.adaptation is not None,
        "the network saw an anatomical image": record["anatomical"] is not None,
        "the run was started from a given image": study.initial is not None,
        "these are some of the samples only": study.members is not None,
        "the run was ended before its last step": len(record["trace"]) < record["values"].get("num_steps", 0),
        "the check after the run finds the image out of distribution": check is not None and check["verdict"] == OUT,
    }
    for reason, holds in reasons.items():
        if holds:
            raise NotCalibrated(reason)
