"""A few OSEM updates before a run: a first image of the data, the intensity scale, and what they cost."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..engines.objective import EARLY_UPDATES, Objective
from ..models import intensity_scale
from .data import Data

logger = logging.getLogger(__name__)


@dataclass
class Early:
    """The early image ``[z, y, x]``, the intensity scale, and projections and seconds that they took."""

    image: Tensor
    scale: float
    forward: float = 0.0
    back: float = 0.0
    seconds: float = 0.0

    @classmethod
    def of(cls, data: Data, device: torch.device, adaptation: Any, num_subsets: int) -> Early:
        """Of these data; tells an adaptation that wants it the likelihood of the truth, if the method's subsets are
        not halves from which it can find that by itself.
        """
        objective = data.objective(EARLY_UPDATES, device)
        objective.sensitivity()
        early = cls(torch.empty(0), 0.0)
        with early._counting(objective):
            early.image = objective.early_image()
        early.scale = intensity_scale(early.image, objective.geometry)
        logger.info("intensity scale %.6g image units", early.scale)
        halves = data.objective(2, device) if num_subsets % 2 and getattr(adaptation, "needs_target", False) else None
        if halves is not None and halves.num_subsets % 2 == 0:
            from ..reconstructors.diffusion.likelihood_schedule import truth_log_likelihood

            with early._counting(halves):
                adaptation.offer_target(truth_log_likelihood(halves))
        return early

    @contextmanager
    def _counting(self, objective: Objective) -> Iterator[None]:
        began, before = time.perf_counter(), replace(objective.counter)
        yield
        self.forward += objective.counter.forward - before.forward
        self.back += objective.counter.back - before.back
        self.seconds += time.perf_counter() - began
