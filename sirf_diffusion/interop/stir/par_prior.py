"""The prior of a STIR parameter file as one of this package's, number for number."""

from __future__ import annotations

from typing import Any

from ...files.interfile import read_image
from ...files.parfile import ParFile, ParFileError, check_keys, fold
from ...geometry.images import ImageGeometry
from ...priors import Penalty, QuadraticPenalty, RelativeDifferencePenalty
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
    own = {"relative difference prior": {"gamma value", "epsilon value"}, "quadratic": set()}.get(fold(key.value))
    if own is None:
        raise ParFileError(
            f"{par.path}:{key.line}: map-rdp cannot keep the prior '{key.value}', only 'Relative Difference Prior' and "
            "'Quadratic' (map-score keeps 'Diffusion Score'); run the file with STIR, or leave --keep-prior out"
        )
    _check_model(par)
    block = key.block
    check_keys(block, {"penalisation factor", "only 2d", "kappa filename"} | own, "there is no counterpart of")
    options: dict[str, Any] = {"neighbourhood": "transverse" if block.boolean("only 2D") else "3x3x3"}
    if filename := block.text("kappa filename"):
        options["kappa"], found = read_image(filename)
        if not found.is_near(geometry):
            raise block.error("kappa filename", f"lies on another grid, {found}: expected the image's, {geometry}")
    factor = block.real("penalisation factor", 0.0)
    if not own:
        return QuadraticPenalty(geometry, factor, **options)
    gamma, epsilon = block.real("gamma value", 2.0), block.real("epsilon value", 0.0)
    return RelativeDifferencePenalty(geometry, factor, gamma, epsilon, **options)


def score_settings_of(par: ParFile) -> tuple[str, dict[str, Any]]:
    """Model and settings of ``map-score`` for the file's ``Diffusion Score`` prior.

    ParFileError if it has another prior, or a key in its block that has no counterpart.
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
    settings = {"penalisation_factor": values["penalisation factor"], "noise_level": values["noise level"][0]}
    settings["memory"] = values["memory"]
    return values["model filename"], settings | ({"planes": values["planes"]} if values["planes"] else {})


_ONLY_IN_STIR = {
    "kappa filename", "gradient filename prefix", "intensity scale", "number of subiterations per noise level",
    "precision",
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
