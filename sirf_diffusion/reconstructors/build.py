"""A reconstructor from a method's name and its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..engines.objective import Objective
from .base import Reconstructor
from .methods import ADAPTATIONS, METHODS, Method, get_method

if TYPE_CHECKING:
    from .adaptation.network_adaptation import NetworkAdaptation

_SAMPLING = tuple(name for name, method in METHODS.items() if method.samples)


def build_reconstructor(
    name: str,
    objective: Objective,
    settings: Mapping[str, Any],
    *,
    model: Any = None,
    intensity_scale: float = 1.0,
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
    name
        A name of `sirf_diffusion.reconstructors.methods.METHODS`.
    objective
        The log-likelihood, with the subsets that the method is to use.
    settings
        Settings that differ from the method's defaults.
    model
        A score model that is bound to the objective's grid, for the methods that use one.
    intensity_scale
        ``c``, image units per network unit: strengths of the relative difference prior are relative to it.
    num_samples, seed
        Of the methods that draw posterior samples.
    subset_order
        Of ``osem``: order of the subsets; or the `StirUpdates` of a parameter file, which STIR's OSMAPOSL would make.
    prior
        Of ``map-rdp``: another penalty than the settings describe.
    adaptation
        Of the methods that draw posterior samples: a name of
        `sirf_diffusion.reconstructors.methods.ADAPTATIONS`, or an object; the method's own if omitted.
    callbacks
        Called with a ``StepRecord`` after each step.

    Raises
    ------
    ValueError
        For an unknown method or setting, a setting out of range, or an order, prior or adaptation that the method has
        no use for.
    """
    method = get_method(name)
    volume = objective.geometry.shape[0] > 1 if model is None else model.planes != "transverse"
    values = method.with_settings(settings, volume=volume)
    for of_the_model in ("planes", "extent"):
        values.pop(of_the_model, None)
    builder = _BUILDERS[name]
    for option, given, user in (("subset_order", subset_order, "osem"), ("prior", prior, "map-rdp")):
        if given is not None:
            if name != user:
                raise ValueError(f"{option} is for {user} only, not for {name}")
            values[option] = given
    adaptation = adaptation_for(method, adaptation)
    if method.samples:
        values |= {"num_samples": num_samples, "seed": seed, "adaptation": adaptation}
    return builder(objective, model, intensity_scale, values, tuple(callbacks))


def build_adaptation(name: str, settings: Mapping[str, Any] | None = None, adapter: Any = None) -> NetworkAdaptation:
    """The adaptation of a name, with settings that differ from its defaults, and the file of an adapter to start from.

    Raises
    ------
    ValueError
        For an unknown name or setting, or a setting out of range.
    """
    from .adaptation.ddip import DDIPAdaptation
    from .adaptation.steerable import SteerableAdaptation

    if name not in ADAPTATIONS:
        raise ValueError(f"unknown adaptation {name!r}; choose from {', '.join(ADAPTATIONS)}")
    kind = {"ddip": DDIPAdaptation, "steerable": SteerableAdaptation}[name]
    return kind(**ADAPTATIONS[name].with_settings(settings or {}), adapter=adapter)


def adaptation_for(method: Method, given: Any = None) -> Any:
    """The adaptation that a method is to use: the one given, as an object or by its name, or else the method's own.

    Raises
    ------
    ValueError
        If the method has no place for one.
    """
    if given is not None and not method.samples:
        raise ValueError(f"{method.name} does not adapt the network: use {', '.join(_SAMPLING)}")
    given = method.adaptation if given is None else given
    return build_adaptation(given) if isinstance(given, str) else given


def relative_difference_prior(
    objective: Objective, strength: float, intensity_scale: float, gamma: float, epsilon: float, **options: Any
) -> Any:
    """The prior of ``u = x / c``; its value is homogeneous of degree one, hence ``beta = strength / c``."""
    from ..priors import RelativeDifferencePenalty

    beta = strength / intensity_scale
    epsilon *= intensity_scale
    return RelativeDifferencePenalty(objective.geometry, beta, gamma=gamma, epsilon=epsilon, **options)


def _osem(objective: Objective, model: Any, scale: float, values: dict[str, Any], callbacks: Any) -> Reconstructor:
    from .em.osem import OSEM
    from .em.osmaposl import OSMAPOSL, StirUpdates

    if isinstance(values.get("subset_order"), StirUpdates):
        return OSMAPOSL(objective, values["num_iterations"], values["subset_order"], callbacks=callbacks)
    return OSEM(objective, **values, callbacks=callbacks)


def _map_rdp(objective: Objective, model: Any, scale: float, values: dict[str, Any], callbacks: Any) -> Reconstructor:
    from .em.mapem import MAPEM

    strength, gamma, epsilon = (values.pop(name) for name in ("penalisation_factor", "gamma", "epsilon"))
    prior = values.pop("prior", None)
    if prior is None:
        prior = relative_difference_prior(objective, strength, scale, gamma, epsilon)
    return MAPEM(objective, prior, **values, callbacks=callbacks)


def _map_score(objective: Objective, model: Any, scale: float, values: dict[str, Any], callbacks: Any) -> Reconstructor:
    from ..priors import ScorePenalty
    from .em.mapem import MAPEM

    prior = ScorePenalty(model, values.pop("sigma"), values.pop("penalisation_factor"))
    return MAPEM(objective, prior, **values, callbacks=callbacks)


def _dds(objective: Objective, model: Any, scale: float, values: dict[str, Any], callbacks: Any) -> Reconstructor:
    from .diffusion.dds import DDSReconstructor

    strength, prior = values.pop("axial_rdp"), None
    if strength > 0 and objective.geometry.shape[0] > 1:
        prior = relative_difference_prior(objective, strength, scale, 2.0, 0.005, neighbourhood="axial")
    return DDSReconstructor(objective, model, prior=prior, **values, callbacks=callbacks)


def _hqs(objective: Objective, model: Any, scale: float, values: dict[str, Any], callbacks: Any) -> Reconstructor:
    from .diffusion.hqs import HQSReconstructor

    return HQSReconstructor(objective, model, **values, callbacks=callbacks)


def _lisch(objective: Objective, model: Any, scale: float, values: dict[str, Any], callbacks: Any) -> Reconstructor:
    from .diffusion.lisch import LikelihoodScheduledReconstructor

    return LikelihoodScheduledReconstructor(objective, model, **values, callbacks=callbacks)


def _ddip(objective: Objective, model: Any, scale: float, values: dict[str, Any], callbacks: Any) -> Reconstructor:
    from .adaptation.ddip import DDIPReconstructor

    return DDIPReconstructor(objective, model, **values, callbacks=callbacks)


def _steerable(objective: Objective, model: Any, scale: float, values: dict[str, Any], callbacks: Any) -> Reconstructor:
    from .adaptation.steerable import SteerableReconstructor

    return SteerableReconstructor(objective, model, **values, callbacks=callbacks)


_BUILDERS: dict[str, Callable[..., Reconstructor]] = {
    "osem": _osem,
    "map-rdp": _map_rdp,
    "map-score": _map_score,
    "dds": _dds,
    "hqs": _hqs,
    "lisch": _lisch,
    "ddip": _ddip,
    "steerable": _steerable,
}
