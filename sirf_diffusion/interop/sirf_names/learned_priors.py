"""What this package adds to the names of ``sirf.STIR``: priors and an image processor.

`sirf_diffusion.interop.sirf` has the same for SIRF.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...geometry.images import ImageGeometry
from ...priors import Penalty
from ..prior_settings import AnchorSettings, BowsherSettings, ProcessorSettings, ScoreSettings
from .callback import CallbackPenalty
from .data import ImageData, error
from .models import ImageDataProcessor
from .priors import Prior


class PythonPrior(Prior):
    """Your own penalty, written in Python; penalisation factor 1 unless set.

    Parameters
    ----------
    obj
        An object with ``value(x) -> float`` and ``gradient(x, out)``, and optionally ``set_up(geometry)``,
        ``curvature(x, out)`` (a diagonal that bounds the Hessian), ``hessian_times(x, v, out)`` and
        ``set_kappa(kappa)``. Images are float32 arrays ``[z, y, x]``, ``x`` and ``v`` read-only, ``out`` to be
        overwritten, all without the penalisation factor. Or a :class:`sirf_diffusion.priors.Prior`, whose factor this
        object then sets.

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
        self.obj = obj
        # Not 0 as STIR has it: a prior of this package that does nothing until a factor is set would be a trap.
        self._penalisation_factor = obj.penalisation_factor if isinstance(obj, Penalty) else 1.0

    @staticmethod
    def values(image: Any) -> Tensor:
        """A copy of an image's values."""
        if not isinstance(image, ImageData):
            raise error(f"expected ImageData, found {type(image).__name__}")
        return image.tensor.clone()

    @staticmethod
    def grid(image: Any) -> ImageGeometry:
        """Grid of an image."""
        return image.geometry

    @staticmethod
    def position(image: Any) -> None:
        """How the patient lies: this engine's images do not tell."""

    def set_kappa(self, image: ImageData) -> None:
        """Handed to the object's own ``set_kappa``."""
        if not callable(getattr(self.obj, "set_kappa", None)):
            raise error(f"{type(self.obj).__name__} has no set_kappa: this prior takes no kappa")
        self._kappa = image
        self._hand_over_kappa()

    def _hand_over_kappa(self) -> None:
        if self._kappa is not None:
            own = isinstance(self.obj, Penalty)
            self.obj.set_kappa(self._kappa.tensor.clone() if own else self._kappa.as_array())

    def _make(self, image: ImageData, kappa: Tensor | None) -> Penalty:
        if hasattr(self.obj, "set_up"):
            self.obj.set_up(image.geometry)
        self._hand_over_kappa()
        if isinstance(self.obj, Penalty):
            self.obj.penalisation_factor = self._penalisation_factor
            return self.obj
        return CallbackPenalty(self.obj, self._penalisation_factor)


class ScorePrior(ScoreSettings, PythonPrior):
    __doc__ = ScoreSettings.__doc__


class AnchorPrior(AnchorSettings, PythonPrior):
    __doc__ = AnchorSettings.__doc__

    def set_kappa(self, image: ImageData) -> None:
        """Refused: an anchor has no neighbours; its local strength is the weight."""
        raise error("AnchorPrior has no kappa: use set_weight(image) for a local strength")


class BowsherPrior(BowsherSettings, PythonPrior):
    __doc__ = BowsherSettings.__doc__


class ScoreImageProcessor(ProcessorSettings, ImageDataProcessor):
    __doc__ = ProcessorSettings.__doc__

    values = staticmethod(PythonPrior.values)
    grid = staticmethod(PythonPrior.grid)
    position = staticmethod(PythonPrior.position)

    def apply(self, image: ImageData) -> None:
        """Denoise an image in place."""
        image.tensor.copy_(self.denoiser(image.tensor, image.geometry))
