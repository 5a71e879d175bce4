"""The methods by name. A new one is a file with its class, and a line in the table below.

Strengths are relative to the image's intensity scale ``c`` (see `sirf_diffusion.models.intensity_scale`), so that one
value serves images whose units differ: an image ``x`` is penalised as ``u = x / c``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pkgutil import resolve_name
from typing import Any

from ..engines.objective import Objective
from .adaptation.ddip import DDIPAdaptation, SteerableAdaptation
from .adaptation.network_adaptation import NetworkAdaptation
from .base import Reconstructor
from .em.osmaposl import OSMAPOSL, StirUpdates

_CLASSES = (
    "em.osem:OSEM",
    "em.map_methods:RelativeDifferenceMAP",
    "em.map_methods:ScoreMAP",
    "diffusion.dds:DDSReconstructor",
    "diffusion.hqs:HQSReconstructor",
    "diffusion.lisch:LikelihoodScheduledReconstructor",
    "diffusion.iso_likelihood:IsoLikelihoodReconstructor",
    "diffusion.deft:DEFTReconstructor",
    "adaptation.ddip:DDIPReconstructor",
    "adaptation.ddip:SteerableReconstructor",
)

#: Posterior samples of the sampling methods.
NUM_SAMPLES = 5
QUICK_NUM_SAMPLES = 2


def methods_of(paths: Iterable[str]) -> dict[str, type[Reconstructor]]:
    """Methods by name, from where their classes stand in this package."""
    found = (resolve_name(f"{__package__}.{path}") for path in paths)
    return {kind.method: kind for kind in found}


METHODS = methods_of(_CLASSES)
ADAPTATIONS: dict[str, type[NetworkAdaptation]] = {kind.name: kind for kind in (DDIPAdaptation, SteerableAdaptation)}


def get_method(name: str) -> type[Reconstructor]:
    """The method of this name.

    Examples
    --------
    >>> get_method("lisch").samples
    True
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; choose from {', '.join(METHODS)}")
    return METHODS[name]


def build_reconstructor(
    name: str,
    objective: Objective,
    settings: Mapping[str, Any],
    *,
    model: Any = None,
    intensity_scale: float | None = None,
    num_samples: int = 1,
    seed: int = 0,
    subset_order: Sequence[int] | None = None,
    prior: Any = None,
    adaptation: Any = None,
    callbacks: Iterable[Callable[[Any], None]] = (),
) -> Reconstructor:
    """Make the reconstructor of a method.

    Parameters
    ----------
    name, settings
        A name of `METHODS`, and the settings that differ from its defaults.
    objective
        The log-likelihood, with the subsets that the method is to use.
    model
        A score model, for the methods that use one; bound when it is set up if it is not yet.
    intensity_scale
        Of ``map-rdp``: ``c``, image units; estimated from the objective's early image if omitted.
    subset_order
        Of ``osem``: order of the subsets; or the `StirUpdates` of a parameter file, which STIR's OSMAPOSL would make.
    prior
        Of ``map-rdp``: another penalty than the settings describe.
    adaptation
        Of the methods that draw posterior samples: a name of `ADAPTATIONS`, or an object; the method's own if omitted.
    callbacks
        Called with a ``StepRecord`` after each step.
    """
    method = get_method(name)
    options: dict[str, Any] = {"callbacks": tuple(callbacks), **settings}
    for option, given, user in (("subset_order", subset_order, "osem"), ("prior", prior, "map-rdp")):
        if given is not None:
            if name != user:
                raise ValueError(f"{option} is for {user} only, not for {name}")
            options[option] = given
    adaptation = adaptation_for(method, adaptation)
    if method.samples:
        options |= {"num_samples": num_samples, "seed": seed, "adaptation": adaptation}
    if name == "map-rdp":
        options["intensity_scale"] = intensity_scale
    method.with_settings(settings)
    if isinstance(subset_order, StirUpdates):
        return OSMAPOSL(objective, settings["num_iterations"], subset_order, callbacks=options["callbacks"])
    return method(objective, *([model] if method.uses_model else []), **options)


def build_adaptation(name: str, settings: Mapping[str, Any] | None = None, adapter: Any = None) -> NetworkAdaptation:
    """The adaptation of a name, with settings that differ from its defaults, and an adapter's file to start from."""
    if name not in ADAPTATIONS:
        raise ValueError(f"unknown adaptation {name!r}; choose from {', '.join(ADAPTATIONS)}")
    return ADAPTATIONS[name](**(settings or {}), adapter=adapter)


def adaptation_for(method: type[Reconstructor], given: Any = None) -> Any:
    """The adaptation that a method is to use: the one given, as an object or by its name, or else the method's own."""
    if given is not None and not method.samples:
        sampling = ", ".join(name for name, other in METHODS.items() if other.samples)
        raise ValueError(f"{method.method} does not adapt the network: use {sampling}")
    if given is None and method.own_adaptation is not None:
        return method.own_adaptation()
    return build_adaptation(given) if isinstance(given, str) else given
