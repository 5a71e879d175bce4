"""State of SIRF's objective functions that has no getter: whether they are set up, their model, their penalty."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from ..stderr import silent_stderr

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def without_prior(obj: Any) -> Iterator[float]:
    """Switch the attached penalty off for as long as it lasts; gives its factor, 0 without one.

    By its factor, since the value of a penalty that has none, such as a score's, cannot be subtracted again.
    """
    try:
        prior = obj.get_prior()
        factor = float(prior.get_penalisation_factor())
    except Exception as problem:  # SIRF's own error class, which differs between versions: there is no prior
        logger.debug("no prior is attached: %s", problem)
        yield 0.0
        return
    if factor == 0:
        yield 0.0
        return
    prior.set_penalisation_factor(0)
    try:
        yield factor
    finally:
        prior.set_penalisation_factor(factor)


def is_of_sinograms(obj: Any) -> bool:
    """Made by SIRF's Python class for sinograms: only then does the handle hold the class that knows its model."""
    return any(c.__name__ == "PoissonLogLikelihoodWithLinearModelForMeanAndProjData" for c in type(obj).__mro__)


def model_of(obj: Any) -> Any:
    """The acquisition model that was given to ``obj``, or None."""
    if not is_of_sinograms(obj):
        return None
    import sirf.STIR as pet

    model = pet.AcquisitionModel()
    model.handle = _parameter(obj, "PoissonLogLikelihoodWithLinearModelForMeanAndProjData", "acquisition_model")
    return model


def _parameter(container: Any, group: str, name: str) -> Any:
    """A handle to a part of a SIRF object; from SIRF 3.10 on handles have methods."""
    if hasattr(type(container.handle), "__getattr__"):
        return container.handle.cSTIR_parameter(group, name)
    import sirf.pystir as pystir
    from sirf.Utilities import check_status

    handle = pystir.cSTIR_parameter(container.handle, group, name)
    check_status(handle)
    return handle


def require_set_up(obj: Any, num_subsets: int) -> None:
    """Raise ``RuntimeError`` unless ``obj`` is set up: SIRF ends the process if asked for sensitivities it has not.

    By asking for a subset that does not exist. STIR checks the set-up before the number, and computes nothing.
    """
    import sirf.STIR as pet

    image = pet.ImageData()
    image.initialise((1, 1, 1))
    try:
        with silent_stderr():
            obj.gradient(image, num_subsets)
    except Exception as problem:  # SIRF's own error class, which differs between versions
        if "set_up" in str(problem):
            raise RuntimeError(
                "the objective function has not been set up, or was changed since: call its set_up(image)"
            ) from problem


def set_up_model(model: Any, acquisition_data: Any, image: Any) -> None:
    """Set up a model that was left to the objective function, which sets up only what it needs itself."""
    try:
        model.domain_geometry().dimensions()
    except Exception as problem:  # SIRF's own error class
        logger.debug("the acquisition model is not set up: %s", problem)
        model.set_up(acquisition_data, image)
