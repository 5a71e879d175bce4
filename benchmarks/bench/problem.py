"""One measurement of a case, with everything that a method may ask of it; what a case shares is computed once."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench.cases import Case, CaseSpec
from sirf_diffusion.engines.embedded.acquisition import Acquisition
from sirf_diffusion.engines.embedded.acquisition_model import AcquisitionModel
from sirf_diffusion.engines.embedded.poisson import PoissonObjective
from sirf_diffusion.engines.embedded.projector import Projector
from sirf_diffusion.engines.embedded.subsets import largest_num_subsets
from sirf_diffusion.models import ScoreModel, intensity_scale
from sirf_diffusion.reconstructors.em.osem import OSEM

_EARLY_SUBSETS = 14
_KEPT = 3


@dataclass
class Problem:
    """Counts of one realisation, and the objectives, the scale and the models that methods are built from.

    Parameters
    ----------
    case
        The scan.
    realisation
        Which noise.
    models
        Score models by role: ``"score"``, and ``"conditional"`` where there is one.
    device
        Where to compute.
    """

    case: Case
    realisation: int
    models: dict[str, ScoreModel]
    device: torch.device

    def objective(self, num_subsets: int = 1) -> PoissonObjective:
        """The log-likelihood with the largest number of subsets up to this one that the views allow."""
        model = _acquisition_model(self.case, self.device)
        number = largest_num_subsets(model.projector.basic_views, num_subsets)
        return PoissonObjective(model, self._prompts, num_subsets=number)

    @cached_property
    def early(self) -> OSEM:
        """One epoch of OSEM: the first image of MAP methods, and the intensity scale."""
        return OSEM(self.objective(_EARLY_SUBSETS), num_iterations=1).process()  # type: ignore[return-value]

    @cached_property
    def scale(self) -> float:
        """Intensity scale, image units per network unit."""
        return self.case.scale_error * intensity_scale(self.early.get_output(), self.case.geometry)

    def model(
        self, role: str = "score", planes: str | None = None, *, sampling: bool = True, **options: Any
    ) -> ScoreModel:
        """The score model of this role on the grid of the case; for a sampler, or for a prior."""
        planes = planes or self.models[role].planes_for(self.case.geometry, sampling=sampling)
        return self.models[role].on(self.case.geometry, self.scale, planes, **options)

    @cached_property
    def mr(self) -> Tensor:
        """MR image."""
        return self.case.mr.to(self.device)

    @cached_property
    def truth(self) -> Tensor:
        """The image behind the data; for oracles."""
        return self.case.truth.to(self.device)

    @cached_property
    def _prompts(self) -> Tensor:
        return self.case.counts(_mean(self.case, self.device), self.realisation).to(self.device)


_acquisition_models: OrderedDict[tuple[CaseSpec, str], AcquisitionModel] = OrderedDict()
_means: dict[tuple[CaseSpec, str], Tensor] = {}


def _acquisition_model(case: Case, device: torch.device) -> AcquisitionModel:
    """The system model of a case, kept for its other realisations and methods."""
    key = (case.spec, str(device))
    if key not in _acquisition_models:
        like = next((m for m in _acquisition_models.values() if _same_grids(m, case, device)), None)
        projector = Projector(case.geometry, case.projdata, device) if like is None else like.projector
        factors, additive = case.multiplicative.to(device), case.additive.to(device)
        _acquisition_models[key] = AcquisitionModel(projector, multiplicative_factors=factors, additive_term=additive)
        while len(_acquisition_models) > _KEPT:
            _means.pop(_acquisition_models.popitem(last=False)[0], None)
    _acquisition_models.move_to_end(key)
    return _acquisition_models[key]


def _same_grids(model: AcquisitionModel, case: Case, device: torch.device) -> bool:
    projector = model.projector
    return projector.geometry == case.geometry and projector.projdata == case.projdata and model.device == device


def _mean(case: Case, device: torch.device) -> Tensor:
    """Expected counts of a case. Projected on the CPU's copy of the truth so that all devices draw the same noise."""
    if case.expected is not None:
        return case.expected
    model = _acquisition_model(case, device)
    key = (case.spec, str(device))
    if key not in _means:
        _means[key] = model.forward(case.truth.to(device)).cpu()
    return _means[key]


def acquisition_of(case: Case) -> Acquisition:
    """A case with its first noise realisation, as a user's data."""
    drawn = Problem(case, 1, {}, torch.device("cpu")).objective(2).prompts
    terms = {"multiplicative": case.multiplicative, "additive": case.additive}
    return Acquisition(drawn, case.projdata, case.geometry, **terms)
