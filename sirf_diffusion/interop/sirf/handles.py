"""SIRF handles of priors and image processors whose work is done by a Python object.

SIRF itself makes only objects from a fixed list, but it reads STIR's parameter files, and those may name whatever is
registered with STIR: the compiled part of :mod:`stir_priors` registers types that call Python. So the handle is that of
an object in a small parameter file, read and removed at once.
"""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any

import sirf.STIR as pet
from sirf import STIR_params

OBJECTIVE = "PoissonLogLikelihoodWithLinearModelForMeanAndProjData"


def prior_handle(obj: Any) -> Any:
    """Handle of a ``sirf.STIR.Prior`` that calls ``obj``, penalisation factor 1; it keeps ``obj`` alive.

    Parameters
    ----------
    obj
        What ``sirf_diffusion.interop.stir.callbacks.hold`` takes: an object with ``set_up(geometry)``, ``value(x)``,
        ``gradient(x, out)``, ..., or a :class:`sirf_diffusion.priors.Prior`.
    """
    found = _parsed(obj, objective=["prior type := Python"]).get_objective_function().get_prior()
    # Before SIRF 3.9 the wrapper deletes its handle: take it over.
    handle, found.handle = found.handle, None
    return handle


def processor_handle(obj: Any) -> Any:
    """Handle of a ``sirf.STIR.ImageDataProcessor`` that calls ``obj.apply(x)``; it keeps ``obj`` alive."""
    recon = _parsed(obj, reconstruction=["inter-iteration filter type := Python"])
    return STIR_params.parameter_handle(recon.handle, "IterativeReconstruction", "inter_iteration_filter_type")


def _parsed(obj: Any, objective: list[str] | None = None, reconstruction: list[str] | None = None) -> Any:
    """A reconstructor read from a parameter file in which a block ``Python Parameters`` holds ``obj``."""
    import stir_priors

    from ..stir import callbacks

    stir_priors.load()
    block = [
        "Python Parameters :=",
        "module := sirf_diffusion.interop.stir.callbacks",
        "class := held",
        f"arguments := {json.dumps({'token': callbacks.hold(obj)})}",
        "END Python Parameters :=",
    ]
    if objective is not None:
        objective = [objective[0], block[0], "penalisation factor := 1", *block[1:]]
    if reconstruction is not None:
        reconstruction = [*reconstruction, *block]
    lines = [
        "OSMAPOSLParameters :=",
        f"objective function type := {OBJECTIVE}",
        f"{OBJECTIVE} Parameters :=",
        *(objective or []),
        f"End {OBJECTIVE} Parameters :=",
        *(reconstruction or []),
        "output filename prefix := unused",
        "End :=",
    ]
    descriptor, name = tempfile.mkstemp(suffix=".par", prefix="stir_priors_")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        return pet.OSMAPOSLReconstructor(name)
    finally:
        os.remove(name)
