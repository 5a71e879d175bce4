"""The objective function with the names and semantics of ``sirf.STIR``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...engines.embedded.poisson import PoissonObjective
from ...engines.embedded.subsets import select_views
from ...geometry.exam import ExamInfo
from ...priors import Penalty
from ..containers import ObjectiveNames
from ..prior_objects import AnatomicalObject
from .containers import error, missing
from .data import AcquisitionData, ImageData
from .models import AcquisitionModelUsingRayTracingMatrix
from .priors import Prior


class ImageObjective(PoissonObjective):
    """The log-likelihood, for reconstructors that shall take and give :class:`ImageData`."""

    def to_tensor(self, image: ImageData) -> Tensor:
        if not isinstance(image, ImageData):
            raise TypeError(f"expected ImageData of the embedded engine, found {type(image).__name__}")
        return image.tensor.clone()

    def to_image(self, x: Tensor) -> ImageData:
        return ImageData.of(x.clone(), self.geometry, self._exam)

    def hessian_times(self, x: Tensor, v: Tensor, subset: int | None = None) -> Tensor:
        r""":math:`-A^T (y / q^2)\, A v`, of one subset."""
        views = self._views(subset)
        with self.counter.timed():
            prompts = select_views(self.prompts, views)
            expected = self.model.forward(x, views)
            weight = torch.where(prompts > 0, prompts / expected.square(), torch.zeros_like(expected))
            product = -self.model.adjoint(weight * self.model.linear(v, views), views)
        share = self._share(views)
        self.counter.forward += 2 * share
        self.counter.back += share
        return product


class PoissonLogLikelihoodWithLinearModelForMeanAndProjData(ObjectiveNames):
    """Poisson log-likelihood minus penalty.

    Gradients of subsets are not scaled; each contains its share of the penalty's.
    """

    __getattr__ = missing

    def __init__(self) -> None:
        self._data: AcquisitionData | None = None
        self._acquisition_model: AcquisitionModelUsingRayTracingMatrix | None = None
        self._kept: AcquisitionModelUsingRayTracingMatrix | None = None
        self._prior: Prior | Penalty | None = None
        self._num_subsets = 1
        self._likelihood: ImageObjective | None = None

    def set_acquisition_data(self, ad: AcquisitionData) -> None:
        if not isinstance(ad, AcquisitionData):
            raise error(f"expected AcquisitionData, found {type(ad).__name__}")
        self._data, self._likelihood = ad, None

    def set_acquisition_model(self, am: AcquisitionModelUsingRayTracingMatrix) -> None:
        if not isinstance(am, AcquisitionModelUsingRayTracingMatrix):
            raise error(f"expected AcquisitionModelUsingRayTracingMatrix, found {type(am).__name__}")
        self._acquisition_model, self._kept, self._likelihood = am, am.kept(), None

    def set_num_subsets(self, n: int) -> None:
        """Number of subsets of views; takes effect at the next ``set_up``."""
        if n != self._num_subsets:
            self._num_subsets, self._likelihood = int(n), None

    def get_num_subsets(self) -> int:
        return self._num_subsets

    def set_prior(self, prior: Prior | Penalty) -> None:
        """The penalty: one of this module's, or any :class:`sirf_diffusion.priors.Prior`, e.g. a score prior."""
        if not isinstance(prior, (Prior, Penalty)):
            raise error(f"expected a prior, found {type(prior).__name__}")
        self._prior = prior
        self._tell_prior()

    def _tell_prior(self) -> None:
        """How the patient of the data lies, of use to a prior with an anatomical image."""
        if self._data is not None and isinstance(self._prior, AnatomicalObject):
            self._prior.tell_exam(self._data.exam)

    def get_prior(self) -> Prior | Penalty | None:
        return self._prior

    def set_up(self, image: ImageData) -> None:
        if self._data is None or self._acquisition_model is None:
            raise error("objective function needs acquisition data and an acquisition model before set_up()")
        self._kept._processor = self._acquisition_model._processor
        self._kept.set_up(self._data, image)
        model = self._kept.linear_model
        # What reconstructors give tells of the patient what the template does, or else the data.
        exam = self._data.exam if image.exam == ExamInfo() else image.exam
        self._likelihood = ImageObjective(model, self._data.tensor, self._num_subsets, exam=exam)
        self._tell_prior()
        if isinstance(self._prior, Prior):
            self._prior.set_up_for_run(image)

    @property
    def log_likelihood(self) -> ImageObjective:
        """The log-likelihood without penalty, for this package's reconstructors, which then give :class:`ImageData`."""
        if self._likelihood is None:
            raise error("objective function is not set up (or was changed since): call set_up(image)")
        self._kept.refresh(self._likelihood.model)
        return self._likelihood

    @property
    def penalty(self) -> Penalty | None:
        """The penalty as a function of tensors, or None without one or with penalisation factor 0."""
        penalty = self._prior.penalty if isinstance(self._prior, Prior) else self._prior
        return None if penalty is None or penalty.penalisation_factor == 0 else penalty

    def value(self, image: ImageData) -> float:
        value = float(self.log_likelihood.value(image.tensor))
        return value if self.penalty is None else value - float(self.penalty.value(image.tensor))

    def gradient(self, image: ImageData, subset: int = -1, out: ImageData | None = None) -> ImageData:
        """Gradient of a subset minus ``1 / num_subsets`` of the penalty's; of all data for subset -1."""
        result = self.log_likelihood.gradient(image.tensor, None if subset < 0 else subset)
        if self.penalty is not None:
            share = 1 if subset < 0 else 1 / self._num_subsets
            result = result - share * self.penalty.gradient(image.tensor)
        return image.with_values(result, out)

    def multiply_with_Hessian(
        self, current_estimate: ImageData, input_: ImageData, subset: int = -1, out: ImageData | None = None
    ) -> ImageData:
        r"""Hessian at an image times another image: :math:`-A^T (y / q^2)\, A v` minus the penalty's share."""
        likelihood, x, v = self.log_likelihood, current_estimate.tensor, input_.tensor
        product = likelihood.hessian_times(x, v, None if subset < 0 else self._subset(subset))
        if self.penalty is not None:
            share = 1 if subset < 0 else 1 / self._num_subsets
            product = product - share * self.penalty.hessian_times(x, v)
        return input_.with_values(product, out)

    def accumulate_Hessian_times_input(
        self, current_estimate: ImageData, input_: ImageData, subset: int = -1, out: ImageData | None = None
    ) -> ImageData:
        product = self.multiply_with_Hessian(current_estimate, input_, subset)
        return product if out is None else out.add(product, out=out)

    def get_subset_sensitivity(self, subset: int) -> ImageData:
        likelihood = self.log_likelihood
        return likelihood.to_image(likelihood.sensitivity(self._subset(subset)))

    def get_backprojection_of_acquisition_ratio(
        self, image: ImageData, subset: int, out: ImageData | None = None
    ) -> ImageData:
        return image.with_values(acquisition_ratio(self.log_likelihood, image.tensor, self._subset(subset)), out)

    def _subset(self, subset: int) -> int | None:
        if not 0 <= subset < self._num_subsets:
            raise error(f"subset {subset} is none of 0 to {self._num_subsets - 1}")
        return subset if self._num_subsets > 1 else None


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


def acquisition_ratio(likelihood: PoissonObjective, x: Tensor, subset: int | None) -> Tensor:
    return (likelihood.gradient(x, subset) + likelihood.sensitivity(subset)).clamp_min(0)
