"""A few OSEM updates before a run: a first image of the data, the intensity scale, and what they cost."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..engines.objective import EARLY_UPDATES
from ..models import intensity_scale
from ..reconstructors.records import Cost
from .data import Data

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Early:
    """The early image ``[z, y, x]``, the intensity scale, and what they cost."""

    image: Tensor
    scale: float
    cost: Cost

    @classmethod
    def of(cls, data: Data, device: torch.device) -> Early:
        """Of these data."""
        objective = data.objective(EARLY_UPDATES, device)
        objective.sensitivity()
        began, before = time.perf_counter(), Cost.now(objective)
        image = objective.early_image()
        cost = Cost.now(objective) - before
        scale = intensity_scale(image, objective.geometry)
        logger.info("intensity scale %.6g image units", scale)
        cost.total = time.perf_counter() - began
        return cls(image, scale, cost)


def cost_of(record: dict[str, Any], early: Early | None) -> dict[str, Any]:
    """Projections, network evaluations and seconds of a run, the early image included, from the run's record."""
    projections, seconds = dict(record["projections"]), dict(record["seconds"])
    if early is not None:
        projections["forward"] += early.cost.forward
        projections["back"] += early.cost.back
        seconds["intensity_scale"] = early.cost.total
        seconds["total"] += early.cost.total
    known = ("projections", "seconds", "method", "settings", "log_likelihood", "trace")
    details = {key: value for key, value in record.items() if key not in known}
    return {"projections": projections, "seconds": seconds, **details}
