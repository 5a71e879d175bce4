"""The score model of a reconstruction, and what guides it: an anatomical image, its weight, its registration."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..geometry.checks import check_choice
from ..reconstructors.methods import METHODS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..geometry.exam import ExamInfo
    from ..geometry.images import ImageGeometry
    from ..patient import AnatomicalImage, Placed
    from ..reconstructors.base import Reconstructor
    from .data import Data

logger = logging.getLogger(__name__)

#: What an anatomical image can be registered to.
TARGETS = ("emission", "attenuation")


@dataclass(frozen=True)
class Guide:
    """An anatomical image for a reconstruction.

    Parameters
    ----------
    anatomical
        A file (Interfile, NIfTI, a folder with one DICOM series), an image in its own space, or values ``[z, y, x]``
        on the grid of the reconstruction; None for none.
    guidance
        Weight of guidance, at least -1: 0 is the plain conditional model, -1 the unconditional one.
    register_to
        ``"emission"`` (an early OSEM image) or ``"attenuation"`` (the data's attenuation image): the anatomical image
        is moved onto it rigidly first. None: it is aligned already.
    """

    anatomical: AnatomicalImage | Tensor | str | os.PathLike[str] | None = None
    guidance: float = 0.0
    register_to: str | None = None

    def check(self, method: str, model: Any) -> None:
        """Whether a method with this score model (None if it uses none) can be guided so, before anything is computed.

        Raises
        ------
        ValueError
            If the model takes no anatomical image and one is given, or it takes one and there is none, or it was made
            for another patient's MR.
        """
        if self.register_to is not None:
            check_choice("register_to", self.register_to, TARGETS)
            if self.anatomical is None and getattr(model, "expected_image", None) is None:
                raise ValueError("there is no anatomical image to be registered: give one (--anatomical)")
        if model is None:
            if self.anatomical is not None or self.guidance != 0:
                others = ", ".join(name for name, other in METHODS.items() if other.uses_model)
                raise ValueError(
                    f"{method} uses no score model, which an anatomical image could guide: leave --anatomical and "
                    f"--guidance out, or use one of {others}"
                )
            return
        from ..models.conditioning import check_guidance, shown_image

        in_channels = getattr(model, "in_channels", 1)
        check_guidance(in_channels, shown_image(self.anatomical, model) is not None, self.guidance)
        if in_channels > 1 and self.anatomical is None and self.guidance != -1 and not model.is_guided:
            raise ValueError(
                "this model was trained with anatomical images (MR or CT) and there is none: give one (--anatomical "
                "FILE), or guidance -1 (--guidance -1) to run it without"
            )

    def place(self, model: Any, data: Data, exam: ExamInfo, emission: Tensor) -> Placed | None:
        """What the model is shown on the grid of the data, registered if asked for; None if there is nothing.

        ``exam`` tells how the patient lay, ``emission`` is an early image ``[z, y, x]`` of the data. Raises ValueError
        if the image lies elsewhere, or cannot be registered.
        """
        from ..models.conditioning import shown_image

        shown = shown_image(self.anatomical, model)
        if shown is None:
            return None
        from ..patient.anatomical import as_anatomical, load_anatomical

        lying = as_anatomical(shown, data.geometry).lying_as(exam).say_if_assumed()
        return load_anatomical(lying, data.geometry, register_to=self._target(data, emission), emission=emission)

    def _target(self, data: Data, emission: Tensor) -> Any:
        if self.register_to is None:
            return None
        if self.register_to == "emission":
            return emission, data.geometry
        if data.attenuation is None:  # STIR keeps its own to itself
            raise ValueError(
                "there is no attenuation image among the data to register to: use --register emission, or give one "
                "(--attenuation MU.hv)"
            )
        return data.attenuation


def as_shown(values: Tensor | None, model: Any, geometry: ImageGeometry) -> Any:
    """What `Guide.place` put on the grid, as the model takes it: of a personalised one, said to be what it expects."""
    if values is None or getattr(model, "expected_image", None) is None:
        return values
    from ..models.expected_image import EXPECTED
    from ..patient import AnatomicalImage

    return AnatomicalImage.of(values, geometry, EXPECTED)


def load_model_for(
    method: type[Reconstructor], model: Any, device: torch.device | str = "cpu", precision: str = "auto"
) -> Any:
    """The score model that a method needs, loaded if it is a name or a file; None if it needs none.

    Without one, the bundled `~sirf_diffusion.models.storage.DEFAULT_MODEL`.

    Raises
    ------
    ValueError
        If the file is not a model.
    """
    if not method.uses_model:
        if model is not None:
            logger.warning("%s uses no score model; the one given is left aside", method.method)
        if precision != "auto":
            logger.warning("%s uses no network; the precision %s has no effect", method.method, precision)
        return None
    from ..models.storage import DEFAULT_MODEL
    from ..reconstructors.view import as_score_model

    if model is None:
        model = method.default_model or DEFAULT_MODEL
        logger.info("no score model given: %s, the default", model)
    return as_score_model(model, device, precision)


def describe_model(model: Any, guide: Guide) -> dict[str, Any]:
    """What a record tells of the bound model that made an image."""
    made_for = model.metadata["training"].get("personalised")
    return {
        "sha256": model.hash,
        "voxel_size_mm": model.voxel_size,
        "planes": model.planes,
        "box": model.box,
        "coarse": None if model.coarse is None else model.coarse.describe(),
        "precision": model.precision,
        "metadata": model.metadata,
        **({} if made_for is None else {"made_for": made_for, "mr_compared": guide.anatomical is not None}),
    }
