"""Where the likelihood comes from: the Objective protocol and its providers."""

from __future__ import annotations

import logging
from typing import Any

from .objective import Evaluation, Objective, ProjectionCounter

__all__ = ["Evaluation", "Objective", "ProjectionCounter", "as_objective"]

logger = logging.getLogger(__name__)


def as_objective(obj: Any, **options: Any) -> Objective:
    """The log-likelihood of an objective function, as this package's reconstructors need it.

    A penalty attached to the objective function is left out, with a warning: reconstructors take theirs as an argument.

    Parameters
    ----------
    obj
        An :class:`~sirf_diffusion.engines.objective.Objective`, returned as it is, or an objective function of SIRF, of
        STIR's Python module or of the embedded engine that has been set up.
    options
        For SIRF's: ``acquisition_data`` and ``acquisition_model``, see
        :class:`~sirf_diffusion.engines.sirf.objective.SirfObjective`.

    Raises
    ------
    TypeError
        For anything else.
    """
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
        f"cannot make an objective of {_kind(obj)}: give an Objective, or an objective function of SIRF, of STIR's "
        "Python module or of sirf_diffusion.get_engine('embedded').make_Poisson_loglikelihood(...)"
    )


def _kind(obj: Any) -> str:
    return f"{type(obj).__module__}.{type(obj).__qualname__}"
