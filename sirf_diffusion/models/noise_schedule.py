"""Noise schedules: how much image and how much noise a diffusion time stands for.

A noisy image in network units is ``u_t = gamma(t) u_0 + nu(t) z`` with ``z ~ N(0, 1)``, and
``sigma(t) = nu(t) / gamma(t)`` is the standard deviation of its noise relative to a clean image of unit mean.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ..geometry.checks import check_choice, check_count, check_real

Time = TypeVar("Time", float, Tensor)

SPACINGS = ("t", "log_sigma", "karras")
#: What networks predict.
PREDICTIONS = ("eps", "x0", "v", "score")
_KARRAS_RHO = 7.0


class NoiseSchedule(ABC):
    """A noise schedule ``t -> (gamma, nu)``; times and noise levels are floats or tensors, and come back as given.

    Subclasses are frozen dataclasses whose fields are the constants that a model file stores.
    """

    name: ClassVar[str]
    #: Constants that came later: `to_config` leaves them out at their defaults, so that older releases read the files.
    later: ClassVar[tuple[str, ...]] = ()
    variance_preserving: ClassVar[bool] = True
    #: Lowest time at which a network is asked.
    t_min: ClassVar[float]

    @property
    def t_max(self) -> float:
        """Highest time."""
        return 1.0

    def gamma(self, t: Time) -> Time:
        """Factor of the clean image at time ``t``."""
        return exp(-0.5 * self._log_total(t))

    def nu(self, t: Time) -> Time:
        """Standard deviation of the noise at time ``t``."""
        return sqrt(-expm1(-self._log_total(t)))

    def sigma(self, t: Time) -> Time:
        """Relative noise level ``nu / gamma`` at time ``t``, increasing with ``t``."""
        return sqrt(expm1(self._log_total(t)))

    def _log_total(self, t: Time) -> Time:
        """``log(1 + sigma^2)``, from which the rest follows for a variance-preserving schedule."""
        raise NotImplementedError

    @abstractmethod
    def t_of_sigma(self, sigma: Time) -> Time:
        """Time at which the relative noise level is ``sigma``; raises ValueError outside the schedule's range."""

    def timesteps(
        self, num_steps: int, t_end: float | None = None, spacing: str = "t", t_start: float | None = None
    ) -> Tensor:
        """Times of a reverse-diffusion run: ``num_steps + 1`` strictly decreasing ones, float64.

        They go from ``t_start`` (``t_max`` if not given) down to ``t_end`` (``t_min``). ``spacing`` is ``"t"``, linear
        in ``t``; ``"log_sigma"``, geometric in ``sigma``; or ``"karras"``, linear in ``sigma^(1/7)`` (Karras et al.
        2022, arXiv:2206.00364). Raises ValueError if an argument is out of range, or the schedule is discrete and has
        fewer times than asked for.
        """
        t_end = float(self.t_min if t_end is None else t_end)
        t_start = float(self.t_max if t_start is None else t_start)
        check_count("num_steps", num_steps)
        check_choice("spacing", spacing, SPACINGS)
        self._check_time(t_end)
        self._check_time(t_start)
        if not t_end < t_start:
            raise ValueError(f"t_end must be below t_start = {t_start:g}, found {t_end:g}")
        if spacing == "t":
            return self._on_grid(_linspace(t_start, t_end, num_steps))
        first, last = self.sigma(t_start), self.sigma(t_end)
        if last <= 0:
            raise ValueError(f"spacing {spacing!r} needs noise left at t_end, found sigma(t_end = {t_end:g}) = 0")
        if spacing == "log_sigma":
            sigmas = _linspace(math.log(first), math.log(last), num_steps).exp()
        else:
            sigmas = _linspace(first ** (1 / _KARRAS_RHO), last ** (1 / _KARRAS_RHO), num_steps) ** _KARRAS_RHO
        times = self.t_of_sigma(sigmas.clamp(last, first)).double()
        # The ends are asked for exactly; the way through sigma and back would move them by a rounding error.
        times[0], times[-1] = t_start, t_end
        return self._on_grid(times)

    def ddim_step(
        self, u0: Tensor, eps: Tensor, t: float, t_next: float, eta: float = 0.0, noise: Tensor | None = None
    ) -> Tensor:
        """One step to a lower noise level (Song et al. 2021, arXiv:2010.02502, equations 12 and 16).

        ``u_next = gamma' u0 + sqrt(nu'^2 - (eta b)^2) eps + eta b z`` with ``b^2 = nu'^2 (1 - (sigma' / sigma)^2)``,
        which is ``(1 - gamma'^2) / (1 - gamma^2) (1 - gamma^2 / gamma'^2)`` for a variance-preserving schedule. The
        variance of the noise is ``nu'^2`` for every ``eta``, from 0 (deterministic) to 1 (ancestral sampling). A step
        onto ``nu' = 0`` returns ``gamma' u0``.

        ``u0`` and ``eps`` are estimates of the clean image and of the noise in ``u_t``, network units; ``t_next <= t``;
        ``noise`` is fresh standard normal noise ``z`` of the shape of ``u0``, needed if ``eta > 0``.
        """
        check_real("eta", eta, 0.0, 1.0)
        if t_next > t:
            raise ValueError(f"t_next must not exceed t = {t:g}, found {t_next:g}")
        gamma, nu = self.gamma(float(t_next)), self.nu(float(t_next))
        if nu == 0.0:
            return gamma * u0
        if eta == 0.0:
            return gamma * u0 + nu * eps
        if noise is None:
            raise ValueError(f"eta = {eta:g} needs fresh noise, found none: give noise of shape {tuple(u0.shape)}")
        ratio = self.sigma(float(t_next)) / self.sigma(float(t))
        fresh = eta * nu * math.sqrt(max(1.0 - ratio * ratio, 0.0))
        return gamma * u0 + math.sqrt(max(nu * nu - fresh * fresh, 0.0)) * eps + fresh * noise

    def to_config(self) -> dict[str, Any]:
        """Name and constants as a dictionary that JSON can hold; `from_config` is its inverse."""
        constants = {item.name: (getattr(self, item.name), item.default) for item in fields(self)}  # type: ignore[arg-type]
        stored = {key: value for key, (value, usual) in constants.items() if key not in self.later or value != usual}
        return {"name": self.name, **stored}

    @staticmethod
    def from_config(config: dict[str, Any]) -> NoiseSchedule:
        """Schedule of a dictionary written by `to_config`; raises ValueError for anything else."""
        kinds = {kind.name: kind for kind in NoiseSchedule.__subclasses__()}
        name = config.get("name") if isinstance(config, dict) else config
        if not isinstance(config, dict) or name not in list(kinds):
            raise ValueError(f"schedule must be one of {', '.join(kinds)}, found {name!r}")
        kind = kinds[config["name"]]
        values = {str(key): value for key, value in config.items() if key != "name"}
        known = {item.name: type(item.default) for item in fields(kind)}  # type: ignore[arg-type]
        if not set(known) - set(kind.later) <= set(values) <= set(known):
            raise ValueError(f"schedule {kind.name!r} has the constants {list(known)}, found {sorted(values)}")
        for key, value in values.items():
            if known[key] in (str, bool):
                if not isinstance(value, known[key]):
                    raise ValueError(f"schedule constant {key} must be a {known[key].__name__}, found {value!r}")
            else:
                check_real(f"schedule constant {key}", value, -math.inf)
        return kind(**values)

    def _on_grid(self, times: Tensor) -> Tensor:
        """Times that the schedule has, nearest to the given ones."""
        return times

    def _check_time(self, t: float | Tensor) -> None:
        low, high = (float(t.min()), float(t.max())) if isinstance(t, Tensor) else (t, t)
        if not (low >= self._t_lowest and high <= self.t_max):
            raise ValueError(f"t must lie in [{self._t_lowest:g}, {self.t_max:g}], found {low:g} to {high:g}")

    @property
    def _t_lowest(self) -> float:
        return self.t_min

    def _check_sigma(self, sigma: float | Tensor) -> None:
        low, high = (float(sigma.min()), float(sigma.max())) if isinstance(sigma, Tensor) else (sigma, sigma)
        first, last = self.sigma(float(self._t_lowest)), self.sigma(float(self.t_max))
        tolerance = 1e-5  # float32 tensors hold the ends of the range only to about this
        if not (low >= first * (1 - tolerance) and high <= last * (1 + tolerance)):
            raise ValueError(f"sigma must lie in [{first:g}, {last:g}] for this schedule, found {low:g} to {high:g}")


