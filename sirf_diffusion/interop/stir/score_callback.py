"""``prior type := Diffusion Score``: the score prior behind a parameter file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...files.interfile import write_image
from ...geometry.images import ImageGeometry
from ...models import ScoreModel
from ...priors import ScorePenalty
from . import values
from .views import TensorPrior, as_tensor

logger = logging.getLogger("stir_priors")

PER_LEVEL = "number of subiterations per noise level"


class ScorePriorCallback(TensorPrior):
    r"""Gradient of the score penalty without the penalisation factor; ``memory`` begins anew at set-up.

    The noise level may be annealed: the prior counts the gradients that it is asked for, one per subiteration in STIR's
    algorithms, and goes on to the next level after every so many of them (``number of subiterations per noise level``);
    the last level stays. The intensity scale is estimated from the first image that is not uniform, if not given.

    Parameters
    ----------
    options
        Values of the block's keys; 0 for the intensity scale estimates it.
    context
        All keys of the parameter file: levels count from its ``start at subiteration number``.
    """

    def __init__(
        self, options: Mapping[str, Any], context: Mapping[str, str] | None = None, model: ScoreModel | None = None
    ) -> None:
        self.options = options
        first = (context or {}).get("start at subiteration number", "")
        self.done_before = max(int(first) - 1, 0) if first.isdigit() else 0
        self.noise_levels, self.subiterations_per_level = options["noise level"], options[PER_LEVEL]
        if len(self.noise_levels) > 1 and self.subiterations_per_level < 1:
            raise ValueError(f"noise level has {len(self.noise_levels)} values: '{PER_LEVEL}' must be at least 1")
        scale = options["intensity scale"] or None
        self.curvature_depends_on_image = len(self.noise_levels) > 1 or scale is None
        self.num_gradients = self.done_before
        model = model or values.model_of(options)
        looks = {"planes": options["planes"], "intensity_scale": scale, "memory": options["memory"]}
        super().__init__(ScorePenalty(model, self.noise_levels[0], 1.0, **looks))

    def set_patient_position(self, orientation: int, rotation: int) -> None:
        """How the data's patient lies; comes before `set_up`."""
        self.prior.model, self.prior._bound = values.lying(self.prior.model, orientation, rotation), None

    def set_up(self, geometry: ImageGeometry) -> None:
        """Read kappa, place the anatomical image and start at the first noise level."""
        self.num_gradients = self.done_before
        if self.done_before and self.prior.memory:
            logger.warning(
                "the score prior begins at subiteration %d without what it knew before: memory of noise is not kept in "
                "files, so that images differ from those of one uninterrupted run", self.done_before + 1,
            )  # fmt: skip
        self.geometry = geometry
        self.prior.noise_level = self.noise_levels[0]
        kappa = self.options["kappa filename"]
        self.prior.set_kappa(values.image("kappa filename", kappa, geometry) if kappa else None)
        self.prior.model.check_anatomical(geometry)
        self.prior.set_up(geometry)

    def gradient(self, x: np.ndarray, out: np.ndarray) -> None:
        """Gradient at the present noise level, written to a file if asked."""
        self._anneal()
        super().gradient(x, out)
        self.num_gradients += 1
        if prefix := self.options["gradient filename prefix"]:
            write_image(f"{prefix}_{self.num_gradients}.hv", as_tensor(out), self.geometry)

    def curvature(self, x: np.ndarray, out: np.ndarray) -> None:
        r"""The constant :math:`\kappa^2 / (c \sigma)^2` of the noise level at work."""
        self._anneal(ahead=False)
        super().curvature(x, out)

    def _anneal(self, ahead: bool = True) -> None:
        if len(self.noise_levels) == 1:
            return
        # Curvature is asked for after the gradient of the same subiteration, where it was asked for at all.
        done = self.num_gradients if ahead else max(self.num_gradients - 1, self.done_before)
        level = self.noise_levels[min(done // self.subiterations_per_level, len(self.noise_levels) - 1)]
        if level != self.prior.noise_level:
            logger.info("subiteration %d: noise level %g", done + 1, level)
            self.prior.noise_level = level
