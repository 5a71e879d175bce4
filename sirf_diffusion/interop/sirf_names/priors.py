"""Priors with the names and semantics of ``sirf.STIR``, and those that this package adds to them.

`sirf_diffusion.interop.sirf` has the latter for SIRF.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from ...geometry.checks import check_real
from ...geometry.exam import Position, position_of
from ...geometry.images import ImageGeometry
from ...priors import ParallelLevelSetsPenalty, Penalty, QuadraticPenalty, RelativeDifferencePenalty
from ..callback import CallbackPenalty
from ..prior_objects import AnchorObject, BowsherObject, EngineImages, ProcessorObject, PythonObject, ScoreObject
from .containers import error, missing
from .data import ImageData
from .processors import ImageDataProcessor

SIRF_EPSILON = 1e-7


class Prior:
    """A penalty, subtracted from the log-likelihood by the objective function that it is given to."""

    __getattr__ = missing

    def __init__(self, penalty: Penalty) -> None:
        self._penalty = penalty
        self._kappa: ImageData | None = None

    def set_penalisation_factor(self, value: float) -> Prior:
        """Factor in front of the penalty (STIR's default: 0)."""
        self._penalty.penalisation_factor = value
        return self

    def get_penalisation_factor(self) -> float:
        return self._penalty.penalisation_factor

    def set_kappa(self, image: ImageData) -> None:
        """Image that scales the penalty locally, it or its values changed at any time."""
        self._penalty.set_kappa(image.tensor, image.geometry)
        self._kappa = image

    def get_kappa(self) -> ImageData | None:
        return self._kappa

    def set_up(self, image: ImageData) -> None:
        self._penalty.set_up(image.geometry)

    def set_up_for_run(self, image: ImageData) -> None:
        """As an objective function calls it: the image is where a run starts, and need not be like the result."""
        self.set_up(image)

    @property
    def penalty(self) -> Penalty:
        """The penalty as a function of tensors, for this package's reconstructors."""
        if self._penalty.geometry is None:
            raise error(f"{type(self).__name__}.set_up() call missing")
        if self._kappa is not None:
            self._penalty.set_kappa(self._kappa.tensor, self._kappa.geometry)
        return self._penalty

    def get_value(self, image: ImageData) -> float:
        return float(self.penalty.value(image.tensor))

    value = get_value
    __call__ = get_value

    def get_gradient(self, image: ImageData, out: ImageData | None = None) -> ImageData:
        return image.with_values(self.penalty.gradient(image.tensor), out)

    gradient = get_gradient

    def multiply_with_Hessian(
        self, current_estimate: ImageData, input_: ImageData, out: ImageData | None = None
    ) -> ImageData:
        product = self.penalty.hessian_times(current_estimate.tensor, input_.tensor)
        return current_estimate.with_values(product, out)

    def accumulate_Hessian_times_input(
        self, current_estimate: ImageData, input_: ImageData, out: ImageData | None = None
    ) -> ImageData:
        product = self.multiply_with_Hessian(current_estimate, input_)
        return product if out is None else out.add(product, out=out)


class RelativeDifferencePrior(Prior):
    """See :class:`sirf_diffusion.priors.RelativeDifferencePenalty`; SIRF's defaults (gamma 2, epsilon 1e-7)."""

    _penalty: RelativeDifferencePenalty

    def __init__(self) -> None:
        super().__init__(RelativeDifferencePenalty(penalisation_factor=0.0, epsilon=SIRF_EPSILON))

    def set_gamma(self, v: float) -> None:
        self._penalty.gamma = check_real("gamma", v)

    def get_gamma(self) -> float:
        return self._penalty.gamma

    def set_epsilon(self, v: float) -> None:
        self._penalty.epsilon = check_real("epsilon", v)

    def get_epsilon(self) -> float:
        return self._penalty.epsilon

    def compute_Hessian_diagonal(self, image: ImageData) -> ImageData:
        return image.with_values(self.penalty.hessian_diagonal(image.tensor))


class QuadraticPrior(Prior):
    """See :class:`sirf_diffusion.priors.QuadraticPenalty`."""

    def __init__(self) -> None:
        super().__init__(QuadraticPenalty(penalisation_factor=0.0))


class PLSPrior(Prior):
    """Parallel level sets, see :class:`sirf_diffusion.priors.ParallelLevelSetsPenalty`, with STIR's gradient.

    That is zero in each axis' last plane, row or column but for the axis' own differences, hence everywhere in a single
    plane: call ``set_only_2D(True)`` for those. `ParallelLevelSetsPenalty` has the gradient of the value.
    """

    _penalty: ParallelLevelSetsPenalty

    def __init__(self) -> None:
        super().__init__(_StirPLS(penalisation_factor=0.0))
        self._anatomical: ImageData | None = None
        self._eta = self._penalty.eta

    def set_up(self, image: ImageData) -> None:
        """Take up ``eta`` and the anatomical image as they are now."""
        if self._anatomical is not None and not self._anatomical.geometry.is_near(image.geometry):
            raise error(
                f"the anatomical image lies on another grid, {self._anatomical.geometry}: expected {image.geometry}; "
                "zoom_image_as_template() it"
            )
        self._penalty.set_anatomical(None if self._anatomical is None else self._anatomical.tensor.clone())
        self._penalty.set_scales(self._penalty.alpha, self._eta)
        super().set_up(image)

    def set_only_2D(self, tf: bool) -> None:
        """Whether differences between planes are left out; before ``set_up``."""
        self._penalty.only_2d = bool(tf)

    def get_only_2D(self) -> bool:
        return self._penalty.only_2d

    def set_alpha(self, v: float) -> None:
        """Image units: differences well below it are smoothed quadratically."""
        self._penalty.set_scales(v, self._penalty.eta)

    def get_alpha(self) -> float:
        return self._penalty.alpha

    def set_eta(self, v: float) -> None:
        """Unit of the anatomical image: its edges are well above it; before ``set_up``."""
        self._eta = v

    def get_eta(self) -> float:
        return self._eta

    def set_anatomical_image(self, image: ImageData) -> None:
        """MR or CT image on the grid of the reconstruction; before ``set_up``."""
        self._anatomical = image

    def set_anatomical_filename(self, filename: str | os.PathLike[str]) -> None:
        self.set_anatomical_image(ImageData(filename))

    def get_anatomical_image(self) -> ImageData | None:
        return self._anatomical

    def set_kappa_filename(self, filename: str | os.PathLike[str]) -> None:
        self.set_kappa(ImageData(filename))


class _StirPLS(ParallelLevelSetsPenalty):
    def gradient(self, x: Tensor) -> Tensor:
        across, root = self._parts(x)
        result = torch.zeros_like(x)
        axes = (-2, -1) if self.only_2d else (-3, -2, -1)
        for axis in axes:
            change, into = (across[axis] / root).diff(dim=axis), result.narrow(axis, 1, x.shape[axis] - 1)
            for other in set(axes) - {axis}:
                change = change.narrow(other, 0, x.shape[other] - 1)
                into = into.narrow(other, 0, x.shape[other] - 1)
            into -= change
        return result * self._weight(result)


class EmbeddedImages(EngineImages):
    """Images of the embedded engine."""

    error = error

    @staticmethod
    def values(image: Any) -> Tensor:
        if not isinstance(image, ImageData):
            raise error(f"expected ImageData, found {type(image).__name__}")
        return image.tensor.clone()

    @staticmethod
    def grid(image: Any) -> ImageGeometry:
        return image.geometry

    @staticmethod
    def position(image: Any) -> Position | None:
        return position_of(image.exam)


class PythonPrior(EmbeddedImages, PythonObject, Prior):
    __doc__ = PythonObject.__doc__

    def __init__(self, obj: Any) -> None:
        self._take(obj)
        # A user's penalty has the factor 1, not STIR's 0: a prior that does nothing until a factor is set is a trap.
        super().__init__(obj if isinstance(obj, Penalty) else CallbackPenalty(obj))


class ScorePrior(ScoreObject, PythonPrior):
    __doc__ = ScoreObject.__doc__


class AnchorPrior(AnchorObject, PythonPrior):
    __doc__ = AnchorObject.__doc__


class BowsherPrior(BowsherObject, PythonPrior):
    __doc__ = BowsherObject.__doc__


class ScoreImageProcessor(EmbeddedImages, ProcessorObject, ImageDataProcessor):
    __doc__ = ProcessorObject.__doc__

    def apply(self, image: ImageData) -> None:
        self._see(image)
        image.tensor.copy_(self.obj(image.tensor, image.geometry))
