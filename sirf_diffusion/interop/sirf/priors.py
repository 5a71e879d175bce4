"""Priors for SIRF scripts: subclasses of ``sirf.STIR.Prior`` whose numbers come from Python, wherever STIR asks.

A prior given to an objective function is called by STIR's own algorithms (OSMAPOSL, OSSPS) and in ``value`` and
``gradient`` of the objective function. As everything that STIR calls a prior it is a *penalty*: its gradient points
uphill, and it is subtracted from the log-likelihood. Needs the compiled part of :mod:`stir_priors`, which the command
``stir-diffusion build`` makes once; this package's reconstructors do not.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import sirf.STIR as pet
from torch import Tensor

from ...engines.sirf.convert import image_geometry, patient_position, to_tensor
from ...geometry.images import ImageGeometry
from ...priors import Penalty
from ..prior_settings import AnchorSettings, BowsherSettings, ScoreSettings
from .handles import prior_handle

if TYPE_CHECKING:
    from ...geometry.positions import Position


class PythonPrior(pet.Prior):
    """Your own penalty, written in Python; penalisation factor 1 unless set.

    It stays what it is after every other reference to it is gone: STIR's object holds the Python object.

    Parameters
    ----------
    obj
        An object with ``value(x) -> float`` and ``gradient(x, out)``, and optionally ``set_up(geometry)``,
        ``curvature(x, out)`` (a diagonal that bounds the Hessian; OSSPS needs it), ``hessian_times(x, v, out)`` and
        ``set_kappa(kappa)``. Images are float32 arrays ``[z, y, x]``, ``x`` and ``v`` read-only views of STIR's memory
        that are valid during the call only, ``out`` to be overwritten; all without the penalisation factor. Or a
        :class:`sirf_diffusion.priors.Prior`, whose factor becomes that of this object.

    Raises
    ------
    TypeError
        If the object has no ``value`` or ``gradient``.
    """

    def __init__(self, obj: Any) -> None:
        super().__init__()
        missing = [name for name in ("value", "gradient") if not callable(getattr(obj, name, None))]
        if missing:
            raise TypeError(f"PythonPrior needs an object with {' and '.join(missing)}, found {type(obj).__name__}")
        self.name = type(self).__name__
        self.obj = obj
        self._kappa: Any = None
        # Read before STIR, which multiplies by a factor of its own, takes the object over and sets this one to 1.
        factor = obj.penalisation_factor if isinstance(obj, Penalty) else 1.0
        self.handle = prior_handle(obj)
        self.set_penalisation_factor(factor)

    @staticmethod
    def values(image: Any) -> Tensor:
        """A copy of an image's values, independent of what becomes of the image."""
        if not isinstance(image, pet.ImageData):
            raise pet.error(f"expected sirf.STIR.ImageData, found {type(image).__name__}")
        return to_tensor(image)

    @staticmethod
    def grid(image: Any) -> ImageGeometry:
        """Grid of an image."""
        return image_geometry(image)

    @staticmethod
    def position(image: Any) -> Position | None:
        """How the patient lies."""
        return patient_position(image)

    def set_kappa(self, image: Any) -> None:
        """Image that scales the penalty locally, handed to the object's own ``set_kappa``; takes effect at once."""
        if not callable(getattr(self.obj, "set_kappa", None)):
            raise pet.error(f"{type(self.obj).__name__} has no set_kappa: this prior takes no kappa")
        kappa = self.values(image)
        self.obj.set_kappa(kappa if isinstance(self.obj, Penalty) else kappa.numpy())
        self._kappa = image

    def get_kappa(self) -> Any:
        """The image given to :meth:`set_kappa`, or None."""
        return self._kappa

    @property
    def penalty(self) -> Penalty:
        """The penalty on tensors with the present penalisation factor, for this package's reconstructors.

        Raises
        ------
        TypeError
            If the object is not a :class:`sirf_diffusion.priors.Prior`.
        """
        if not isinstance(self.obj, Penalty):
            raise TypeError(f"{type(self.obj).__name__} is written on arrays: only STIR's algorithms can use it")
        penalty = copy.copy(self.obj)
        penalty.penalisation_factor = self.get_penalisation_factor()
        return penalty

    def get_gradient(self, image: Any, out: Any = None) -> Any:
        """Gradient of the penalty, penalisation factor included, in ``out`` (which may be ``image``) or a new image."""
        if out is not None and out.handle is image.handle:
            return out.fill(super().get_gradient(image))
        return super().get_gradient(image, out)

    def multiply_with_Hessian(self, current_estimate: Any, input_: Any, out: Any = None) -> Any:
        """Hessian of the penalty at an image, times another image; ``out`` may be either of them."""
        if out is not None and out.handle in (current_estimate.handle, input_.handle):
            return out.fill(super().multiply_with_Hessian(current_estimate, input_))
        return super().multiply_with_Hessian(current_estimate, input_, out)


class ScorePrior(ScoreSettings, PythonPrior):
    __doc__ = ScoreSettings.__doc__


class AnchorPrior(AnchorSettings, PythonPrior):
    __doc__ = AnchorSettings.__doc__

    def set_kappa(self, image: Any) -> None:
        """Refused: an anchor has no neighbours; its local strength is the weight."""
        raise pet.error("AnchorPrior has no kappa: use set_weight(image) for a local strength")


class BowsherPrior(BowsherSettings, PythonPrior):
    __doc__ = BowsherSettings.__doc__
