"""Where the likelihood comes from: the Objective protocol and its providers."""

from __future__ import annotations

import logging
from typing import Any

import torch

from ..geometry.checks import check_choice
from .objective import Evaluation, Objective, ProjectionCounter

__all__ = ["PROJECTORS", "Evaluation", "Objective", "ProjectionCounter", "as_objective"]

#: Whose projector an objective uses: the toolkit's own first.
PROJECTORS = ("toolkit", "embedded")

logger = logging.getLogger(__name__)


def as_objective(
    obj: Any, *, projector: str = PROJECTORS[0], device: str | torch.device = "cpu", **options: Any
) -> Objective:
    """The log-likelihood of an objective function, as this package's reconstructors need it.

    A penalty attached to the objective function is left out, with a warning: reconstructors take theirs as an argument.

    Parameters
    ----------
    obj
        An :class:`~sirf_diffusion.engines.objective.Objective`, or an objective function of SIRF, of STIR's Python
        module or of the embedded engine that has been set up.
    projector
        ``"toolkit"``: the objective's own. ``"embedded"``: geometry, factors, background, counts and subsets are the
        toolkit's, the projections those of the embedded engine, many times faster, on ``device``. For sinograms without
        time of flight of cylindrical scanners and ray tracing matrices; both projections of an early image must agree
        to 0.5 % (L2). For SIRF's, data and model must be known, see ``options``.
    options
        For SIRF's: ``acquisition_data`` and ``acquisition_model``, see
        :class:`~sirf_diffusion.engines.sirf.objective.SirfObjective`.

    Raises
    ------
    TypeError
        For anything else.
    ValueError
        If the embedded engine cannot stand in for the toolkit's projector, with the reason.
    """
    check_choice("projector", projector, PROJECTORS)
    objective = _objective_of(obj, options)
    if projector == PROJECTORS[0] or _is_embedded(objective):
        return objective
    if not hasattr(objective, "with_embedded_projector"):
        raise TypeError(f"the embedded projector cannot stand in for that of {_kind(obj)}")
    return objective.with_embedded_projector(device)


def _objective_of(obj: Any, options: dict[str, Any]) -> Objective:
    if isinstance(obj, Objective) and not options:
        return obj
    origin = {cls.__module__.split(".")[0] for cls in type(obj).__mro__}
    if "sirf" in origin:
        from .sirf.objective import SirfObjective

        return SirfObjective(obj, **options)
    if options:
        raise TypeError(f"as_objective takes no option {next(iter(options))!r} for {_kind(obj)}")
    if "stir" in origin:
        from .stir import StirObjective

        return StirObjective(obj)
    likelihood = getattr(obj, "log_likelihood", None)  # an objective function with SIRF's name, without SIRF
    if isinstance(likelihood, Objective):
        if obj.penalty is not None:
            logger.warning("the penalty of the objective function is left out: give it to the reconstructor")
        return likelihood
    raise TypeError(
        f"cannot make an objective of {_kind(obj)}: give an Objective, as acquisition.objective() is, or an objective "
        "function of SIRF, of STIR's Python module or of get_engine('embedded').make_Poisson_loglikelihood(...)"
    )


def _is_embedded(objective: Objective) -> bool:
    from .embedded.poisson import PoissonObjective

    return isinstance(objective, PoissonObjective)


def _kind(obj: Any) -> str:
    return f"{type(obj).__module__}.{type(obj).__qualname__}"
