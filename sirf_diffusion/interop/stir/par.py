"""Objective functions that STIR itself builds from a parameter file."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

from ...engines.stir.objective import StirObjective
from ...files.atomic import disk_errors
from ...files.parfile import ParFile, fold
from ...files.parfile.run import ParRun

logger = logging.getLogger(__name__)

# Data processors that may stand in an objective function, within its projectors.
_OURS = frozenset(("python", "diffusion denoiser", "diffusion sampler"))


def stir_objective(run: ParRun, num_subsets: int) -> tuple[StirObjective, Any]:
    """Let STIR read the data and the models of a parameter file, without its prior, for a number of subsets.

    Besides the objective, it gives STIR's first image: that of ``initial estimate``, or ones on the file's grid.

    Raises
    ------
    ImportError
        If STIR's Python module is not installed.
    ValueError
        If the file asks for what STIR would silently leave out, or STIR does not accept it; then it has written why to
        the standard error.
    """
    import stir

    text = (
        "OSMAPOSLParameters :=\n"
        f"{_objective_text(run.par)}"
        f"number of subsets := {num_subsets}\n"
        "number of subiterations := 1\n"
        f"initial estimate := {run.initial_estimate or 1}\n"
        "output filename prefix := unused\n"
        "END :=\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "objective.par"
        with disk_errors(path):
            path.write_text(text, encoding="utf-8", errors="surrogateescape")
        if num_subsets == run.num_subsets:  # another number is a method's own, of a file that was checked
            _check(path, run.par)
        try:
            reconstruction = stir.OSMAPOSLReconstruction3DFloat(str(path))
            image = reconstruction.get_initial_data()
            objective = reconstruction.get_objective_function()
            objective.set_num_subsets(num_subsets)
            if not objective.set_up(image).succeeded():
                raise RuntimeError("set_up failed")
        except RuntimeError as problem:
            raise ValueError(
                f"STIR cannot make the objective function of {run.par.path}: {problem}. See STIR's own messages above"
            ) from problem
    return StirObjective(objective, reconstruction, run.files()), image


def _check(path: Path, par: ParFile) -> None:
    """Stop where STIR would go on without what it does not know, and register our own filters if the file has any."""
    import stir_priors

    from .check import check

    report = check(path, program="OSMAPOSL")
    if report.errors:
        raise ValueError(f"{par.path}: " + "; ".join(finding.text for finding in report.errors))
    for finding in report.findings:
        logger.warning("%s: %s", par.path, finding.text)
    if any(key.block is not None and fold(key.value) in _OURS for _, key in par.objective().walk()):
        try:
            stir_priors.load()
        except stir_priors.ShimError as problem:
            raise ValueError(
                f"{par.path} has a filter of this package, which STIR does not know here: {problem}"
            ) from problem


def _objective_text(par: ParFile) -> str:
    """Lines of the objective function, without prior; variables are left for STIR to replace."""
    without = ParFile.parse(par.with_prior(None), par.path, strict=False)
    return without.lines_of(without.root.key("objective function type"))
