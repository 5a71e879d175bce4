"""Priors for SIRF scripts: subclasses of ``sirf.STIR.Prior`` whose numbers come from Python, wherever STIR asks.

A prior given to an objective function is called by STIR's own algorithms (OSMAPOSL, OSSPS) and in ``value`` and
``gradient`` of the objective function. As everything that STIR calls a prior it is a *penalty*: its gradient points
uphill, and it is subtracted from the log-likelihood. Needs the compiled part of :mod:`stir_priors`, which the command
``stir-diffusion build`` makes once; this package's reconstructors do not.
"""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any

import sirf.STIR as pet
from torch import Tensor

from ...priors import LateScorePrior
from ...priors import Prior as Penalty
from ...priors.late import LateAnchorPrior, LateBowsherPrior
from .convert import to_tensor
from .handles import prior_handle

if TYPE_CHECKING:
    from ...models import ScoreModel


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

    def set_kappa(self, image: Any) -> None:
        """Image that scales the penalty locally, handed to the object's own ``set_kappa``; takes effect at once."""
        if not callable(getattr(self.obj, "set_kappa", None)):
            raise pet.error(f"{type(self.obj).__name__} has no set_kappa: this prior takes no kappa")
        kappa = _values(image)
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


class ScorePrior(PythonPrior):
    """A diffusion model as a penalty, see :class:`sirf_diffusion.priors.ScorePrior`; penalisation factor 1 unless set.

    Parameters
    ----------
    model
        A score model, the name of a bundled one, or a file.
    noise_level
        Noise level in network units, relative to a unit-mean image, > 0.
    planes
        ``"transverse"`` or ``"three"``; None takes ``"three"`` for volumes.
    intensity_scale
        Image units per network unit; if None, estimated from the image given to ``set_up`` if that has structure, else
        from the first one that has (until then the penalty is zero, with a warning).
    device
        Where the network runs.
    """

    def __init__(
        self,
        model: ScoreModel | str | os.PathLike[str],
        noise_level: float = 0.2,
        planes: str | None = None,
        intensity_scale: float | None = None,
        device: str = "auto",
    ) -> None:
        super().__init__(
            LateScorePrior(model, noise_level, planes=planes, intensity_scale=intensity_scale, device=device)
        )
        self._anatomical: Any = None
        self._guidance = 0.0

    def set_up(self, image: Any) -> None:
        """Prepare for images of this grid."""
        super().set_up(image)
        if self.obj.intensity_scale is None and image.max() > image.min():
            self.obj.find_scale(_values(image))

    def set_noise_level(self, value: float) -> None:
        """Noise level in network units; may be changed after ``set_up``."""
        self.obj.sigma = value

    def get_noise_level(self) -> float:
        """Noise level in network units."""
        return self.obj.sigma

    def set_anatomical_image(self, image: Any) -> None:
        """MR or CT image on the image grid, for a model conditioned on one; None for none."""
        self.obj.set_anatomical(None if image is None else _values(image), self._guidance)
        self._anatomical = image

    def get_anatomical_image(self) -> Any:
        """The image given to :meth:`set_anatomical_image`, or None."""
        return self._anatomical

    def set_guidance(self, value: float) -> None:
        """Weight of classifier-free guidance, at least -1; 0 is the plain conditional model."""
        self._guidance = float(value)
        self.set_anatomical_image(self._anatomical)

    def get_guidance(self) -> float:
        """Weight of classifier-free guidance."""
        return self._guidance

    def get_intensity_scale(self) -> float | None:
        """Image units per network unit; None as long as it is not known."""
        return self.obj.intensity_scale


class AnchorPrior(PythonPrior):
    r"""Half the weighted squared distance to an anchor image, :math:`\frac{\beta}{2} \sum_j w_j (x_j - v_j)^2`.

    Penalisation factor 1 unless set.

    Parameters
    ----------
    anchor_image
        The image to stay close to; copied.
    weight
        Non-negative image; 1 if None.
    """

    def __init__(self, anchor_image: Any = None, weight: Any = None) -> None:
        super().__init__(LateAnchorPrior())
        self._anchor = self._weight = None
        if anchor_image is not None:
            self.set_anchor_image(anchor_image)
        if weight is not None:
            self.set_weight(weight)

    def set_anchor_image(self, image: Any) -> None:
        """The image to stay close to, which is copied; may be changed after ``set_up``."""
        self.obj.set_anchor(_values(image))
        self._anchor = image

    def get_anchor_image(self) -> Any:
        """The image given to :meth:`set_anchor_image`, or None."""
        return self._anchor

    def set_weight(self, image: Any) -> None:
        """Non-negative weight, None for 1; may be changed after ``set_up``."""
        self.obj.set_weight(None if image is None else _values(image))
        self._weight = image

    def get_weight(self) -> Any:
        """The image given to :meth:`set_weight`, or None."""
        return self._weight

    def set_kappa(self, image: Any) -> None:
        """Refused: an anchor has no neighbours; its local strength is the weight."""
        raise pet.error("AnchorPrior has no kappa: use set_weight(image) for a local strength")


class BowsherPrior(PythonPrior):
    """Quadratic smoothing between voxels that look alike in an anatomical image; penalisation factor 1 unless set.

    See :class:`sirf_diffusion.priors.BowsherPrior`.

    Parameters
    ----------
    anatomical_image
        MR or CT image on the image grid.
    num_neighbours
        Neighbours that each voxel keeps; 7 of 26, or 3 of 8 in a single plane, if None.
    """

    def __init__(self, anatomical_image: Any = None, num_neighbours: int | None = None) -> None:
        super().__init__(LateBowsherPrior(num_neighbours))
        self._anatomical, self._num_neighbours = None, num_neighbours
        if anatomical_image is not None:
            self.set_anatomical_image(anatomical_image)

    def set_anatomical_image(self, image: Any) -> None:
        """MR or CT image on the image grid; may be changed after ``set_up``."""
        self.obj.set_anatomical(_values(image))
        self._anatomical = image

    def get_anatomical_image(self) -> Any:
        """The image given to :meth:`set_anatomical_image`, or None."""
        return self._anatomical

    def set_num_neighbours(self, value: int | None) -> None:
        """Neighbours that each voxel keeps, None for the default; may be changed after ``set_up``."""
        self.obj.set_num_neighbours(value)
        self._num_neighbours = value

    def get_num_neighbours(self) -> int | None:
        """Neighbours that each voxel keeps; None for the default."""
        return self._num_neighbours


def _values(image: Any) -> Tensor:
    """A copy of an image's values, independent of what becomes of the image."""
    if not isinstance(image, pet.ImageData):
        raise pet.error(f"expected sirf.STIR.ImageData, found {type(image).__name__}")
    return to_tensor(image)
