"""Priors and an image processor for SIRF scripts: objects of ``sirf.STIR`` whose numbers come from Python.

A prior given to an objective function is called by STIR's own algorithms (OSMAPOSL, OSSPS) and in ``value`` and
``gradient`` of the objective function. As everything that STIR calls a prior it is a *penalty*: its gradient points
uphill, and it is subtracted from the log-likelihood. Needs the compiled part of :mod:`stir_priors`, which the command
``stir-diffusion build`` makes once; this package's reconstructors do not.
"""

from __future__ import annotations

import copy
from typing import Any

import sirf.STIR as pet
from torch import Tensor

from ...engines.sirf.convert import fill, image_geometry, patient_position, to_tensor
from ...geometry.checks import check_real
from ...priors import Penalty
from ..callback import CallbackPenalty
from ..prior_objects import AnchorObject, BowsherObject, EngineImages, ProcessorObject, PythonObject, ScoreObject
from .handles import prior_handle, processor_handle


class SirfImages(EngineImages):
    """Images of SIRF."""

    error = pet.error
    grid = staticmethod(image_geometry)
    position = staticmethod(patient_position)

    @staticmethod
    def values(image: Any) -> Tensor:
        """A copy of an image's values, independent of what becomes of the image."""
        if not isinstance(image, pet.ImageData):
            raise pet.error(f"expected sirf.STIR.ImageData, found {type(image).__name__}")
        return to_tensor(image)


class PythonPrior(SirfImages, PythonObject, pet.Prior):
    __doc__ = PythonObject.__doc__

    def __init__(self, obj: Any) -> None:
        super().__init__()
        self._take(obj)
        self.name = type(self).__name__
        self.handle = prior_handle(obj)
        self.set_penalisation_factor(obj.penalisation_factor if isinstance(obj, Penalty) else 1.0)

    def set_penalisation_factor(self, value: float) -> Any:
        """Strength of the penalty; ValueError unless it is a finite number of at least 0."""
        return super().set_penalisation_factor(check_real("penalisation_factor", value))

    @property
    def penalty(self) -> Penalty:
        """The penalty on tensors with the present penalisation factor, for this package's reconstructors."""
        penalty = copy.copy(self.obj) if isinstance(self.obj, Penalty) else CallbackPenalty(self.obj)
        penalty.penalisation_factor = self.get_penalisation_factor()
        return penalty

    def get_gradient(self, image: Any, out: Any = None) -> Any:
        """Gradient of the penalty, penalisation factor included, in ``out`` (which may be ``image``) or a new image.

        ``sirf.STIR.error`` for an image of another grid than that of `set_up`.
        """
        known, found = getattr(self.obj, "geometry", None), image_geometry(image)
        if known is not None and not found.is_near(known):
            raise pet.error(f"the image lies on another grid, {found}: expected {known}; call set_up with it")
        if out is not None and out.handle is image.handle:
            return out.fill(super().get_gradient(image))
        return super().get_gradient(image, out)

    def multiply_with_Hessian(self, current_estimate: Any, input_: Any, out: Any = None) -> Any:
        """Hessian of the penalty at an image, times another image; ``out`` may be either of them."""
        if out is not None and out.handle in (current_estimate.handle, input_.handle):
            return out.fill(super().multiply_with_Hessian(current_estimate, input_))
        return super().multiply_with_Hessian(current_estimate, input_, out)


class ScorePrior(ScoreObject, PythonPrior):
    __doc__ = ScoreObject.__doc__


class AnchorPrior(AnchorObject, PythonPrior):
    __doc__ = AnchorObject.__doc__


class BowsherPrior(BowsherObject, PythonPrior):
    __doc__ = BowsherObject.__doc__


class ScoreImageProcessor(SirfImages, ProcessorObject, pet.ImageDataProcessor):
    __doc__ = ProcessorObject.__doc__

    name = "ScoreImageProcessor"
    _handle: Any = None

    @property
    def handle(self) -> Any:
        """SIRF's handle of a STIR data processor, made when it is first asked for."""
        if self._handle is None:
            from ..stir.filters import DenoiserCallback

            self._handle = processor_handle(DenoiserCallback(self.obj))
        return self._handle

    @handle.setter
    def handle(self, value: Any) -> None:
        self._handle = value

    def apply(self, image: Any) -> None:
        """Denoise an image in place."""
        values = self.values(image)
        self._see(image)
        fill(image, self.obj(values, image_geometry(image)))
