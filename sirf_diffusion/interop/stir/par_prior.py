"""The prior of a STIR parameter file as one of this package's, number for number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...files.parfile import ParBlock, ParFile, ParFileError, check_keys, fold
from ...geometry.images import ImageGeometry
from ...priors.base import Penalty
from .blocks import block_of


def prior_of(par: ParFile, geometry: ImageGeometry) -> Penalty:
    """The file's ``Relative Difference Prior`` or ``Quadratic``, for images of a grid, with STIR's constants.

    Raises
    ------
    ParFileError
        If it has another prior, none, or a key in its block that is not known; or ``MAP model := multiplicative``,
        which weights the prior by the sensitivity.
    """
    key = par.prior()
    if key is None:
        raise ParFileError(f"{par.path}: there is no prior to be kept")
    name = fold(key.value)
    if name not in _PRIORS:
        raise ParFileError(
            f"{par.path}:{key.line}: prior type '{key.value}' cannot be kept here, only 'Relative Difference Prior' "
            "and 'Quadratic'; run the file with STIR, or leave --keep-prior out to replace the prior"
        )
    _check_model(par)
    return _PRIORS[name](key.block, geometry)


def score_settings_of(par: ParFile) -> tuple[str, dict[str, Any]]:
    """Model and settings of ``map-score`` for the file's ``Diffusion Score`` prior.

    Raises
    ------
    ParFileError
        If it has another prior, or a key in its block that has no counterpart.
    """
    key = par.prior()
    if key is None or fold(key.value) != "diffusion score":
        found = "no prior" if key is None else f"'{key.value}'"
        raise ParFileError(f"{par.path}: map-score can keep a 'Diffusion Score' prior, found {found}")
    block, own = key.block, block_of("prior", "Diffusion Score")
    _check_model(par)
    check_keys(block, {*own.defaults} - _ONLY_IN_STIR, "map-score has no counterpart of")
    try:
        values = own.values({name: block.text(name, default) for name, default in own.defaults.items()})
    except ValueError as problem:
        raise ParFileError(f"{block.path}:{block.line}: {problem}") from problem
    if len(values["noise level"]) > 1:
        raise block.error("noise level", "is a list of noise levels, which STIR's OSMAPOSL goes through: give one")
    settings = {"penalisation_factor": values["penalisation factor"], "sigma": values["noise level"][0]}
    return values["model filename"], settings | ({"planes": values["planes"]} if values["planes"] else {})


_ONLY_IN_STIR = {
    "kappa filename", "gradient filename prefix", "intensity scale", "number of subiterations per noise level",
}  # fmt: skip


def _check_model(par: ParFile) -> None:
    if fold(par.root.text("map model", "additive")) != "additive":
        raise par.root.error("map model", "weights the prior by the sensitivity: run the file with STIR, or remove it")


def anatomical_of(par: ParFile) -> tuple[str | None, float]:
    """Anatomical image and guidance weight of the file's ``Diffusion Score`` prior; None and 0 without."""
    key = par.prior()
    if key is None or fold(key.value) != "diffusion score":
        return None, 0.0
    return key.block.text("anatomical image filename") or None, key.block.real("guidance weight", 0.0)


def _relative_difference(block: ParBlock, geometry: ImageGeometry) -> Penalty:
    from ...priors import RelativeDifferencePenalty

    options = _shared(block, geometry, {"gamma value", "epsilon value"})
    gamma, epsilon = block.real("gamma value", 2.0), block.real("epsilon value", 0.0)
    return RelativeDifferencePenalty(geometry, gamma=gamma, epsilon=epsilon, **options)


def _quadratic(block: ParBlock, geometry: ImageGeometry) -> Penalty:
    from ...priors import QuadraticPenalty

    return QuadraticPenalty(geometry, **_shared(block, geometry, set()))


def _shared(block: ParBlock, geometry: ImageGeometry, own: set[str]) -> dict[str, Any]:
    check_keys(block, {"penalisation factor", "only 2d", "kappa filename"} | own, "there is no counterpart of")
    return {
        "penalisation_factor": block.real("penalisation factor", 0.0),
        "kappa": _kappa(block, geometry),
        "neighbourhood": "transverse" if block.boolean("only 2D") else "3x3x3",
    }


def _kappa(block: ParBlock, geometry: ImageGeometry) -> Tensor | None:
    from ...files.interfile import read_image

    if "kappa filename" not in block:
        return None
    kappa, found = read_image(block.text("kappa filename"))
    if found.shape != geometry.shape:
        raise block.error("kappa filename", f"has the size {found.shape}, the image {geometry.shape}")
    return kappa


_PRIORS: dict[str, Callable[[ParBlock, ImageGeometry], Penalty]] = {
    "relative difference prior": _relative_difference,
    "quadratic": _quadratic,
}
