"""Priors and image processor as objects for scripts: one set of methods for SIRF's images and the embedded engine's.

Each class is mixed into one of an engine, which turns its images into tensors: `values`, `grid`, `position`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..geometry.checks import check_real
from ..geometry.images import ImageGeometry
from ..models.denoiser import Denoiser
from ..models.storage import DEFAULT_MODEL
from ..priors import MEMORY, NOISE_LEVEL, AnchorPenalty, BowsherPenalty, Penalty, ScorePenalty
from ..reconstructors.enhancement import image_filter

if TYPE_CHECKING:
    from ..geometry.exam import ExamInfo
    from ..models import ScoreModel
    from ..patient import AnatomicalImage, Position


class EngineImages:
    """What a script's object needs to know of its engine's images."""

    error: type[Exception]  # what the engine raises
    values: Callable[[Any], Tensor]  # a copy, independent of what becomes of the image
    grid: Callable[[Any], ImageGeometry]
    position: Callable[[Any], Position | None]  # how the patient lies; None if that is not known


class PythonObject(EngineImages):
    """Your own penalty, written in Python; penalisation factor 1 unless set.

    It stays what it is after every other reference to it is gone.

    Parameters
    ----------
    obj
        An object with ``value(x) -> float`` and ``gradient(x, out)``, and optionally ``set_up(geometry)``,
        ``curvature(x, out)`` (a diagonal that bounds the Hessian; OSSPS needs it), ``hessian_times(x, v, out)`` and
        ``set_kappa(kappa)``. Images are float32 arrays ``[z, y, x]``, ``x`` and ``v`` read-only and valid during the
        call only, ``out`` to be overwritten; all without the penalisation factor. Or a
        :class:`sirf_diffusion.priors.Penalty`, whose factor becomes that of this object.

    Raises
    ------
    TypeError
        If the object has no ``value`` or ``gradient``.
    """

    obj: Any
    _kappa: Any = None

    def _take(self, obj: Any) -> None:
        missing = [name for name in ("value", "gradient") if not callable(getattr(obj, name, None))]
        if missing:
            raise TypeError(f"PythonPrior needs an object with {' and '.join(missing)}, found {type(obj).__name__}")
        self.obj = obj

    def set_kappa(self, image: Any) -> None:
        """Image that scales the penalty locally, as it is now, handed to the object's own ``set_kappa``; None for none.

        It takes effect at once. Unlike with SIRF's own priors, filling the image anew later does not: set it again.
        """
        if not callable(getattr(self.obj, "set_kappa", None)) or not getattr(self.obj, "has_kappa", True):
            hint = "use set_weight(image)" if hasattr(self.obj, "set_weight") else "it has no set_kappa"
            raise self.error(f"{type(self.obj).__name__} takes no kappa: {hint}")
        kappa = None if image is None else self.values(image)
        if isinstance(self.obj, Penalty):
            self.obj.set_kappa(kappa, None if image is None else self.grid(image))
        else:
            self.obj.set_kappa(None if kappa is None else kappa.numpy())
        self._kappa = image

    def get_kappa(self) -> Any:
        """The image that was given, None for none."""
        return self._kappa


class AnatomicalObject(EngineImages):
    """An anatomical image as scripts give it; `_hand_over` gives it to who needs it."""

    _anatomical: Any = None
    _located: AnatomicalImage | None = None
    _seen: Any = None  # an image of the data
    _exam: ExamInfo | None = None  # what the data say of the patient

    def set_anatomical_image(self, image: Any) -> None:
        """MR or CT image, None for none; may be changed after ``set_up``.

        An image of the engine on any grid in the scanner's coordinates, or the name of a file: Interfile (``.hv``),
        NIfTI, or a folder with one DICOM series. It is resampled to the grid of the reconstruction if it has another
        one, which is logged; it must be aligned with the scanner.
        """
        from ..patient import AnatomicalImage

        if image is None:
            self._located = self._own()
        elif isinstance(image, (str, os.PathLike)):
            self._located = AnatomicalImage.read(image)
        else:
            self._located = AnatomicalImage.of(self.values(image), self.grid(image))
        self._anatomical = image
        self._lay()
        self._hand_over()

    def get_anatomical_image(self) -> Any:
        return self._anatomical

    def set_up(self, image: Any) -> None:
        self._see(image)
        try:
            super().set_up(image)  # type: ignore[misc]
        except ValueError as problem:
            if self._located is None or not self._located.unplaced:
                raise
            hint = "the image of set_up does not say how the patient lies; call set_prior of the objective before"
            raise ValueError(f"{problem}. Head first, supine was assumed: {hint}") from problem

    def tell_exam(self, exam: ExamInfo) -> None:
        """What the data say of the patient: how the patient lies counts more than what images say."""
        self._exam = exam
        self._see(self._seen)

    def _see(self, image: Any) -> None:
        """Take from an image of the data how the patient lies: files need it."""
        self._seen, self._located = image, self._located or self._own()
        if self._lay():
            self._hand_over()

    def _lay(self) -> bool:
        """Tell the anatomical image how the patient of the data lies; whether that is news."""
        if (before := self._located) is None or not before.needs_position:
            return False
        self._located = before.lying_as(self._exam)
        if self._located is before and self._seen is not None and (position := self.position(self._seen)) is not None:
            self._located = replace(before, data_position=position)
        return self._located.data_position != before.data_position

    def _own(self) -> AnatomicalImage | None:
        return None  # what is shown if nothing is given

    def _hand_over(self) -> None:
        self.obj.set_anatomical(self._located)  # type: ignore[attr-defined]


class GuidedObject(AnatomicalObject):
    """Besides, the weight of guidance of a conditional score model."""

    obj: Any
    _guidance = 0.0

    def set_guidance(self, value: float) -> None:
        """Weight ``w`` of classifier-free guidance, at least -1; 0 is the plain conditional model, -1 no guidance."""
        before, self._guidance = self._guidance, check_real("guidance", value, -1)
        try:
            self._hand_over()
        except ValueError:
            self._guidance = before
            raise

    def get_guidance(self) -> float:
        return self._guidance

    def _own(self) -> AnatomicalImage | None:
        return getattr(self.obj.model, "expected_image", None)  # of a personalised model

    def _hand_over(self) -> None:
        self.obj.set_anatomical(self._located, self._guidance)


class ScoreObject(GuidedObject):
    """A diffusion model as a penalty, see `sirf_diffusion.priors.ScorePenalty`; penalisation factor 0.4 unless set.

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
    memory
        Whether the noise found is kept and shown to the denoiser again, see `ScorePenalty`: then each gradient depends
        on those since ``set_up``. Without, a noise level of 0.3 and a factor of 0.2 suit.
    """

    def __init__(
        self,
        model: ScoreModel | str | os.PathLike[str] = DEFAULT_MODEL,
        noise_level: float = NOISE_LEVEL,
        planes: str | None = None,
        intensity_scale: float | None = None,
        device: str = "auto",
        memory: bool = MEMORY,
    ) -> None:
        options: dict[str, Any] = {"planes": planes, "intensity_scale": intensity_scale, "memory": memory}
        super().__init__(ScorePenalty(model, noise_level, device=device, **options))

    def set_up(self, image: Any) -> None:
        super().set_up(image)
        self._find_scale(image)

    def set_up_for_run(self, image: Any) -> None:
        """The scale that is known stays."""
        super().set_up(image)
        if self.obj.intensity_scale is None:
            self._find_scale(image)

    def _find_scale(self, image: Any) -> None:
        if image.max() > image.min():
            self.obj.find_scale(self.values(image))

    def set_noise_level(self, value: float) -> None:
        """Noise level in network units; may be changed after ``set_up``."""
        self.obj.noise_level = value

    def get_noise_level(self) -> float:
        return self.obj.noise_level

    def get_intensity_scale(self) -> float | None:
        return self.obj.intensity_scale


class AnchorObject(EngineImages):
    r"""Half the weighted squared distance to an anchor image, :math:`\frac{\beta}{2} \sum_j w_j (x_j - v_j)^2`.

    Penalisation factor 1 unless set.

    Parameters
    ----------
    anchor_image
        The image to stay close to; copied.
    weight
        Non-negative image; 1 if None.
    """

    obj: AnchorPenalty

    def __init__(self, anchor_image: Any = None, weight: Any = None) -> None:
        super().__init__(AnchorPenalty())  # type: ignore[call-arg]
        self._anchor = self._weight = None
        if anchor_image is not None:
            self.set_anchor_image(anchor_image)
        self.set_weight(weight)

    def set_anchor_image(self, image: Any) -> None:
        """The image to stay close to, which is copied; may be changed after ``set_up``."""
        self.obj.set_anchor(self.values(image), self.grid(image))
        self._anchor = image

    def get_anchor_image(self) -> Any:
        return self._anchor

    def set_weight(self, image: Any) -> None:
        """Non-negative weight, None for 1; may be changed after ``set_up``."""
        self.obj.set_weight(*((None,) if image is None else (self.values(image), self.grid(image))))
        self._weight = image

    def get_weight(self) -> Any:
        return self._weight


class BowsherObject(AnatomicalObject):
    """Quadratic smoothing between voxels that look alike in an anatomical image; penalisation factor 1 unless set.

    See :class:`sirf_diffusion.priors.BowsherPenalty`.

    Parameters
    ----------
    anatomical_image
        MR or CT image, or the name of a file, see :meth:`set_anatomical_image`.
    num_neighbours
        Neighbours that each voxel keeps; 7 of 26, or 3 of 8 in a single plane, if None.
    """

    obj: BowsherPenalty

    def __init__(self, anatomical_image: Any = None, num_neighbours: int | None = None) -> None:
        super().__init__(BowsherPenalty(num_neighbours=num_neighbours))  # type: ignore[call-arg]
        self._num_neighbours = num_neighbours
        if anatomical_image is not None:
            self.set_anatomical_image(anatomical_image)

    def set_num_neighbours(self, value: int | None) -> None:
        """Neighbours that each voxel keeps, None for the default; may be changed after ``set_up``."""
        self.obj.set_num_neighbours(value)
        self._num_neighbours = value

    def get_num_neighbours(self) -> int | None:
        return self._num_neighbours


class ProcessorObject(GuidedObject):
    """Enhances an image by a score model, ``x -> c D(x / c, sigma)``, or an enhancement model; nothing is negative.

    ``apply``, ``process``, ``set_input`` and ``get_output`` need no compiled part. Objects of SIRF that take an image
    processor, such as ``AcquisitionModel.set_image_data_processor``, do: run ``stir-diffusion build`` once.

    Parameters
    ----------
    model
        A score model, the name of a bundled one, or a file, which may be of an enhancement model.
    noise_level
        Noise level in network units, for a score model; estimated for each image if None.
    planes, intensity_scale, device
        As for ``ScorePrior``; the scale is estimated for each image if None.
    dose_ratio
        Dose of the images, as a share of an enhancement model's standard dose; estimated for each image if None.
    """

    def __init__(
        self,
        model: ScoreModel | str | os.PathLike[str] = DEFAULT_MODEL,
        noise_level: float | None = None,
        planes: str | None = None,
        intensity_scale: float | None = None,
        device: str = "auto",
        dose_ratio: float | None = None,
    ) -> None:
        super().__init__()
        if isinstance(model, (str, os.PathLike)):
            named = {"planes": planes, "intensity_scale": intensity_scale, "dose_ratio": dose_ratio}
            self.obj = image_filter(model, device, noise_level=noise_level, **named)
        elif dose_ratio is not None:
            raise ValueError("a score model is told a noise level, not a dose ratio")
        else:
            self.obj = Denoiser(model, noise_level, planes=planes, intensity_scale=intensity_scale)

    def set_noise_level(self, value: float | None) -> None:
        """Noise level in network units; None to estimate it for each image."""
        self.obj.noise_level = value

    def get_noise_level(self) -> float | None:
        return self.obj.noise_level or self.obj.used_noise_level

    def get_dose_ratio(self) -> float | None:
        """Dose that the last image was taken for, of an enhancement model; None for a score model."""
        return getattr(self.obj, "dose_ratio", None) or getattr(self.obj, "used_dose", None)
