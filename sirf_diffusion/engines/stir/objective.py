"""STIR-Python's objective functions as an :class:`~sirf_diffusion.engines.objective.Objective`."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...geometry.exam import ExamInfo
from ..list_mode import ValueRepair, constant_of_highest_likelihood
from ..objective import Evaluation, check_single, exam_info_of_written, mark, total_sensitivity
from ..toolkit import ToolkitObjective, finite, sum_of
from .counts import StirCounts
from .images import geometry_of, is_set_up, tensor_of

logger = logging.getLogger(__name__)


class StirObjective(ToolkitObjective):
    """Poisson log-likelihood of an objective function of STIR's Python module, without its penalty.

    STIR computes everything, with its own projectors, normalisation and subsets. An image crosses as one copy
    (STIR-Python offers no views of image memory), which costs a few milliseconds for a whole-body image.

    Parameters
    ----------
    obj
        ``PoissonLogLikelihoodWithLinearModelForMeanAndProjData3DFloat`` or
        ``PoissonLogLikelihoodWithLinearModelForMeanAndListModeDataWithProjMatrixByBin3DFloat`` on which ``set_up`` was
        called, otherwise TypeError or ValueError. Its number of subsets is the one that counts. A penalty attached to
        it is left out, with a warning.
    owner
        The reconstruction object of which ``obj`` is the ``get_objective_function()``: it has to live as long.
    files
        Names of the files of the data, for records.

    Notes
    -----
    Value and gradient each project the image forward: STIR has no call that gives both. Sensitivities are those that
    ``set_up`` has computed or read, and do not count as projections. STIR raises estimates below a ten-thousandth of
    the measured counts, so values are finite even where bins with counts are predicted to have none.
    """

    def __init__(self, obj: Any, owner: Any = None, files: Mapping[str, str] | None = None) -> None:
        if not hasattr(obj, "compute_sub_gradient_without_penalty_plus_sensitivity"):
            raise TypeError(
                f"expected a Poisson log-likelihood of STIR's Python module, found {type(obj).__name__}; of a "
                "reconstruction object give get_objective_function()"
            )
        if not is_set_up(obj):
            raise ValueError(
                f"{type(obj).__name__} has not been set up, or was changed since: call its set_up(image) first"
            )
        self.stir_objective, self._owner, self._files = obj, owner, files
        self._template = obj.get_subset_sensitivity(0).clone()
        if _has_projection_data(obj):
            # The data know the patient, the radionuclide and the time frame; a template image often does not.
            self._template.set_exam_info(obj.get_proj_data().get_exam_info())
        super().__init__(int(obj.get_num_subsets()), geometry_of(self._template))
        self._estimate, self._result = self._template.get_empty_copy(), self._template.get_empty_copy()
        self._counts: StirCounts | None = None
        self._repair: ValueRepair | None = ValueRepair.none() if _has_projection_data(obj) else None
        if not obj.prior_is_zero():
            logger.warning(
                "the prior of the STIR objective function (%s) is left out: give one to the reconstructor",
                type(obj.get_prior()).__name__,
            )

    def to_tensor(self, image: Any) -> Tensor:
        """STIR's image as a tensor ``[z, y, x]`` of its own; ValueError if it lies on another grid."""
        found = geometry_of(image)
        if not found.is_near(self.geometry):
            raise ValueError(f"the image has the grid {found}, the objective function {self.geometry}")
        return tensor_of(image)

    def to_image(self, x: Tensor) -> Any:
        """A new STIR image with the values ``[z, y, x]``, on the grid and with the exam information of the data."""
        return self._filled(self._template.get_empty_copy(), x)

    def at(self, x: Tensor, subset: int | None = None) -> Evaluation:
        x = self._checked(x, subset).clone()  # callers may change their image before they ask for the gradient
        return Evaluation(lambda: self._value(x, subset), lambda active=None: self._gradient(x, subset, active))

    def value(self, x: Tensor, subset: int | None = None) -> Tensor:
        return self._value(self._checked(x, subset), subset)

    def gradient(self, x: Tensor, subset: int | None = None) -> Tensor:
        return self._gradient(self._checked(x, subset), subset)

    def sensitivity(self, subset: int | None = None) -> Tensor:
        """``A^T 1``, ``[z, y, x]``, as STIR computed it."""
        if subset not in self._sensitivities:
            self._check_subset(subset)
            obj = self.stir_objective
            image = obj.get_sensitivity() if subset is None else obj.get_subset_sensitivity(subset)
            self._sensitivities[subset] = finite(tensor_of(image), "STIR's sensitivity")
        return self._sensitivities[subset]

    def uniform_image(self) -> Tensor:
        """See `Objective`; ValueError if the expected background exceeds the measured counts.

        For list-mode data, whose background STIR does not tell, it is the constant of the highest likelihood.
        """
        total, seen = total_sensitivity(self), (self.sensitivity() > 0).float()
        if not _has_projection_data(self.stir_objective):
            return seen * constant_of_highest_likelihood(self, seen, total)
        counts = self._known_counts()
        above = counts.num_prompts - counts.num_background
        if above <= 0:
            raise ValueError(
                f"the expected background exceeds the {counts.num_prompts:g} measured counts by {-above:g}. Is the "
                "additive sinogram divided by the multiplicative factors, as STIR wants it?"
            )
        return seen * (above / total)

    def expected_log_likelihood(self, x: Tensor) -> tuple[float, float]:
        """See `Objective`; one forward projection. NotImplementedError for list-mode data."""
        check_single(x)
        if not _has_projection_data(self.stir_objective):
            raise NotImplementedError(
                "STIR-Python does not tell the expected counts of list-mode data: use an even number of subsets, or "
                "give the likelihood schedule its end (target or num_em_iterations)"
            )
        with self.counter.timed():
            self.counter.forward += 1
            estimate = self._filled(self._estimate, self._checked(x))
            return self._known_counts().expected_log_likelihood(estimate)

    @property
    def engine(self) -> dict[str, str]:
        return {"name": "stir", "version": stir_version()}

    def describe(self) -> dict[str, Any]:
        return {**({} if self._files is None else {"files": dict(self._files)}), **super().describe()}

    def marks(self) -> dict[str, float]:
        return {} if self._counts is None else {"prompts_mark": mark(torch.from_numpy(self._counts.prompts))}

    def exam_info(self) -> ExamInfo:
        return exam_info_of_written(self._template.write_to_file)

    def _parts(self) -> tuple[Any, float]:
        obj, known = self.stir_objective, 0.0
        if _has_projection_data(obj):  # asked for anew each time: STIR frees what is exchanged
            data = obj.get_proj_data()
            middle = (data.get_min_axial_pos_num(0) + data.get_max_axial_pos_num(0)) // 2
            known = data.get_sinogram(middle, 0).sum()
        return known, sum_of(tensor_of(obj.get_subset_sensitivity(0)))

    def _toolkit_data(self) -> Any:
        from .stand_in import toolkit_data

        return toolkit_data(self.stir_objective, self._known_counts, self.to_image)

    def _known_counts(self) -> StirCounts:
        self.check_unchanged()
        if self._counts is None:
            with self.counter.timed():
                self._counts = StirCounts(self.stir_objective, self._template.get_empty_copy())
                self.counter.forward += 1
        return self._counts

    def _value(self, x: Tensor, subset: int | None) -> Tensor:
        if self._repair is None:
            self._repair = ValueRepair.find(self, self._stirs_value)

        def value_of(image: Tensor) -> float:
            return self._repair(self._stirs_value(image, subset), image, self.sensitivity(subset))

        values = torch.tensor(self._each(value_of, x), dtype=torch.float64)
        return finite(values, "STIR's log-likelihood").reshape(x.shape[:-3])

    def _stirs_value(self, image: Tensor, subset: int | None = None) -> float:
        self.counter.forward += self._share(subset)
        arguments = (self._filled(self._estimate, image), *(() if subset is None else (subset,)))
        return self.stir_objective.compute_objective_function_without_penalty(*arguments)

    def _gradient(self, x: Tensor, subset: int | None, active: Tensor | None = None) -> Tensor:
        if active is not None:
            x = x[active.to(x.device)]

        def gradient_of(image: Tensor) -> Tensor:
            self.counter.forward += self._share(subset)
            self.counter.back += self._share(subset)
            obj, arguments, less = self.stir_objective, (self._result, self._filled(self._estimate, image)), 0.0
            if subset is None:
                obj.compute_gradient_without_penalty(*arguments)
            elif obj.get_use_subset_sensitivities():
                obj.compute_sub_gradient_without_penalty(*arguments, subset)
            else:  # that takes off what the subset sees, where OSMAPOSL divides by an equal share
                obj.compute_sub_gradient_without_penalty_plus_sensitivity(*arguments, subset)
                less = self.sensitivity(subset)
            return finite(tensor_of(self._result) - less, "STIR's gradient")

        gradients = self._each(gradient_of, x)
        return torch.stack(gradients).reshape(x.shape) if gradients else torch.zeros_like(x)

    def _each(self, function: Callable[[Tensor], Any], x: Tensor) -> list[Any]:
        with self.counter.timed():
            return [function(image) for image in x.reshape(-1, *self.geometry.shape)]

    @staticmethod
    def _filled(image: Any, x: Tensor) -> Any:
        image.fill(np.ascontiguousarray(x.detach().cpu().numpy(), dtype=np.float32))
        return image


def _has_projection_data(obj: Any) -> bool:
    return hasattr(obj, "get_proj_data")


@lru_cache(maxsize=1)
def stir_version() -> str:
    """Version of the STIR in its Python module, its first two numbers; empty if it cannot be told."""
    import stir

    # The module has no version; the folders that were compiled in have, where the environment does not replace them.
    for folder in (stir.get_STIR_config_dir(), stir.get_STIR_doc_dir()):
        if found := re.search(r"STIR-(\d+(\.\d+)+)", folder):
            return found[1]
    return ""
