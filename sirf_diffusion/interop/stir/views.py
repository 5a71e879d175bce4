"""STIR's memory as tensors, and this package's tensor priors as objects that STIR can call."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import numpy as np
import torch
from torch import Tensor

from ...geometry.images import ImageGeometry
from ...patient import AnatomicalImage
from ...priors import Penalty
from .values import exam_of

logger = logging.getLogger("stir_priors")


def as_tensor(array: np.ndarray) -> Tensor:
    """A ``float32`` tensor of an array's own memory, without a copy; only valid as long as the array's memory is.

    Read-only arrays are accepted, because PyTorch has no read-only tensors: do not write to such a tensor. TypeError if
    the array is not ``float32`` in C order.
    """
    if array.dtype != np.float32 or not array.flags.c_contiguous:
        raise TypeError(f"expected a float32 array in C order, found {array.dtype} with strides {array.strides}")
    memory = (ctypes.c_float * array.size).from_address(array.ctypes.data)
    return torch.frombuffer(memory, dtype=torch.float32).view(array.shape)


class TensorPrior:
    """A `sirf_diffusion.priors.Penalty` as an object that STIR calls: arrays in, ``out`` filled.

    STIR multiplies by its own penalisation factor, so that the prior is asked as if its own was 1, by one thread at a
    time.
    """

    curvature_depends_on_image = True

    def __init__(self, prior: Penalty) -> None:
        self.prior, self._lock, self._warned = prior, RLock(), False

    def set_patient_position(self, orientation: int, rotation: int) -> None:
        """How the patient of the estimate lies, by the numbers of STIR's enums: of use where nobody told so before."""
        if (shown := self._unplaced()) is None:
            return
        if (placed := shown.lying_as(exam_of(orientation, rotation))) is not shown:
            guidance = getattr(self.prior, "_guidance", None)
            self.prior.set_anatomical(placed, *(() if guidance is None else (guidance,)))

    def _unplaced(self) -> AnatomicalImage | None:
        """The prior's anatomical image, if nobody has told how the patient of the data lies, and it matters."""
        shown = getattr(self.prior, "_anatomical", None)
        return shown if isinstance(shown, AnatomicalImage) and shown.unplaced else None

    def set_up(self, geometry: ImageGeometry) -> None:
        self.prior.set_up(geometry)

    def prepare_one_step_late(self, sensitivity: np.ndarray, factor: float) -> None:
        """OSMAPOSL is about to run; ``sensitivity`` is that of all data."""
        if risk := self.prior.prepare_one_step_late(as_tensor(sensitivity).clone(), factor):
            logger.warning("OSMAPOSL: %s", risk)

    def value(self, x: np.ndarray) -> float:
        with self._without_factor() as prior:
            return float(prior.value(as_tensor(x)))

    def gradient(self, x: np.ndarray, out: np.ndarray) -> None:
        if not self._warned and (shown := self._unplaced()) is not None:
            self._warned = True
            shown.say_if_assumed()
        with self._without_factor() as prior:
            as_tensor(out).copy_(prior.gradient(as_tensor(x)))

    def curvature(self, x: np.ndarray, out: np.ndarray) -> None:
        with self._without_factor() as prior:
            as_tensor(out).copy_(prior.curvature(as_tensor(x)))

    def hessian_times(self, x: np.ndarray, v: np.ndarray, out: np.ndarray) -> None:
        with self._without_factor() as prior:
            as_tensor(out).copy_(prior.hessian_times(as_tensor(x), as_tensor(v)))

    @contextmanager
    def _without_factor(self) -> Iterator[Penalty]:
        with self._lock:
            factor = self.prior.penalisation_factor
            self.prior.penalisation_factor = 1.0
            try:
                yield self.prior
            finally:
                self.prior.penalisation_factor = factor
