"""What scripts set on this package's priors and image processor: the same methods on objects of SIRF and of our engine.

Each class but the last is mixed into a ``PythonPrior``, which holds the penalty as ``obj`` and turns an image of its
engine into a tensor of its own with ``values``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..geometry.images import ImageGeometry
from ..models.denoiser import Denoiser
from ..priors.late import LateAnchorPenalty, LateBowsherPenalty
from ..priors.late_score import LateScorePenalty

if TYPE_CHECKING:
    from ..geometry.positions import Position
    from ..models import ScoreModel
    from ..patient import AnatomicalImage


class AnatomicalSettings:
    """An anatomical image as scripts give it: an image of the engine on any grid, or the name of a file.

    A class that this is mixed into says in `_hand_over` who needs the image.
    """

    values: Callable[[Any], Tensor]
    grid: Callable[[Any], ImageGeometry]
    position: Callable[[Any], Position | None]

    _anatomical: Any = None
    _located: AnatomicalImage | None = None

    def set_anatomical_image(self, image: Any) -> None:
        """MR or CT image, None for none; may be changed after ``set_up``.

        An image of the engine on any grid in the scanner's coordinates, or the name of a file: Interfile (``.hv``),
        NIfTI, or a folder with one DICOM series. It is resampled to the grid of the reconstruction if it has another
        one, which is logged; it must be aligned with the scanner.
        """
        if image is None:
            self._located = None
        else:
            from ...patient import AnatomicalImage

            if isinstance(image, (str, os.PathLike)):
                self._located = AnatomicalImage.read(image)
            else:
                self._located = AnatomicalImage.of(self.values(image), self.grid(image))
        self._anatomical = image
        self._hand_over()

    def get_anatomical_image(self) -> Any:
        """What was given to :meth:`set_anatomical_image`, or None."""
        return self._anatomical

    def _see(self, image: Any) -> None:
        """Take from an image of the data how the patient lies: files need it."""
        position = self.position(image)
        if self._located is not None and position is not None and self._located.data_position != position:
            self._located = replace(self._located, data_position=position)
            self._hand_over()

    def _hand_over(self) -> None:
        raise NotImplementedError


class GuidedSettings(AnatomicalSettings):
    """Besides, the weight of guidance of a conditional score model."""

    _guidance = 0.0

    def set_guidance(self, value: float) -> None:
        """Weight ``w`` of classifier-free guidance, at least -1; 0 is the plain conditional model, -1 no guidance."""
        self._guidance = float(value)
        self._hand_over()

    def get_guidance(self) -> float:
        """Weight of classifier-free guidance."""
        return self._guidance


class ScoreSettings(GuidedSettings):
    """A diffusion model as a penalty, see `sirf_diffusion.priors.ScorePenalty`; penalisation factor 1 unless set.

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

    obj: LateScorePenalty
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
            LateScorePenalty(model, noise_level, planes=planes, intensity_scale=intensity_scale, device=device)
        )

    def set_up(self, image: Any) -> None:
        """Prepare for images of this grid."""
        self._see(image)
        super().set_up(image)  # type: ignore[misc]
        if self.obj.intensity_scale is None and image.max() > image.min():
            self.obj.find_scale(self.values(image))

    def set_noise_level(self, value: float) -> None:
        """Noise level in network units; may be changed after ``set_up``."""
        self.obj.sigma = value

    def get_noise_level(self) -> float:
        """Noise level in network units."""
        return self.obj.sigma

    def _hand_over(self) -> None:
        self.obj.set_anatomical(self._located, self._guidance)

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

    obj: LateAnchorPenalty
    values: Callable[[Any], Tensor]

    def __init__(self, anchor_image: Any = None, weight: Any = None) -> None:
        super().__init__(LateAnchorPenalty())
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


class BowsherSettings(AnatomicalSettings):
    """Quadratic smoothing between voxels that look alike in an anatomical image; penalisation factor 1 unless set.

    See :class:`sirf_diffusion.priors.BowsherPenalty`.

    Parameters
    ----------
    anatomical_image
        MR or CT image, or the name of a file, see :meth:`set_anatomical_image`.
    num_neighbours
        Neighbours that each voxel keeps; 7 of 26, or 3 of 8 in a single plane, if None.
    """

    obj: LateBowsherPenalty
    values: Callable[[Any], Tensor]

    def __init__(self, anatomical_image: Any = None, num_neighbours: int | None = None) -> None:
        super().__init__(LateBowsherPenalty(num_neighbours))
        self._num_neighbours = num_neighbours
        if anatomical_image is not None:
            self.set_anatomical_image(anatomical_image)

    def set_up(self, image: Any) -> None:
        """Prepare for images of this grid."""
        self._see(image)
        super().set_up(image)  # type: ignore[misc]

    def _hand_over(self) -> None:
        self.obj.set_anatomical(self._located)

    def set_num_neighbours(self, value: int | None) -> None:
        """Neighbours that each voxel keeps, None for the default; may be changed after ``set_up``."""
        self.obj.set_num_neighbours(value)
        self._num_neighbours = value

    def get_num_neighbours(self) -> int | None:
        """Neighbours that each voxel keeps; None for the default."""
        return self._num_neighbours


class ProcessorSettings(GuidedSettings):
    """Enhances an image by denoising it with a score model: ``x -> c D(x / c, sigma)``, negative values set to 0.

    ``apply``, ``process``, ``set_input`` and ``get_output`` need no compiled part. Objects of SIRF that take an image
    processor, such as ``AcquisitionModel.set_image_data_processor``, do: run ``stir-diffusion build`` once.

    Parameters
    ----------
    model
        A score model, the name of a bundled one, or a file.
    noise_level
        Noise level in network units; estimated for each image if None, see
        `sirf_diffusion.models.noise_level.estimate_noise_level`.
    planes, intensity_scale, device
        As for ``ScorePrior``; the scale is estimated for each image if None.
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
        self.denoiser = Denoiser(model, noise_level, planes=planes, intensity_scale=intensity_scale)

    def set_noise_level(self, value: float | None) -> None:
        """Noise level in network units; None to estimate it for each image."""
        self.denoiser.noise_level = value

    def get_noise_level(self) -> float | None:
        """Noise level; the one that was used last if it is estimated."""
        return self.denoiser.noise_level or self.denoiser.used_noise_level

    def _hand_over(self) -> None:
        self.denoiser.set_anatomical(self._located, self._guidance)
