"""Where the likelihood comes from: the Objective protocol and its providers."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from functools import lru_cache
from types import ModuleType
from typing import Any

from .objective import Evaluation, Objective, ProjectionCounter

__all__ = ["Evaluation", "Objective", "ProjectionCounter", "as_objective", "get_engine"]

logger = logging.getLogger(__name__)


def get_engine(name: str = "auto") -> ModuleType:
    """The module that offers ``ImageData``, ``AcquisitionData``, ``OSMAPOSLReconstructor``, ... to a script.

    Parameters
    ----------
    name
        ``"sirf"`` for all of ``sirf.STIR`` and this package's priors besides
        (:mod:`sirf_diffusion.engines.sirf`), ``"embedded"`` for the same names without SIRF, ``"auto"`` for SIRF if it
        can be imported and the embedded engine otherwise; which one it became is logged once.

    Raises
    ------
    ValueError
        For another name.
    ImportError
        If SIRF was asked for by name and cannot be imported.

    Examples
    --------
    >>> get_engine("embedded").__name__
    'sirf_diffusion.engines.embedded.sirf_api'
    """
    if name == "auto":
        return _automatic()
    if name == "embedded":
        return importlib.import_module("sirf_diffusion.engines.embedded.sirf_api")
    if name == "sirf":
        try:
            importlib.import_module("sirf.STIR")
        except ImportError as problem:
            raise ImportError(
                f"engine 'sirf' was asked for, but sirf.STIR cannot be imported ({problem}). Install SIRF, for "
                "instance from the image ghcr.io/synerbi/sirf, or use get_engine('embedded')"
            ) from problem
        return importlib.import_module("sirf_diffusion.engines.sirf")
    raise ValueError(f"engine must be 'auto', 'embedded' or 'sirf', found {name!r}")


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
    from .embedded.sirf_reconstruction import PoissonLogLikelihoodWithLinearModelForMeanAndProjData

    if isinstance(obj, PoissonLogLikelihoodWithLinearModelForMeanAndProjData):
        likelihood = obj.log_likelihood
        if obj.penalty is not None:
            logger.warning("the penalty of the objective function is left out: give it to the reconstructor")
        return likelihood
    raise TypeError(
        f"cannot make an objective of {_kind(obj)}: give an Objective, or an objective function of SIRF, of STIR's "
        "Python module or of sirf_diffusion.get_engine('embedded').make_Poisson_loglikelihood(...)"
    )


def _kind(obj: Any) -> str:
    return f"{type(obj).__module__}.{type(obj).__qualname__}"


@lru_cache(maxsize=1)
def _automatic() -> ModuleType:
    try:
        module = get_engine("sirf")
    except ImportError:
        module = get_engine("embedded")
        logger.info("SIRF is not installed: using the embedded engine")
    else:
        logger.info("using SIRF")
    return module
