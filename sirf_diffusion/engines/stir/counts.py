"""What STIR expects to be counted: prompts, background and projections of its objective functions, as arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ..toolkit import check_prompts, finite

_SINGLE_PRECISION = 1e-5
_SMALLEST_QUOTIENT = 1e-4  # STIR raises estimates to this fraction of the measured counts


class StirCounts:
    """Prompts ``y`` and expected counts ``q = m (G x + a)`` of an objective function on projection data.

    ``obj`` has been set up; ``empty`` is an image of zeros on its grid.
    """

    def __init__(self, obj: Any, empty: Any) -> None:
        import stir

        self._obj = obj
        data = obj.get_proj_data()
        self._data, self._projector = data, obj.get_projector_pair().get_forward_projector()
        self._used = _bins_in_use(obj, data)
        self.prompts = self._select(data.as_array())
        check_prompts(torch.from_numpy(self.prompts))
        # STIR-Python cannot tell an absent additive term, and asking for it would end the process.
        self._additive = None
        value = obj.compute_objective_function_without_penalty(empty)
        if not math.isclose(value, self._without_background(), rel_tol=_SINGLE_PRECISION):
            self._additive = stir.ProjDataInMemory(obj.get_additive_proj_data()).as_array()
        obj.get_normalisation().set_up(data.get_exam_info(), data.get_proj_data_info())
        self.background = np.zeros_like(self.prompts)
        if self._additive is not None:
            self.background = self.detected(self._additive)
            finite(torch.from_numpy(self.background), "expected background")

    @property
    def num_prompts(self) -> float:
        """Measured counts."""
        return float(self.prompts.sum(dtype=np.float64))

    @property
    def num_background(self) -> float:
        """Expected counts of the background."""
        return float(self.background.sum(dtype=np.float64))

    def expected(self, image: Any) -> np.ndarray:
        """Expected counts of an image, one forward projection."""
        import stir

        projection = stir.ProjDataInMemory(self._data.get_exam_info(), self._data.get_proj_data_info())
        self._projector.forward_project(projection, image)
        values = projection.as_array()
        return self.detected(values if self._additive is None else values + self._additive)

    def expected_log_likelihood(self, image: Any) -> tuple[float, float]:
        """Mean and standard deviation of the truth's log-likelihood if ``image`` predicts the counts as it does."""
        from ..embedded.poisson import poisson_divergence

        mean, variance = poisson_divergence(torch.from_numpy(self.expected(image)).double())
        y = torch.from_numpy(self.prompts).double()
        best = torch.xlogy(y, y) - y
        return float(best.sum() - mean.sum()), math.sqrt(float(variance.sum()))

    def _without_background(self) -> float:
        """Log-likelihood that STIR gives to an empty image if there is no additive term."""
        y = self.prompts[self.prompts > 0].astype(np.float64)
        lowest = y * _SMALLEST_QUOTIENT
        return float((y * np.log(lowest) - lowest).sum())

    def detected(self, values: np.ndarray) -> np.ndarray:
        """``m`` times values of all bins, of the bins in use."""
        import stir

        data = stir.ProjDataInMemory(self._data.get_exam_info(), self._data.get_proj_data_info())
        data.fill(np.ascontiguousarray(values, dtype=np.float32).flat)
        # With the symmetries that a projector within the normalisation was set up for: others end the process.
        self._obj.get_normalisation().undo(data, self._projector.get_symmetries_used())
        return self._select(data.as_array())

    def _select(self, values: np.ndarray) -> np.ndarray:
        return values if self._used is None else np.ascontiguousarray(values[:, self._used])


def _bins_in_use(obj: Any, data: Any) -> np.ndarray | None:
    """Numbers of the sinograms that the objective function uses; None for all.

    STIR's arrays hold segments in the order 0, 1, -1, 2, -2, ...
    """
    highest = obj.get_max_segment_num_to_process()
    ends_left_out = bool(obj.get_zero_seg0_end_planes())
    if highest >= data.get_max_segment_num() and not ends_left_out:
        return None
    number = sum(data.get_num_axial_poss(s) for s in range(-highest, highest + 1))
    used = np.arange(number)
    return used[(used > 0) & (used != data.get_num_axial_poss(0) - 1)] if ends_left_out else used
