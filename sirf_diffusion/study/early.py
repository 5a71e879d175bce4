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
    def of(cls, data: Data, device: torch.device, adaptation: Any, num_subsets: int) -> Early:
        """Of these data; tells an adaptation that wants it the likelihood of the truth, if the method's subsets are
        not halves from which it can find that by itself.
        """
        objective = data.objective(EARLY_UPDATES, device)
        objective.sensitivity()
        began, before = time.perf_counter(), Cost.now(objective)
        image = objective.early_image()
        cost = Cost.now(objective) - before
        scale = intensity_scale(image, objective.geometry)
        logger.info("intensity scale %.6g image units", scale)
        halves = data.objective(2, device) if num_subsets % 2 and getattr(adaptation, "needs_target", False) else None
        if halves is not None and halves.num_subsets % 2 == 0:
            from ..reconstructors.diffusion.likelihood_schedule import truth_log_likelihood

            before = Cost.now(halves)
            adaptation.offer_target(truth_log_likelihood(halves))
            cost += Cost.now(halves) - before
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
