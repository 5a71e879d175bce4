"""The prior of a STIR parameter file as one of this package's, number for number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...files.parfile.file import ParBlock, ParFile, ParFileError, fold
from ...geometry.images import ImageGeometry
from ...priors.base import Penalty


def prior_of(par: ParFile, geometry: ImageGeometry) -> Penalty:
    """The file's ``Relative Difference Penalty`` or ``Quadratic`` prior, with STIR's constants.

    Parameters
    ----------
    par
        The file.
    geometry
        Grid of the image.

    Raises
    ------
    ParFileError
        If it has another prior, none, or a key in its block that is not known.
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
    block = key.block
    check_keys(
        block,
        {"penalisation factor", "model filename", "noise level", "planes", "device", "random seed", *_ANATOMICAL},
        "map-score has no counterpart of",
    )
    if len(block.reals("noise level")) > 1:
        raise block.error("noise level", "is a list of noise levels, which STIR's OSMAPOSL goes through: give one")
    settings: dict[str, Any] = {
        "penalisation_factor": block.real("penalisation factor"),
        "noise_level": block.real("noise level", 0.3),
    }
    if fold(block.text("planes", "auto")) != "auto":
        settings["planes"] = fold(block.text("planes"))
    return block.text("model filename"), settings


def anatomical_of(par: ParFile) -> tuple[str | None, float]:
    """Anatomical image and guidance weight of the file's ``Diffusion Score`` prior; None and 0 without."""
    key = par.prior()
    if key is None or fold(key.value) != "diffusion score":
        return None, 0.0
    filename, weight = _ANATOMICAL
    return key.block.text(filename) or None, key.block.real(weight, 0.0)


_ANATOMICAL = ("anatomical image filename", "guidance weight")


def check_keys(block: ParBlock, known: set[str], complaint: str) -> None:
    """Refuse keys that are not known, by name and line.

    Raises
    ------
    ParFileError
        For the first of them; keys without a value count as absent, as for STIR.
    """
    for key in block.keys:
        if key.value and key.name not in known:
            raise ParFileError(f"{block.path}:{key.line}: {complaint} '{key.name} := {key.value}'")


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
