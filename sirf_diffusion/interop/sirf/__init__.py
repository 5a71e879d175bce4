"""SIRF's engine for scripts: every name of ``sirf.STIR``, and this package's priors and processors beside them.

Objective functions made here remember their acquisition data and model, which SIRF itself does not hand back:
reconstructors then have the log-likelihoods of subsets, need fewer projections, and may take the embedded projector.

Examples
--------
>>> pet = sirf_diffusion.get_engine("sirf")                                      # doctest: +SKIP
>>> objective = pet.make_Poisson_loglikelihood(prompts, acq_model=acq_model)     # doctest: +SKIP
>>> objective.set_prior(pet.ScorePrior())                                        # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

try:
    import sirf.STIR as _stir
except ImportError as problem:
    raise ImportError(
        f"the SIRF engine needs sirf.STIR, which cannot be imported ({problem}). Install SIRF, for instance from the "
        "image ghcr.io/synerbi/sirf, or use sirf_diffusion.get_engine('embedded')"
    ) from problem

from ...engines.sirf.convert import exam_of_data, to_tensor
from ...engines.sirf.inspection import require_set_up
from ...geometry.exam import ExamInfo
from ...priors import Penalty
from ..prior_objects import AnatomicalObject

logger = logging.getLogger(__name__)

_OURS = {
    "AnchorPrior": ".priors",
    "BowsherPrior": ".priors",
    "PythonPrior": ".priors",
    "ScorePrior": ".priors",
    "ScoreImageProcessor": ".priors",
    "SirfObjective": "...engines.sirf.objective",
    "log_likelihood": "...engines.autograd",
    "to_image": "...engines.sirf.convert",
    "to_tensor": "...engines.sirf.convert",
}


class _KnowsItsPrior:
    known_prior: Any = None
    known_exam: ExamInfo | None = None

    def set_acquisition_data(self, ad: Any) -> None:
        """Set the acquisition data."""
        super().set_acquisition_data(ad)  # type: ignore[misc]
        self.known_exam = exam_of_data(ad)
        self._tell_prior()

    def set_prior(self, prior: Any) -> None:
        """Set the penalty; one with an anatomical image is told how the patient of the data lies."""
        super().set_prior(prior)  # type: ignore[misc]
        self.known_prior = prior
        self._tell_prior()

    def _tell_prior(self) -> None:
        if self.known_exam is not None and isinstance(self.known_prior, AnatomicalObject):
            self.known_prior.tell_exam(self.known_exam)


class PoissonLogLikelihoodWithLinearModelForMeanAndListModeDataWithProjMatrixByBin(
    _KnowsItsPrior, _stir.PoissonLogLikelihoodWithLinearModelForMeanAndListModeDataWithProjMatrixByBin
):
    """SIRF's log-likelihood of list-mode data, which also remembers its prior, and how the patient lay."""


class PoissonLogLikelihoodWithLinearModelForMeanAndProjData(
    _KnowsItsPrior, _stir.PoissonLogLikelihoodWithLinearModelForMeanAndProjData
):
    """SIRF's log-likelihood of sinograms, which also remembers them, their model and its prior."""

    known_acquisition_data: Any = None
    known_acquisition_model: Any = None

    def set_acquisition_data(self, ad: Any) -> None:
        """Set the acquisition data."""
        super().set_acquisition_data(ad)
        self.known_acquisition_data = ad

    def set_acquisition_model(self, am: Any) -> None:
        """Set the acquisition model."""
        super().set_acquisition_model(am)
        self.known_acquisition_model = am

    def set_input_filename(self, name: str) -> None:
        """Let STIR read the acquisition data from a file."""
        super().set_input_filename(name)
        self.known_acquisition_data = self.known_exam = None


@contextmanager
def _ctrl_c() -> Iterator[None]:
    """Ctrl-C, which goes through STIR as an error of its own, is Python's again."""
    try:
        yield
    except _stir.error as problem:
        if "interrupted by Ctrl-C" in str(problem):
            raise KeyboardInterrupt from problem
        raise


