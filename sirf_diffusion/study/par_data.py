"""The data of an existing parameter file of STIR, reconstructed by another method."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..engines import PROJECTORS, as_objective
from ..engines.embedded.subsets import basic_views, divide_views, largest_num_subsets
from ..files.parfile import ParFile, ParFileError
from ..files.parfile.run import ParRun
from ..reconstructors.em.osmaposl import StirUpdates, make_positive
from .data import Data, data_of
from .guide import Guide

logger = logging.getLogger(__name__)


@dataclass
class ParData:
    """A parameter file of OSMAPOSL or OSSPS; what it says is read and checked at once, its data by `read`.

    Parameters
    ----------
    engine
        Who reads the data: ``"stir"``, ``"embedded"``, or ``"auto"``, STIR where its Python module is installed.
    projector
        Whose projector is used of what STIR reads, see `sirf_diffusion.as_objective`.
    keep_prior
        Run the file's own prior: ``map-rdp`` a relative difference or quadratic prior, ``map-score`` a Diffusion Score
        prior.
    attenuation_in_factors
        See `sirf_diffusion.engines.embedded.acquisition.Acquisition`.
    """

    path: str
    method: str
    engine: str = "auto"
    projector: str = PROJECTORS[0]
    keep_prior: bool = False
    attenuation_in_factors: bool | None = None

    def __post_init__(self) -> None:
        self.engine = choose_engine(self.engine)
        if self.attenuation_in_factors and self.engine == "stir":
            raise ValueError(
                "--attenuation-in-factors yes: STIR applies all that the file says; take the attenuation image out of "
                "it, or use --engine embedded"
            )
        self.par = ParFile.read(self.path)
        self.run = ParRun.of(self.par)
        prior = self.par.prior()
        if not self.keep_prior and prior is not None:
            logger.warning(
                "%s:%d: the prior of the file, %s, is left out: --method %s brings its own (--keep-prior keeps it)",
                self.path, prior.line, prior.value, self.method,
            )  # fmt: skip
        if self.keep_prior and self.method not in ("map-rdp", "map-score"):
            raise ParFileError(
                f"--keep-prior: {self.method} has no place for the prior of {self.path}; use --method map-rdp for a "
                "relative difference or quadratic prior, map-score for a Diffusion Score prior"
            )
        if self.keep_prior and self.method == "map-rdp" and prior is None:
            raise ParFileError(f"--keep-prior: {self.path} has no prior")

    def completed(self, settings: Mapping[str, Any], model: Any, guide: Guide) -> tuple[dict[str, Any], Any, Guide]:
        """Settings, score model and anatomical image: those given, and what the file says where they say nothing."""
        settings = dict(settings)
        if self.method == "osem" and "num_iterations" not in settings:
            settings["num_iterations"] = self.run.num_epochs()
        if not self.keep_prior:
            return settings, model, guide
        if self.method == "map-score":
            from ..interop.stir.par_prior import anatomical_of, score_settings_of

            its_model, its_settings = score_settings_of(self.par)
            if guide.anatomical is None:
                anatomical, weight = anatomical_of(self.par)
                guide = replace(guide, anatomical=anatomical, guidance=guide.guidance or weight)
            return {**its_settings, **settings}, model or its_model, guide
        if given := {"penalisation_factor", "gamma", "epsilon"} & set(settings):
            raise ParFileError(f"--set {sorted(given)[0]}: with --keep-prior the file says it; leave one of them out")
        return settings, model, guide

    def read(self) -> Data:
        """Let the engine read the data.

        Raises
        ------
        ParFileError
            For what the embedded engine has no counterpart of, by name and line.
        ValueError
            If STIR does not accept the file.
        """
        data, initial = self._of_stir() if self.engine == "stir" else self._of_embedded()
        if initial is not None and self.run.enforce_positivity:
            initial = make_positive(initial)
        options: dict[str, Any] = {"initial": initial}
        if self.method == "osem":
            # As STIR would run the file.
            updates = StirUpdates(self.run.subset_order, self.run.first_update, self.run.relative_change)
            options |= {"num_subsets": self.run.num_subsets, "subset_order": updates}
        else:
            self.run.say_osem_only(self.method)
        if self.keep_prior and self.method == "map-rdp":
            from ..interop.stir.par_prior import prior_of

            options["prior"] = prior_of(self.par, data.geometry)
        return replace(data, options=options)

    def record(self) -> dict[str, Any]:
        """What the record tells of the file."""
        prior = self.par.prior()
        fate = "none" if prior is None else f"{'kept' if self.keep_prior else 'replaced'}: {prior.value}"
        return {"path": self.path, "text": self.par.text, "prior": fate}

    def _of_stir(self) -> tuple[Data, Any]:
        from ..interop.stir.check_values import not_for_stir
        from ..interop.stir.par import stir_objective

        if self.attenuation_in_factors is None:
            self._check_attenuation()
        for block, key in self.par.root.walk():
            if reason := not_for_stir(key):
                raise block.error(key.name, f":= {key.value} {reason}")
        made, image = stir_objective(self.run, self.run.num_subsets)
        if self.method == "osem" and not made.stir_objective.subsets_are_approximately_balanced():
            raise self.par.root.error("number of subsets", "is refused, as by OSMAPOSL: the subsets are not balanced")
        latest = made

        def objective(num_subsets: int, device: torch.device, exact: bool = False) -> Any:
            nonlocal latest
            if not exact and num_subsets != self.run.num_subsets:  # what the file says is STIR's to judge
                num_subsets = largest_num_subsets(range(self._num_views(latest)), num_subsets)
            if num_subsets != latest.num_subsets:
                latest, _ = stir_objective(self.run, num_subsets)
            return latest

        def embedded(num_subsets: int, device: torch.device, exact: bool = False) -> Any:
            if str(device) not in stand_ins:
                stand_ins[str(device)] = as_objective(made, projector=self.projector, device=device)
            if (found := stand_ins[str(device)]).num_subsets != num_subsets:
                found = found.with_subsets(num_subsets)
            if exact and found.num_subsets != num_subsets:
                raise ValueError(
                    f"these data cannot be divided into {num_subsets} equal subsets, but into {found.num_subsets}"
                )
            return found

        stand_ins: dict[str, Any] = {}
        chosen = objective if self.projector == PROJECTORS[0] else embedded
        data = Data(chosen, made.geometry, exam=made.exam_info())
        return data, None if self.run.initial_estimate is None else made.to_tensor(image)

    def _check_attenuation(self) -> None:
        """By the embedded engine, which has to be able to read the file."""
        from ..engines.embedded.par_acquisition import read_acquisition

        try:
            acquisition, _ = read_acquisition(self.run)
        except ValueError as problem:
            logger.info("whether the file gives attenuation twice was not looked at: %s", problem)
        else:
            acquisition.check_attenuation()

    def _num_views(self, objective: Any) -> int:
        stirs = objective.stir_objective
        return int(stirs.get_proj_data().get_num_views()) if hasattr(stirs, "get_proj_data") else self.run.num_subsets

    def _of_embedded(self) -> tuple[Data, Any]:
        from ..engines.embedded.par_acquisition import read_acquisition, warn_of_few_rays

        acquisition, initial = read_acquisition(self.run)
        warn_of_few_rays(self.run)
        if self.method == "osem":
            try:
                basic = basic_views(acquisition.geometry, acquisition.projdata, acquisition.related_views)
                divide_views(basic, self.run.num_subsets, equal=True)
            except ValueError as problem:
                raise self.par.root.error("number of subsets", f"is refused, as by OSMAPOSL: {problem}") from problem
        if self.attenuation_in_factors is not None:
            acquisition = replace(acquisition, attenuation_in_factors=self.attenuation_in_factors)
        return data_of(acquisition), initial


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
