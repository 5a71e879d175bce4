"""Conditioning on anatomy: what a network with a second input image is shown, and how much weight it gets."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..geometry.images import ImageGeometry
from .grid import GridAdapter
from .intensity import intensity_scale

if TYPE_CHECKING:
    from ..patient import AnatomicalImage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conditioning:
    """An anatomical image on the latent grid, and the weight of classifier-free guidance.

    ``anatomy`` is ``[Z', Y', X']``, scaled as in training by `scaled_anatomical`; None for zeros, which mean "unknown"
    to a network trained with dropped anatomies. ``guidance`` is ``w >= -1``: 0 is the plain conditional model, -1 the
    unconditional one, more than 0 exaggerates what the anatomy changes.
    """

    anatomy: Tensor | None = None
    guidance: float = 0.0

    def terms(self) -> list[tuple[float, Tensor | None]]:
        r"""Weights and second inputs of the network outputs whose sum is to be taken.

        ``(1 + w) s(u, a) - w s(u, 0)`` (Ho and Salimans 2022, arXiv:2207.12598; for PET Singh et al. 2024, MELBA
        2:547). Whatever the network predicts is an affine function of the score with the same coefficients, so that
        the same weights, which sum to one, apply to it.
        """
        if self.anatomy is None or self.guidance == -1:
            return [(1.0, None)]
        if self.guidance == 0:
            return [(1.0, self.anatomy)]
        return [(1 + self.guidance, self.anatomy), (-self.guidance, None)]

    def describe(self) -> dict[str, Any]:
        """What a record needs to name it: the weight, and a hash of the anatomical image as the network sees it."""
        digest = None if self.anatomy is None else hashlib.sha256(self.anatomy.cpu().numpy().tobytes()).hexdigest()
        return {"anatomical_sha256": digest, "guidance": self.guidance}


def scaled_anatomical(anatomical: Tensor, geometry: ImageGeometry) -> Tensor:
    """The image divided by its mean over the head, by the rule that scales emission images (`intensity_scale`).

    Negative values, such as those of air in a CT image, become 0 first. Training and use must scale alike; after this,
    units and receiver gains no longer matter. Raises ValueError if the image is on another grid, not finite, or has no
    signal.
    """
    if tuple(anatomical.shape) != geometry.shape:
        raise ValueError(
            f"the anatomical image has shape {tuple(anatomical.shape)}, expected {geometry.shape} (z, y, x): "
            "resample it to the grid of the reconstruction"
        )
    positive = anatomical.clamp(min=0)
    return positive / intensity_scale(positive, geometry)


def anatomical_on(anatomical: Tensor | AnatomicalImage | str | os.PathLike[str], geometry: ImageGeometry) -> Tensor:
    """The anatomical image ``[z, y, x]`` on a grid: given there, or resampled from its own space, or from a file.

    Raises ValueError if values have another shape than the grid, or the image cannot be used there.
    """
    if isinstance(anatomical, Tensor):
        return anatomical
    from ..patient.anatomical import as_anatomical

    return as_anatomical(anatomical, geometry).on(geometry)


def check_guidance(in_channels: int, has_anatomical: bool, guidance: float) -> None:
    """Whether a network with this many input images can be guided so. Raises ValueError if not."""
    if not -1 <= guidance < math.inf:
        raise ValueError(f"guidance must be a finite number of at least -1, found {guidance!r}")
    if in_channels == 1 and (has_anatomical or guidance != 0):
        raise ValueError(
            "this model was trained without anatomical images: it takes neither an anatomical image nor guidance; "
            "use a model with two input images, or an anatomical prior such as BowsherPrior"
        )


def shown_image(
    anatomical: Tensor | AnatomicalImage | str | os.PathLike[str] | None, model: Any
) -> Tensor | AnatomicalImage | str | os.PathLike[str] | None:
    """What a network is shown: the image that is given; of a model for one patient, always the image that it expects.

    Of such a model the MR that is given only says whose data these are, and where the patient lay. Raises ValueError if
    the model was made for another MR.
    """
    expected: AnatomicalImage | None = getattr(model, "expected_image", None)
    if expected is None or anatomical is None:
        return expected if anatomical is None else anatomical
    if isinstance(anatomical, Tensor):
        raise ValueError(
            "a personalised model is shown no MR, and values on a grid do not tell whether they are those of the "
            "patient that it was made for: give the MR's file, or leave it out"
        )
    from ..patient.anatomical import AnatomicalImage

    image = anatomical if isinstance(anatomical, AnatomicalImage) else AnatomicalImage.read(anatomical)
    if image.source == expected.source:
        return image
    made_for = model.metadata["training"]["personalised"]
    if not any(made_for.get(name) == value for name, value in image.identity.items()):
        raise ValueError(
            f"the model was made for another patient's MR (SHA-256 {made_for.get('mr_sha256')!s:.12}...) than "
            f"{image.source} (SHA-256 {image.sha256:.12}...): it would draw this patient with the other's anatomy. Use "
            "the model that was made for this MR, or a model of a population"
        )
    logger.info("%s is the MR that the model was made for; the network is not shown it", image.source)
    moved = image.registration
    affine = expected.image.affine if moved is None else moved.matrix @ expected.image.affine
    place = replace(expected.image, affine=affine)
    return replace(expected, image=place, registration=moved, data_position=image.data_position)


def shown_for(
    anatomical: Tensor | AnatomicalImage | str | os.PathLike[str] | None, model: Any, data: Any
) -> Tensor | AnatomicalImage | str | os.PathLike[str] | None:
    """`shown_image` for these data, an `Objective` or a grid: it lies as their patient does."""
    shown = shown_image(model._anatomical if anatomical is None else anatomical, model)
    if shown is None or isinstance(shown, Tensor) or not hasattr(data, "exam_info"):
        return shown
    from ..patient.anatomical import as_anatomical

    image = as_anatomical(shown, data.geometry)
    return image.lying_as(data.exam_info()).say_if_assumed() if image.unplaced else image


def make_conditioning(
    in_channels: int,
    anatomical: Tensor | AnatomicalImage | str | os.PathLike[str] | None,
    guidance: float,
    geometry: ImageGeometry,
    grid: GridAdapter,
    device: torch.device,
) -> Conditioning | None:
    """Conditioning of a network with this many input images; None for one that takes the noisy image alone.

    Raises ValueError if the network takes no anatomical image and one is given, or ``guidance`` is out of range.
    """
    check_guidance(in_channels, anatomical is not None, guidance)
    if in_channels == 1:
        return None
    if anatomical is None:
        if guidance != -1:
            logger.warning(
                "the model can use an anatomical image and has none: it runs unconditionally. Give one "
                "(model.on(..., anatomical=image), model.guided_by(image), set_anatomical_image, --anatomical), or "
                "guidance=-1 if that is meant"
            )
        return Conditioning(None, -1.0)
    image = anatomical_on(anatomical, geometry)
    scaled = scaled_anatomical(image.detach().to(torch.float32).cpu(), geometry)
    return Conditioning(grid.to_latent(scaled).to(device), float(guidance))
