"""Settings that say how a score model is applied to images (planes, extent, crop), and its binding to the data."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from ..engines.objective import Objective
from ..models.grid import PLANES
from .settings import choice, real

if TYPE_CHECKING:
    from ..models.score_model import ScoreModel

logger = logging.getLogger(__name__)


def planes_setting() -> Any:
    """Field of the orientations in which a volume is seen."""
    return choice(
        None,
        "of volumes: `transverse` slices; `three`, the mean over three orientations; `alternating`, one of them after "
        "the other from noise level to noise level, and their mean at the last; `volume` for networks of volumes. "
        "Unless given, samplers have `alternating`, `map-score` has `three`; see [volumes](#volumes)",
        PLANES,
    )


def extent_setting() -> Any:
    """Field of the side of the square that the network covers."""
    return real(
        None,
        "side in mm of the central square that the network covers; the whole image unless given",
        open_below=True,
    )


def as_score_model(model: Any, device: Any = "cpu", precision: str = "auto") -> ScoreModel:
    """A score model, or that of a bundled name or a file; TypeError for anything else."""
    from ..models.score_model import ScoreModel

    if isinstance(model, (str, os.PathLike)):
        return ScoreModel.load(model, str(device), precision)
    if not hasattr(model, "predict"):
        raise TypeError(f"expected a score model, the name of a bundled one or a file, found {type(model).__name__}")
    return model


def seen_as_volume(model: ScoreModel | None, objective: Objective, planes: str | None) -> bool:
    """Whether more than transverse slices are looked at, for which some defaults are others."""
    if model is not None and model.geometry is not None:
        return model.planes != "transverse"
    return objective.geometry.shape[0] > 1 and planes != "transverse"


def bound(
    model: ScoreModel, objective: Objective, planes: str | None, extent: float | None, **options: Any
) -> ScoreModel:
    """The model for the data of an objective; one that is bound already is only checked."""
    check_bound(model, objective, planes, extent)
    return model if model.geometry is not None else model.for_data(objective, planes=planes, extent=extent, **options)


def check_bound(
    model: ScoreModel, objective: Objective, planes: str | None, extent: float | None, crop: bool = False
) -> None:
    """Whether a model that is bound already is bound as it should be; see `bound`. ``crop``: it was asked for."""
    if model.geometry is None:
        return
    if model.geometry != objective.geometry:
        raise ValueError(
            f"the model is bound to {model.geometry}, the data need {objective.geometry}; bind it with "
            "model.for_data(objective)"
        )
    if crop and model.box is None:
        logger.warning("crop=True has no effect: the model is bound to the whole image already; give it unbound")
    for name, wanted, found in (("planes", planes, model.planes), ("extent", extent, model.extent)):
        if wanted is not None and wanted != found:
            raise ValueError(f"{name}={wanted!r} is asked for, but the model is bound with {found!r}: give it unbound")
