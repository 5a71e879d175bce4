"""Priors, objective function and OSMAPOSL with the names and semantics of ``sirf.STIR``."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from ...priors import Prior as Penalty
from ...priors import QuadraticPrior as Quadratic
from ...priors import RelativeDifferencePrior as RelativeDifference
from .poisson import PoissonObjective
from .sirf_data import AcquisitionData, ImageData, error
from .sirf_models import AcquisitionModelUsingRayTracingMatrix

logger = logging.getLogger(__name__)

SMALL = 1e-6


class Prior:
    """A penalty, subtracted from the log-likelihood by the objective function that it is given to."""

    def __init__(self) -> None:
        self._penalisation_factor = 0.0
        self._kappa: ImageData | None = None
        self._penalty: Penalty | None = None

    def set_penalisation_factor(self, value: float) -> Prior:
        """Factor in front of the penalty (STIR's default: 0)."""
        self._penalisation_factor = float(value)
        if self._penalty is not None:
            self._penalty.penalisation_factor = self._penalisation_factor
        return self

    def get_penalisation_factor(self) -> float:
        """Factor in front of the penalty."""
        return self._penalisation_factor

    def set_kappa(self, image: ImageData) -> None:
        """Image that scales the penalty locally; may be changed after ``set_up``."""
        self._kappa = image
        if self._penalty is not None:
            self._penalty.set_kappa(image.tensor)

    def get_kappa(self) -> ImageData | None:
        """The image given to :meth:`set_kappa`, or None."""
        return self._kappa

    def set_up(self, image: ImageData) -> None:
        """Prepare for images of this geometry."""
        self._penalty = self._make(image, None if self._kappa is None else self._kappa.tensor)

    @property
    def penalty(self) -> Penalty:
        """The penalty as a function of tensors, for this package's reconstructors."""
        if self._penalty is None:
            raise error(f"{type(self).__name__}.set_up() call missing")
        return self._penalty

    def get_value(self, image: ImageData) -> float:
        """Value of the penalty, penalisation factor included."""
        return float(self.penalty.value(image.tensor))

    value = get_value
    __call__ = get_value

    def get_gradient(self, image: ImageData, out: ImageData | None = None) -> ImageData:
        """Gradient of the penalty, penalisation factor included."""
        return _into(self.penalty.gradient(image.tensor), image, out)

    gradient = get_gradient

    def multiply_with_Hessian(
        self, current_estimate: ImageData, input_: ImageData, out: ImageData | None = None
    ) -> ImageData:
        """Hessian of the penalty at an image, times another image."""
        return _into(self.penalty.hessian_times(current_estimate.tensor, input_.tensor), current_estimate, out)

    def _make(self, image: ImageData, kappa: Tensor | None) -> Penalty:
        raise NotImplementedError


class RelativeDifferencePrior(Prior):
    """See :class:`sirf_diffusion.priors.RelativeDifferencePrior`; STIR's defaults (gamma 2, epsilon 0)."""

    def __init__(self) -> None:
        super().__init__()
        self._gamma, self._epsilon = 2.0, 0.0

    def set_gamma(self, v: float) -> None:
        """Edge preservation; takes effect at the next ``set_up``."""
        self._gamma, self._penalty = float(v), None

    def get_gamma(self) -> float:
        """Edge preservation."""
        return self._gamma

    def set_epsilon(self, v: float) -> None:
        """Offset in image units; takes effect at the next ``set_up``."""
        self._epsilon, self._penalty = float(v), None

    def get_epsilon(self) -> float:
        """Offset in image units."""
        return self._epsilon

    def compute_Hessian_diagonal(self, image: ImageData) -> ImageData:
        """Diagonal of the Hessian, penalisation factor included."""
        return _into(self.penalty.hessian_diagonal(image.tensor), image, None)

    def _make(self, image: ImageData, kappa: Tensor | None) -> Penalty:
        factor = self._penalisation_factor
        return RelativeDifference(image.geometry, factor, gamma=self._gamma, epsilon=self._epsilon, kappa=kappa)


class QuadraticPrior(Prior):
    """See :class:`sirf_diffusion.priors.QuadraticPrior`."""

    def _make(self, image: ImageData, kappa: Tensor | None) -> Penalty:
        return Quadratic(image.geometry, self._penalisation_factor, kappa=kappa)


class PoissonLogLikelihoodWithLinearModelForMeanAndProjData:
    """Poisson log-likelihood minus penalty.

    Gradients of subsets are not scaled; each contains its share of the penalty's.
    """

    def __init__(self) -> None:
        self._data: AcquisitionData | None = None
        self._acquisition_model: AcquisitionModelUsingRayTracingMatrix | None = None
        self._prior: Prior | Penalty | None = None
        self._num_subsets = 1
        self._likelihood: PoissonObjective | None = None

    def set_acquisition_data(self, ad: AcquisitionData) -> None:
        """The measured prompts."""
        if not isinstance(ad, AcquisitionData):
            raise error(f"expected AcquisitionData, found {type(ad).__name__}")
        self._data, self._likelihood = ad, None

    def set_acquisition_model(self, am: AcquisitionModelUsingRayTracingMatrix) -> None:
        """The model of the expected counts."""
        if not isinstance(am, AcquisitionModelUsingRayTracingMatrix):
            raise error(f"expected AcquisitionModelUsingRayTracingMatrix, found {type(am).__name__}")
        self._acquisition_model, self._likelihood = am, None

    def set_num_subsets(self, n: int) -> None:
        """Number of subsets of views; takes effect at the next ``set_up``."""
        if n != self._num_subsets:
            self._num_subsets, self._likelihood = int(n), None

    def get_num_subsets(self) -> int:
        """Number of subsets of views."""
        return self._num_subsets

    def set_prior(self, prior: Prior | Penalty) -> None:
        """The penalty: one of this module's, or any :class:`sirf_diffusion.priors.Prior`, e.g. a score prior."""
        if not isinstance(prior, (Prior, Penalty)):
            raise error(f"expected a prior, found {type(prior).__name__}")
        self._prior = prior

    def get_prior(self) -> Prior | Penalty | None:
        """The penalty, or None."""
        return self._prior

    def set_up(self, image: ImageData) -> None:
        """Prepare for images of this geometry."""
        if self._data is None or self._acquisition_model is None:
            raise error("objective function needs acquisition data and an acquisition model before set_up()")
        self._acquisition_model.set_up(self._data, image)
        model = self._acquisition_model.linear_model
        self._likelihood = PoissonObjective(model, self._data.tensor, self._num_subsets)
        if isinstance(self._prior, Prior):
            self._prior.set_up(image)

    @property
    def log_likelihood(self) -> PoissonObjective:
        """The log-likelihood without penalty, for this package's reconstructors."""
        if self._likelihood is None:
            raise error("objective function is not set up (or was changed since): call set_up(image)")
        return self._likelihood

    @property
    def penalty(self) -> Penalty | None:
        """The penalty as a function of tensors, or None without one or with penalisation factor 0."""
        penalty = self._prior.penalty if isinstance(self._prior, Prior) else self._prior
        return None if penalty is None or penalty.penalisation_factor == 0 else penalty

    def value(self, image: ImageData) -> float:
        """Log-likelihood minus penalty."""
        value = float(self.log_likelihood.value(image.tensor))
        return value if self.penalty is None else value - float(self.penalty.value(image.tensor))

    get_value = value
    __call__ = value

    def gradient(self, image: ImageData, subset: int = -1, out: ImageData | None = None) -> ImageData:
        """Gradient of a subset minus ``1 / num_subsets`` of the penalty's; of all data for subset -1."""
        result = self.log_likelihood.gradient(image.tensor, None if subset < 0 else subset)
        if self.penalty is not None:
            share = 1 if subset < 0 else 1 / self._num_subsets
            result = result - share * self.penalty.gradient(image.tensor)
        return _into(result, image, out)

    def get_gradient(self, image: ImageData, out: ImageData | None = None) -> ImageData:
        """Gradient of all data."""
        return self.gradient(image, -1, out)

    def get_subset_gradient(self, image: ImageData, subset: int, out: ImageData | None = None) -> ImageData:
        """Gradient of one subset."""
        return self.gradient(image, subset, out)

    def get_subset_sensitivity(self, subset: int) -> ImageData:
        """Sensitivity of one subset."""
        likelihood = self.log_likelihood
        return ImageData.of(likelihood.sensitivity(subset if self._num_subsets > 1 else None), likelihood.geometry)

    def get_backprojection_of_acquisition_ratio(
        self, image: ImageData, subset: int, out: ImageData | None = None
    ) -> ImageData:
        """Back-projection of measured over expected counts of one subset."""
        return _into(_ratio(self.log_likelihood, image.tensor, self._subset(subset)), image, out)

    def _subset(self, subset: int) -> int | None:
        return subset if self._num_subsets > 1 else None


class OSMAPOSLReconstructor:
    """STIR's OSMAPOSL: OSEM with a one-step-late penalty (Green 1990, doi:10.1109/42.52985), additive form.

    ``x A_k^T(y / q) / clip(s_k + grad / num_subsets, s_k / 10, 10 s_k)``. A strong penalty saturates the clip: how
    often is logged once per run. For an exact maximum use :class:`sirf_diffusion.MAPEM`.
    """

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
        """The objective function to maximise."""
        self._objective, self._set_up = obj, False

    def get_objective_function(self) -> PoissonLogLikelihoodWithLinearModelForMeanAndProjData | None:
        """The objective function."""
        return self._objective

    def set_input(self, input_data: AcquisitionData) -> None:
        """The measured prompts."""
        self._required().set_acquisition_data(input_data)
        self._set_up = False

    def set_num_subsets(self, n: int) -> None:
        """Number of subsets of views."""
        if n < 1:
            raise error(f"num_subsets must be at least 1, found {n}")
        self._num_subsets, self._set_up = int(n), False

    def get_num_subsets(self) -> int:
        """Number of subsets of views."""
        return self._num_subsets

    def set_num_subiterations(self, n: int) -> None:
        """Updates made by :meth:`process`; each uses one subset."""
        if n < 1:
            raise error(f"num_subiterations must be at least 1, found {n}")
        self._num_subiterations = int(n)

    def get_num_subiterations(self) -> int:
        """Updates made by :meth:`process`."""
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
        """Prepare for images of this geometry."""
        objective = self._required()
        objective.set_num_subsets(self._num_subsets)
        objective.set_up(image)
        self._subiteration_num, self._set_up = 1, True

    def set_current_estimate(self, image: ImageData) -> None:
        """Image to start from; copied."""
        self._image = image.clone()

    def get_current_estimate(self) -> ImageData:
        """A copy of the current image."""
        if self._image is None:
            raise error("current estimate not set")
        return self._image.clone()

    get_output = get_current_estimate

    def process(self) -> None:
        """Make all updates, from the current estimate."""
        if self._image is None:
            raise error("current estimate not set: call set_current_estimate(image) or reconstruct(image)")
        self.reconstruct(self._image)

    def reconstruct(self, image: ImageData) -> None:
        """Make all updates on ``image``, in place."""
        self._image, self._subiteration_num, self._clipped = image, 1, []
        make_positive(image.tensor)
        for _ in range(self._num_subiterations):
            self.update_current_estimate()
        if self._clipped and max(self._clipped) > 0:
            logger.warning(
                "OSMAPOSL: up to %.2g %% of the voxels had their one-step-late denominator clipped to [s/10, 10 s]; "
                "the result does not maximise the objective there. Use a smaller penalisation factor or MAPEM",
                100 * max(self._clipped),
            )

    def update_current_estimate(self) -> None:
        """Make one update of the current estimate."""
        if self._image is None:
            raise error("current estimate not set")
        if not self._set_up:
            raise error("OSMAPOSLReconstructor.set_up() call missing, or a setting was changed after it")
        self._image.fill(self._updated(self._image))
        self._subiteration_num += 1

    def update(self, image: ImageData) -> ImageData:
        """Make one update of an image in place, and return it."""
        self._image = image
        self.update_current_estimate()
        return image

    def _updated(self, image: ImageData) -> ImageData:
        objective, x = self._required(), image.tensor
        subset = (self._subiteration_num - 1) % self._num_subsets if self._num_subsets > 1 else None
        sensitivity = objective.log_likelihood.sensitivity(subset)
        denominator = sensitivity
        if objective.penalty is not None:
            wanted = sensitivity + objective.penalty.gradient(x) / self._num_subsets
            denominator = torch.minimum(torch.maximum(wanted, sensitivity / 10), 10 * sensitivity)
            seen = sensitivity > 0
            self._clipped.append(float((denominator != wanted)[seen].float().mean()))
        ratio = _ratio(objective.log_likelihood, x, subset)
        seen = denominator > SMALL * denominator.max()
        factor = torch.where(
            seen, ratio / torch.where(seen, denominator, torch.ones_like(ratio)), torch.zeros_like(ratio)
        )
        if self._subiteration_num > 1:
            factor = factor.clamp(*self._limits)
        return ImageData.of(x * factor, image.geometry)

    def _required(self) -> PoissonLogLikelihoodWithLinearModelForMeanAndProjData:
        if self._objective is None:
            raise error("objective function not set: call set_objective_function() first")
        return self._objective


def make_Poisson_loglikelihood(
    acq_data: AcquisitionData, likelihood_type: str | None = None, acq_model: Any = None
) -> PoissonLogLikelihoodWithLinearModelForMeanAndProjData:
    """The Poisson log-likelihood of projection data; ``likelihood_type`` None or ``"LinearModelForMean"``."""
    if likelihood_type not in (None, "LinearModelForMean"):
        raise error(
            f"Poisson log-likelihood of type {likelihood_type!r} needs SIRF; this engine has 'LinearModelForMean'"
        )
    made = PoissonLogLikelihoodWithLinearModelForMeanAndProjData()
    made.set_acquisition_data(acq_data)
    if acq_model is not None:
        made.set_acquisition_model(acq_model)
    return made


def make_positive(x: Tensor) -> None:
    """Raise values of 0 and below to 1e-6 of the smallest positive value, in place, as STIR does before EM."""
    positive = x[x > 0]
    x[x <= 0] = SMALL * float(positive.min()) if positive.numel() else SMALL


def _ratio(likelihood: PoissonObjective, x: Tensor, subset: int | None) -> Tensor:
    return (likelihood.gradient(x, subset) + likelihood.sensitivity(subset)).clamp_min(0)


def _into(tensor: Tensor, like: ImageData, out: ImageData | None) -> ImageData:
    result = ImageData.of(tensor, like.geometry)
    return result if out is None else out.fill(result)
