"""``sirf-diffusion recon --par``: the data of an existing parameter file of STIR, reconstructed by another method."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any

from ..files.parfile import ParFile, ParFileError
from ..files.parfile.run import ParRun
from ..study.guide import Guide

logger = logging.getLogger(__name__)


@dataclass
class ParRequest:
    """What a parameter file contributes to a run of the command.

    Parameters
    ----------
    path
        The file.
    method
        Name of the method.
    settings
        Settings of the method, those of the file included.
    model
        Score model that was asked for, or that of the file's own prior.
    keep_prior
        Run the file's own prior.
    engine
        ``"stir"`` or ``"embedded"``.
    options
        Further arguments of :func:`~sirf_diffusion.study.reconstruction.reconstruct_from`, after :meth:`source`.
    """

    path: str
    method: str
    settings: dict[str, Any]
    model: str | None
    keep_prior: bool
    engine: str
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.engine = choose_engine(self.engine)
        self.par = ParFile.read(self.path)
        self.run = ParRun.of(self.par)
        self._check_prior()
        if self.method == "osem" and "num_iterations" not in self.settings:
            self.settings = {**self.settings, "num_iterations": self.run.num_epochs()}

    def source(self) -> Any:
        """Read the data; fills ``options``."""
        source, initial, first = self._stir() if self.engine == "stir" else self._embedded()
        if self.method == "osem":
            # As STIR would run the file: its subsets in its order, from its first image.
            self.options = {
                "num_subsets": self.run.num_subsets,
                "subset_order": self.run.subset_order,
                "initial": first if initial is None else initial,
            }
        else:
            self.options = {"initial": initial}
        if self.keep_prior and self.method == "map-rdp":
            from ..interop.stir.par_prior import prior_of

            self.options["prior"] = prior_of(self.par, source.geometry)
        return source

    def guide(self, given: Guide) -> Guide:
        """What guides the model: as given, or as in the file's own prior if that is kept."""
        if not self.keep_prior or given.anatomical is not None or self.method != "map-score":
            return given
        from ..interop.stir.par_prior import anatomical_of

        anatomical, weight = anatomical_of(self.par)
        return replace(given, anatomical=anatomical, guidance=given.guidance or weight)

    def record(self) -> dict[str, Any]:
        """What the record tells of the file."""
        prior = self.par.prior()
        fate = "none" if prior is None else f"{'kept' if self.keep_prior else 'replaced'}: {prior.value}"
        return {"parameter_file": {"path": self.path, "text": self.par.text, "prior": fate}}

    def _check_prior(self) -> None:
        prior = self.par.prior()
        if not self.keep_prior:
            if prior is not None:
                logger.warning(
                    "%s:%d: the prior of the file, %s, is left out: --method %s brings its own (--keep-prior keeps it)",
                    self.path,
                    prior.line,
                    prior.value,
                    self.method,
                )
            return
        if self.method not in ("map-rdp", "map-score"):
            raise ParFileError(
                f"--keep-prior: {self.method} has no place for the prior of {self.path}; use --method map-rdp for a "
                "relative difference or quadratic prior, map-score for a Diffusion Score prior"
            )
        if self.method == "map-score":
            from ..interop.stir.par_prior import score_settings_of

            model, settings = score_settings_of(self.par)
            self.model = self.model or model
            self.settings = {**settings, **self.settings}
        elif prior is None:
            raise ParFileError(f"--keep-prior: {self.path} has no prior")
        elif given := {"penalisation_factor", "gamma", "epsilon"} & set(self.settings):
            raise ParFileError(f"--set {sorted(given)[0]}: with --keep-prior the file says it; leave one of them out")

    def _stir(self) -> tuple[Any, Any, Any]:
        from ..study.sources import StirParSource

        source = StirParSource(self.run)
        given = None if self.run.initial_estimate is None else source.first_image
        return source, given, source.first_image

    def _embedded(self) -> tuple[Any, Any, Any]:
        import torch

        from ..engines.embedded.par_acquisition import read_acquisition
        from ..engines.embedded.subsets import basic_views, divide_views
        from ..study.sources import AcquisitionSource

        acquisition, initial = read_acquisition(self.run)
        if self.method == "osem":
            basic = basic_views(acquisition.geometry, acquisition.projdata, acquisition.related_views)
            try:
                divide_views(basic, self.run.num_subsets, equal=True)
            except ValueError as problem:
                raise self.par.root.error("number of subsets", f"is refused, as by OSMAPOSL: {problem}") from problem
        return AcquisitionSource(acquisition), initial, torch.ones(acquisition.geometry.shape)


def choose_engine(name: str) -> str:
    """``"stir"`` or ``"embedded"``; ``"auto"`` is STIR where its Python module is installed.

    Raises
    ------
    ImportError
        If STIR was asked for and its Python module does not import.
    """
    if name == "embedded":
        return name
    try:
        import stir  # noqa: F401
    except ImportError as problem:
        if name == "stir":
            raise ImportError(
                f"--engine stir: STIR's Python module does not import ({problem}). Install it, for instance by 'conda "
                "install -c conda-forge stir', or use --engine embedded"
            ) from problem
        logger.warning("STIR's Python module is not installed: the embedded engine reads the parameter file")
        return "embedded"
    logger.info("STIR makes the objective function")
    return "stir"
