"""What this package adds to the names of ``sirf.STIR``: priors and an image processor.

`sirf_diffusion.engines.sirf` has the same for SIRF.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...models.denoiser import Denoiser
from ...priors import BowsherPrior as Bowsher
from ...priors import LateScorePrior, QuadraticAnchorPrior
from ...priors import Prior as Penalty
from .sirf_callback import CallbackPenalty
from .sirf_data import ImageData, error
from .sirf_models import ImageDataProcessor
from .sirf_priors import Prior

if TYPE_CHECKING:
    from ...models import ScoreModel


class _FactorOne(Prior):
    """A prior whose penalisation factor is 1 unless set: one that does nothing until then is a trap."""

    def __init__(self, penalisation_factor: float = 1.0) -> None:
        super().__init__()
        self._penalisation_factor = penalisation_factor


class ScorePrior(_FactorOne):
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
        super().__init__()
        self._late = LateScorePrior(model, noise_level, planes=planes, intensity_scale=intensity_scale, device=device)
        self._anatomical: ImageData | None = None
        self._guidance = 0.0

    def set_noise_level(self, value: float) -> None:
        """Noise level in network units; may be changed after ``set_up``."""
        self._late.sigma = value

    def get_noise_level(self) -> float:
        """Noise level in network units."""
        return self._late.sigma

    def set_anatomical_image(self, image: ImageData | None) -> None:
        """MR or CT image on the image grid, for a model conditioned on one."""
        self._anatomical = image
        self._late.set_anatomical(None if image is None else image.tensor.clone(), self._guidance)

    def get_anatomical_image(self) -> ImageData | None:
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
        return self._late.intensity_scale

    def _make(self, image: ImageData, kappa: Tensor | None) -> Penalty:
        late = self._late
        late.set_kappa(kappa)
        late.penalisation_factor = self._penalisation_factor
        late.set_up(image.geometry)
        if late.intensity_scale is None and image.max() > image.min():
            late.find_scale(image.tensor)
        return late


class AnchorPrior(_FactorOne):
    """Half the weighted squared distance to an anchor image; penalisation factor 1 unless set.

    Parameters
    ----------
    anchor_image
        The image to stay close to.
    weight
        Non-negative image; 1 if None.
    """

    def __init__(self, anchor_image: ImageData | None = None, weight: ImageData | None = None) -> None:
        super().__init__()
        self._anchor, self._weight = anchor_image, weight

    def set_anchor_image(self, image: ImageData) -> None:
        """The image to stay close to; may be changed after ``set_up``."""
        self._anchor = image
        self._renew()

    def get_anchor_image(self) -> ImageData | None:
        """The image to stay close to."""
        return self._anchor

    def set_weight(self, image: ImageData | None) -> None:
        """Non-negative weight; may be changed after ``set_up``."""
        self._weight = image
        self._renew()

    def get_weight(self) -> ImageData | None:
        """The weight, or None."""
        return self._weight

    def set_kappa(self, image: ImageData) -> None:
        """Refused: an anchor has no neighbours; its local strength is the weight."""
        raise error("AnchorPrior has no kappa: use set_weight(image) for a local strength")

    def _renew(self) -> None:
        if self._penalty is not None:
            self._penalty = self._make(self._anchor, None)

    def _make(self, image: ImageData, kappa: Tensor | None) -> Penalty:
        if self._anchor is None:
            raise error("AnchorPrior has no anchor image: call set_anchor_image(image) before set_up()")
        image._check_same(self._anchor)
        weight = None if self._weight is None else self._weight.tensor.clone()
        return QuadraticAnchorPrior(self._anchor.tensor.clone(), self._penalisation_factor, weight)


class BowsherPrior(_FactorOne):
    """Quadratic smoothing between voxels that look alike in an anatomical image; penalisation factor 1 unless set.

    See :class:`sirf_diffusion.priors.BowsherPrior`.

    Parameters
    ----------
    anatomical_image
        MR or CT image on the image grid.
    num_neighbours
        Neighbours that each voxel keeps; 7 of 26, or 3 of 8 in a single plane, if None.
    """

    def __init__(self, anatomical_image: ImageData | None = None, num_neighbours: int | None = None) -> None:
        super().__init__()
        self._anatomical, self._num_neighbours = anatomical_image, num_neighbours

    def set_anatomical_image(self, image: ImageData) -> None:
        """MR or CT image on the image grid; may be changed after ``set_up``."""
        self._anatomical = image
        if isinstance(self._penalty, Bowsher):
            self._penalty.set_anatomical(image.tensor)

    def get_anatomical_image(self) -> ImageData | None:
        """MR or CT image."""
        return self._anatomical

    def set_num_neighbours(self, value: int | None) -> None:
        """Neighbours that each voxel keeps; takes effect at the next ``set_up``."""
        self._num_neighbours, self._penalty = value, None

    def get_num_neighbours(self) -> int | None:
        """Neighbours that each voxel keeps; None for the default."""
        return self._num_neighbours

    def _make(self, image: ImageData, kappa: Tensor | None) -> Penalty:
        if self._anatomical is None:
            raise error("BowsherPrior has no anatomical image: call set_anatomical_image(image) before set_up()")
        return Bowsher(image.geometry, self._penalisation_factor, self._anatomical.tensor, self._num_neighbours, kappa)


class PythonPrior(_FactorOne):
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
        super().__init__(obj.penalisation_factor if isinstance(obj, Penalty) else 1.0)
        missing = [name for name in ("value", "gradient") if not callable(getattr(obj, name, None))]
        if missing:
            raise TypeError(f"PythonPrior needs an object with {' and '.join(missing)}, found {type(obj).__name__}")
        self.obj = obj

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


class ScoreImageProcessor(ImageDataProcessor):
    """Enhances an image by taking out its noise with a score model, see `sirf_diffusion.models.denoiser.Denoiser`.

    Parameters
    ----------
    model
        A score model, the name of a bundled one, or a file.
    noise_level
        Noise level in network units; estimated for each image if None.
    planes, intensity_scale, device
        As for :class:`ScorePrior`; the scale is estimated for each image if None.
    """

    def __init__(
        self,
        model: ScoreModel | str | os.PathLike[str],
        noise_level: float | None = None,
        planes: str | None = None,
        intensity_scale: float | None = None,
        device: str = "auto",
    ) -> None:
        super().__init__()
        if isinstance(model, (str, os.PathLike)):
            from ...models import ScoreModel

            model = ScoreModel.load(model, device=device)
        self._denoiser = Denoiser(model, noise_level, planes=planes, intensity_scale=intensity_scale)

    def set_noise_level(self, value: float | None) -> None:
        """Noise level in network units; None to estimate it for each image."""
        self._denoiser.noise_level = value

    def get_noise_level(self) -> float | None:
        """Noise level; after processing, the one that was used."""
        return self._denoiser.used_noise_level or self._denoiser.noise_level

    def apply(self, image: ImageData) -> None:
        """Denoise an image in place."""
        image.tensor.copy_(self._denoiser(image.tensor, image.geometry))
