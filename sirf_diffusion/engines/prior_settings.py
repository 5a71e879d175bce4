"""What scripts set on this package's priors: the same methods on SIRF's objects and on those of the embedded engine.

Each class is mixed into a ``PythonPrior``, which holds the penalty as ``obj`` and turns an image of its engine into a
tensor of its own with ``values``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..priors.late import LateAnchorPrior, LateBowsherPrior
from ..priors.late_score import LateScorePrior

if TYPE_CHECKING:
    from ..models import ScoreModel


class ScoreSettings:
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

    obj: LateScorePrior
    values: Callable[[Any], Tensor]

    def __init__(
        self,
        model: ScoreModel | str | os.PathLike[str],
        noise_level: float = 0.3,
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
        super().set_up(image)  # type: ignore[misc]
        if self.obj.intensity_scale is None and image.max() > image.min():
            self.obj.find_scale(self.values(image))

    def set_noise_level(self, value: float) -> None:
        """Noise level in network units; may be changed after ``set_up``."""
        self.obj.sigma = value

    def get_noise_level(self) -> float:
        """Noise level in network units."""
        return self.obj.sigma

    def set_anatomical_image(self, image: Any) -> None:
        """MR or CT image on the image grid, for a model conditioned on one; None for none."""
        self.obj.set_anatomical(None if image is None else self.values(image), self._guidance)
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


class AnchorSettings:
    r"""Half the weighted squared distance to an anchor image, :math:`\frac{\beta}{2} \sum_j w_j (x_j - v_j)^2`.

    Penalisation factor 1 unless set.

    Parameters
    ----------
    anchor_image
        The image to stay close to; copied.
    weight
        Non-negative image; 1 if None.
    """

    obj: LateAnchorPrior
    values: Callable[[Any], Tensor]

    def __init__(self, anchor_image: Any = None, weight: Any = None) -> None:
        super().__init__(LateAnchorPrior())
        self._anchor = self._weight = None
        if anchor_image is not None:
            self.set_anchor_image(anchor_image)
        if weight is not None:
            self.set_weight(weight)

    def set_anchor_image(self, image: Any) -> None:
        """The image to stay close to, which is copied; may be changed after ``set_up``."""
        self.obj.set_anchor(self.values(image))
        self._anchor = image

    def get_anchor_image(self) -> Any:
        """The image given to :meth:`set_anchor_image`, or None."""
        return self._anchor

    def set_weight(self, image: Any) -> None:
        """Non-negative weight, None for 1; may be changed after ``set_up``."""
        self.obj.set_weight(None if image is None else self.values(image))
        self._weight = image

    def get_weight(self) -> Any:
        """The image given to :meth:`set_weight`, or None."""
        return self._weight


class BowsherSettings:
    """Quadratic smoothing between voxels that look alike in an anatomical image; penalisation factor 1 unless set.

    See :class:`sirf_diffusion.priors.BowsherPrior`.

    Parameters
    ----------
    anatomical_image
        MR or CT image on the image grid.
    num_neighbours
        Neighbours that each voxel keeps; 7 of 26, or 3 of 8 in a single plane, if None.
    """

    obj: LateBowsherPrior
    values: Callable[[Any], Tensor]

    def __init__(self, anatomical_image: Any = None, num_neighbours: int | None = None) -> None:
        super().__init__(LateBowsherPrior(num_neighbours))
        self._anatomical, self._num_neighbours = None, num_neighbours
        if anatomical_image is not None:
            self.set_anatomical_image(anatomical_image)

    def set_anatomical_image(self, image: Any) -> None:
        """MR or CT image on the image grid; may be changed after ``set_up``."""
        self.obj.set_anatomical(self.values(image))
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
