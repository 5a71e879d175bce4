"""OSMAPOSL with the names and semantics of ``sirf.STIR``."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ...reconstructors.em.osmaposl import make_positive
from .containers import error, missing
from .data import AcquisitionData, ImageData
from .objective import PoissonLogLikelihoodWithLinearModelForMeanAndProjData, acquisition_ratio

logger = logging.getLogger(__name__)

SMALL = 1e-6


class OSMAPOSLReconstructor:
    """STIR's OSMAPOSL: OSEM with a one-step-late penalty (Green 1990, doi:10.1109/42.52985), additive form.

    ``x A_k^T(y / q) / clip(s_k + grad / num_subsets, s_k / 10, 10 s_k)``. A strong penalty saturates the clip: how
    often is logged once per run. For an exact maximum use :class:`sirf_diffusion.MAPEM`.
    """

    __getattr__ = missing

    def __init__(self, filename: str = "") -> None:
        if filename:
            raise error(f"parameter file {filename!r}: this engine reads none; set the reconstructor up in Python")
        self._objective: PoissonLogLikelihoodWithLinearModelForMeanAndProjData | None = None
        self._num_subsets = 1
        self._num_subiterations = 1
        self._subiteration_num = 1
        self._limits = (0.0, float("inf"))
        self._image: ImageData | None = None
        self._set_up = False
        self._clipped: list[float] = []

    def set_objective_function(self, obj: PoissonLogLikelihoodWithLinearModelForMeanAndProjData) -> None:
        self._objective, self._set_up = obj, False

    def get_objective_function(self) -> PoissonLogLikelihoodWithLinearModelForMeanAndProjData | None:
        return self._objective

    def set_input(self, input_data: AcquisitionData) -> None:
        self._required().set_acquisition_data(input_data)
        self._set_up = False

    def set_num_subsets(self, n: int) -> None:
        if n < 1:
            raise error(f"num_subsets must be at least 1, found {n}")
        self._num_subsets, self._set_up = int(n), False

    def get_num_subsets(self) -> int:
        return self._num_subsets

    def set_num_subiterations(self, n: int) -> None:
        """Updates made by :meth:`process`; each uses one subset."""
        if n < 1:
            raise error(f"num_subiterations must be at least 1, found {n}")
        self._num_subiterations = int(n)

    def get_num_subiterations(self) -> int:
        return self._num_subiterations

    def get_subiteration_num(self) -> int:
        """Number of the next update, from 1."""
        return self._subiteration_num

    def set_maximum_relative_change(self, value: float) -> None:
        """Largest factor that an update after the first may multiply a voxel by."""
        self._limits = (self._limits[0], float(value))

    def set_minimum_relative_change(self, value: float) -> None:
        """Smallest factor that an update after the first may multiply a voxel by."""
        self._limits = (float(value), self._limits[1])

    def set_up(self, image: ImageData) -> None:
        """Set the objective function up; raises values of the image that are not positive, in place, as STIR does."""
        image.tensor.copy_(make_positive(image.tensor))
        objective = self._required()
        objective.set_num_subsets(self._num_subsets)
        objective.set_up(image)
        if risk := self._prepare():
            logger.warning("OSMAPOSL: %s", risk)
        self._subiteration_num, self._set_up = 1, True

    def set_current_estimate(self, image: ImageData) -> None:
        """Image to start from; copied. A prior with memory begins anew."""
        self._image = image.clone()
        self._begin_anew()

    def get_current_estimate(self) -> ImageData:
        if self._image is None:
            raise error("current estimate not set")
        return self._image.clone()

    get_output = get_current_estimate

    def process(self) -> None:
        """Make all updates, from the current estimate."""
        if self._image is None:
            raise error("current estimate not set: call set_current_estimate(image) or reconstruct(image)")
        self._run(self._image)

    def reconstruct(self, image: ImageData) -> None:
        """Make all updates on ``image``, in place. A prior with memory begins anew."""
        self._begin_anew()
        self._run(image)

    def _begin_anew(self) -> None:
        if self._objective is not None and self._objective.penalty is not None:
            self._objective.penalty.forget()
            if self._set_up:
                self._prepare()

    def _prepare(self) -> str:
        penalty, likelihood = self._required().penalty, self._required().log_likelihood
        if penalty is None:
            return ""
        return penalty.prepare_one_step_late(likelihood.sensitivity(), penalty.penalisation_factor)

    def _run(self, image: ImageData) -> None:
        self._image, self._subiteration_num, self._clipped = image, 1, []
        image.tensor.copy_(make_positive(image.tensor))
        for _ in range(self._num_subiterations):
            self.update_current_estimate()
        if self._clipped and max(self._clipped) > 0:
            logger.warning(
                "OSMAPOSL: up to %.2g %% of the voxels had their one-step-late denominator clipped to [s/10, 10 s]; "
                "the result does not maximise the objective there. Use a smaller penalisation factor or MAPEM",
                100 * max(self._clipped),
            )

    def update_current_estimate(self) -> None:
        if self._image is None:
            raise error("current estimate not set")
        if not self._set_up:
            raise error("OSMAPOSLReconstructor.set_up() call missing, or a setting was changed after it")
        self._image.tensor.copy_(self._updated(self._image.tensor))
        self._subiteration_num += 1

    def update(self, image: ImageData) -> ImageData:
        """Make one update of an image in place, and return it."""
        self._image = image
        self.update_current_estimate()
        return image

    def _updated(self, x: Tensor) -> Tensor:
        objective = self._required()
        subset = (self._subiteration_num - 1) % self._num_subsets if self._num_subsets > 1 else None
        sensitivity = objective.log_likelihood.sensitivity(subset)
        denominator = sensitivity
        if objective.penalty is not None:
            wanted = sensitivity + objective.penalty.gradient(x) / self._num_subsets
            denominator = torch.minimum(torch.maximum(wanted, sensitivity / 10), 10 * sensitivity)
            seen = sensitivity > 0
            self._clipped.append(float((denominator != wanted)[seen].float().mean()))
        ratio = acquisition_ratio(objective.log_likelihood, x, subset)
        seen = denominator > SMALL * denominator.max()
        factor = torch.where(
            seen, ratio / torch.where(seen, denominator, torch.ones_like(ratio)), torch.zeros_like(ratio)
        )
        if self._subiteration_num > 1:
            factor = factor.clamp(*self._limits)
        return x * factor

    def _required(self) -> PoissonLogLikelihoodWithLinearModelForMeanAndProjData:
        if self._objective is None:
            raise error("objective function not set: call set_objective_function() first")
        return self._objective