def denoised_and_noise(prediction: str, output: Tensor, u: Tensor, gamma: float, nu: float) -> tuple[Tensor, Tensor]:
    """Clean image and noise ``(u0, eps)``, with ``u = gamma u0 + nu eps``, from what a network predicts.

    ``eps``: the noise. ``x0``: the clean image. ``v = gamma eps - nu u0`` (Salimans and Ho 2022, arXiv:2202.00512;
    variance-preserving schedules only). ``score = -eps / nu``.
    """
    check_choice("prediction", prediction, PREDICTIONS)
    if prediction == "eps":
        return (u - nu * output) / gamma, output
    if prediction == "x0":
        return output, (u - gamma * output) / nu
    if prediction == "v":
        _check_v(gamma, nu)
        return gamma * u - nu * output, nu * u + gamma * output
    return (u + nu * nu * output) / gamma, -nu * output


def prediction_target(prediction: str, u0: Tensor, eps: Tensor, gamma: Tensor | float, nu: Tensor | float) -> Tensor:
    """What a network with this kind of prediction should output for ``gamma u0 + nu eps``: the training target."""
    check_choice("prediction", prediction, PREDICTIONS)
    if prediction == "eps":
        return eps
    if prediction == "x0":
        return u0
    if prediction == "v":
        _check_v(gamma, nu)
        return gamma * eps - nu * u0
    return -eps / nu


def _check_v(gamma: Tensor | float, nu: Tensor | float) -> None:
    deviation = torch.as_tensor(gamma * gamma + nu * nu - 1.0).abs().max()
    if float(deviation) > 1e-4:
        raise ValueError(f"v-prediction needs gamma^2 + nu^2 = 1 (a VP schedule), found a deviation of {deviation:.3g}")


def _either(of_float: Callable[[float], float], of_tensor: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    return lambda value: of_tensor(value) if isinstance(value, Tensor) else of_float(value)


exp, expm1, sqrt = _either(math.exp, torch.exp), _either(math.expm1, torch.expm1), _either(math.sqrt, torch.sqrt)
log, log1p = _either(math.log, torch.log), _either(math.log1p, torch.log1p)
into_unit_interval = _either(lambda t: min(max(t, 0.0), 1.0), lambda t: t.clamp(0.0, 1.0))


def _linspace(first: float, last: float, steps: int) -> Tensor:
    return torch.linspace(first, last, steps + 1, dtype=torch.float64)