class _KnowsItsObjective:
    _known_objective: Any = None

    def set_objective_function(self, obj: Any) -> None:
        """Set the objective function."""
        super().set_objective_function(obj)  # type: ignore[misc]
        self._known_objective = obj

    def set_current_estimate(self, image: Any) -> None:
        """Set the image to start from; a prior with memory begins anew."""
        super().set_current_estimate(image)  # type: ignore[misc]
        self._begin_anew()

    def reconstruct(self, image: Any) -> None:
        """Make all updates on an image; a prior with memory begins anew."""
        self._begin_anew()
        with _ctrl_c():
            super().reconstruct(image)  # type: ignore[misc]

    def process(self) -> None:
        """Make all updates on the current estimate."""
        with _ctrl_c():
            super().process()  # type: ignore[misc]

    def update_current_estimate(self) -> None:
        """Make one update."""
        with _ctrl_c():
            super().update_current_estimate()  # type: ignore[misc]

    def _begin_anew(self) -> None:
        if (prior := self._prior()) is not None and isinstance(prior.obj, Penalty):
            prior.obj.forget()

    def _prior(self) -> Any:
        """The prior of this package that the objective function has by now, if it has one."""
        prior = getattr(self._known_objective, "known_prior", None)
        return prior if hasattr(prior, "obj") else None


class OSMAPOSLReconstructor(_KnowsItsObjective, _stir.OSMAPOSLReconstructor):
    """SIRF's OSMAPOSL, which keeps a score prior stable under One Step Late, or warns of one that may not be."""

    _is_set_up = False
    _sensitivity: Any = None

    def set_objective_function(self, obj: Any) -> None:
        """Set the objective function."""
        super().set_objective_function(obj)
        self._is_set_up = False

    def set_up(self, image: Any) -> None:
        """Set up for images of this grid."""
        super().set_up(image)
        self._is_set_up, self._sensitivity = True, None
        if risk := self._prepare():
            logger.warning("OSMAPOSL: %s", risk)

    def _begin_anew(self) -> None:
        super()._begin_anew()
        if self._is_set_up:
            self._prepare()

    def _prepare(self) -> str:
        prior, objective = self._prior(), self._known_objective
        if prior is None or not isinstance(prior.obj, Penalty):
            return ""
        if self._sensitivity is None:
            number = objective.get_num_subsets()
            require_set_up(objective, number)
            self._sensitivity = sum(to_tensor(objective.get_subset_sensitivity(k)) for k in range(number))
        return prior.obj.prepare_one_step_late(self._sensitivity, prior.get_penalisation_factor())


class OSSPSReconstructor(_KnowsItsObjective, _stir.OSSPSReconstructor):
    """SIRF's OSSPS, of which each start is one for a prior with memory, too."""


class KOSMAPOSLReconstructor(_KnowsItsObjective, _stir.KOSMAPOSLReconstructor):
    """SIRF's KOSMAPOSL, which refuses this package's priors: it gives priors kernel coefficients, not activity."""

    def set_up(self, image: Any) -> None:
        """Set up for images of this grid; ValueError if the objective function has a prior of this package."""
        if self._prior() is not None:
            raise ValueError(
                "KOSMAPOSL would give the prior kernel coefficients instead of activity: use OSMAPOSLReconstructor"
            )
        super().set_up(image)


_LIKELIHOODS = {
    None: PoissonLogLikelihoodWithLinearModelForMeanAndProjData,
    "LinearModelForMean": PoissonLogLikelihoodWithLinearModelForMeanAndProjData,
    "LinearModelForMeanAndListModeDataWithProjMatrixByBin": (
        PoissonLogLikelihoodWithLinearModelForMeanAndListModeDataWithProjMatrixByBin
    ),
}


def make_Poisson_loglikelihood(
    acq_data: Any, likelihood_type: str | None = "LinearModelForMean", acq_model: Any = None
) -> Any:
    """As ``sirf.STIR.make_Poisson_loglikelihood``; of sinograms, the result remembers its acquisition data."""
    if likelihood_type not in _LIKELIHOODS or acq_data is None:
        return _stir.make_Poisson_loglikelihood(acq_data, likelihood_type, acq_model)
    obj_fun = _LIKELIHOODS[likelihood_type]()
    obj_fun.set_acquisition_data(acq_data)
    if acq_model is not None:
        obj_fun.set_acquisition_model(acq_model)
    return obj_fun


def __getattr__(name: str) -> Any:
    if name in _OURS:
        return getattr(importlib.import_module(_OURS[name], __name__), name)
    try:
        return getattr(_stir, name)
    except AttributeError:
        raise AttributeError(f"neither sirf.STIR nor {__name__} has {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *_OURS, *dir(_stir)})
