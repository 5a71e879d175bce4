"""``prior type := Diffusion Score``: the score prior behind a parameter file."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...geometry.images import ImageGeometry
from ...models import ScoreModel
from ...priors import ScorePenalty
from . import values
from .views import TensorPrior, as_tensor

logger = logging.getLogger("stir_priors")


class ScorePriorCallback(TensorPrior):
    r"""Gradient :math:`\kappa^2\,(x - c\,D(x/c, \sigma)) / (c \sigma)^2`, without the penalisation factor.

    The noise level may be annealed: the prior counts the gradients that it is asked for since set-up, one per
    subiteration in STIR's algorithms, and goes on to the next level after every ``subiterations_per_level`` of them;
    the last level stays. The intensity scale is estimated from the first image that is not uniform, if not given.

    Parameters
    ----------
    model
        Score model, not bound to a grid; a conditional one with its anatomical image (`ScoreModel.guided_by`).
    noise_levels
        One or more noise levels in network units, > 0, in the order of their use.
    subiterations_per_level
        Needed for more than one level.
    planes
        As for `ScoreModel.on`; None leaves the choice to the network and the image.
    intensity_scale
        Image units per network unit; 0 to estimate it.
    kappa_filename
        Image on the grid of the estimate, or empty.
    gradient_filename_prefix
        If given, each gradient is written to ``<prefix>_<n>.hv``.

    Raises
    ------
    ValueError
        For settings out of range.
    """

    def __init__(
        self,
        model: ScoreModel,
        noise_levels: Sequence[float],
        *,
        subiterations_per_level: int = 0,
        planes: str | None = None,
        intensity_scale: float = 0.0,
        kappa_filename: str = "",
        gradient_filename_prefix: str = "",
    ) -> None:
        if len(noise_levels) > 1 and subiterations_per_level < 1:
            raise ValueError(
                f"noise level has {len(noise_levels)} values: 'number of subiterations per noise level' must be at "
                "least 1"
            )
        self.noise_levels = list(noise_levels)
        self.subiterations_per_level = subiterations_per_level
        self.curvature_depends_on_image = len(self.noise_levels) > 1 or intensity_scale == 0
        self.kappa_filename = kappa_filename
        self.gradient_filename_prefix = gradient_filename_prefix
        self.num_gradients = 0
        prior = ScorePenalty(
            model, self.noise_levels[0], 1.0, planes=planes, intensity_scale=intensity_scale or None
        )
        super().__init__(prior)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> ScorePriorCallback:
        """The prior of a block's values."""
        return cls(
            values.model_of(options),
            options["noise level"],
            subiterations_per_level=options["number of subiterations per noise level"],
            planes=options["planes"],
            intensity_scale=options["intensity scale"],
            kappa_filename=options["kappa filename"],
            gradient_filename_prefix=options["gradient filename prefix"],
        )

    def set_up(self, geometry: ImageGeometry) -> None:
        """Read kappa, place the anatomical image and start at the first noise level."""
        self.num_gradients = 0
        self.geometry = geometry
        self.prior.noise_level = self.noise_levels[0]
        kappa = self.kappa_filename
        self.prior.set_kappa(values.image("kappa filename", kappa, geometry) if kappa else None)
        self.prior.model.check_anatomical(geometry)
        self.prior.set_up(geometry)

    def gradient(self, x: np.ndarray, out: np.ndarray) -> None:
        """Gradient at the present noise level, written to a file if asked."""
        self._anneal()
        super().gradient(x, out)
        self.num_gradients += 1
        if self.gradient_filename_prefix:
            from ...files.interfile import write_image

            path = Path(f"{self.gradient_filename_prefix}_{self.num_gradients}.hv")
            write_image(path, as_tensor(out), self.geometry)

    def curvature(self, x: np.ndarray, out: np.ndarray) -> None:
        r"""The constant :math:`\kappa^2 / (c \sigma)^2` of the noise level at work."""
        self._anneal(ahead=False)
        super().curvature(x, out)

    def _anneal(self, ahead: bool = True) -> None:
        if len(self.noise_levels) == 1:
            return
        # Curvature is asked for after the gradient of the same subiteration, where it was asked for at all.
        done = self.num_gradients if ahead else max(self.num_gradients - 1, 0)
        level = self.noise_levels[min(done // self.subiterations_per_level, len(self.noise_levels) - 1)]
        if level != self.prior.noise_level:
            logger.info("subiteration %d: noise level %g", done + 1, level)
            self.prior.noise_level = level
