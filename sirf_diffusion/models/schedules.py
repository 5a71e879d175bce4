"""Noise schedules: how much image and how much noise a diffusion time stands for.

A noisy image in network units is ``u_t = gamma(t) u_0 + nu(t) z`` with ``z ~ N(0, 1)``, and
``sigma(t) = nu(t) / gamma(t)`` is the standard deviation of its noise relative to a clean image of unit mean.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

Time = TypeVar("Time", float, Tensor)

PREDICTIONS = ("eps", "x0", "v", "score")
SPACINGS = ("t", "log_sigma", "karras")
_KARRAS_RHO = 7.0


class NoiseSchedule(ABC):
    """A noise schedule ``t -> (gamma, nu)``; times and noise levels are floats or tensors, and come back as given.

    Subclasses are frozen dataclasses whose fields are the constants that a model file stores.
    """

    name: ClassVar[str]
    variance_preserving: ClassVar[bool] = True
    #: Lowest time at which a network is asked.
    t_min: ClassVar[float]

    @property
    def t_max(self) -> float:
        """Highest time."""
        return 1.0

    @abstractmethod
    def gamma(self, t: Time) -> Time:
        """Factor of the clean image at time ``t``."""

    @abstractmethod
    def nu(self, t: Time) -> Time:
        """Standard deviation of the noise at time ``t``."""

    @abstractmethod
    def sigma(self, t: Time) -> Time:
        """Relative noise level ``nu / gamma`` at time ``t``, increasing with ``t``."""

    @abstractmethod
    def t_of_sigma(self, sigma: Time) -> Time:
        """Time at which the relative noise level is ``sigma``; raises ValueError outside the schedule's range."""

    def timesteps(
        self, num_steps: int, t_end: float | None = None, spacing: str = "t", t_start: float | None = None
    ) -> Tensor:
        """Times of a reverse-diffusion run, from ``t_start`` down to ``t_end``.

        Parameters
        ----------
        num_steps
            Number of steps ``K``, at least 1.
        t_end
            Last time, below ``t_start``; ``t_min`` if not given.
        spacing
            ``"t"``: linear in ``t``. ``"log_sigma"``: geometric in ``sigma``. ``"karras"``: linear in
            ``sigma^(1/7)`` (Karras et al. 2022, arXiv:2206.00364).
        t_start
            First time; ``t_max`` if not given.

        Returns
        -------
        Tensor
            ``K + 1`` strictly decreasing times, float64.

        Raises
        ------
        ValueError
            If an argument is out of range, or the schedule is discrete and has fewer times than asked for.
        """
        t_end = float(self.t_min if t_end is None else t_end)
        t_start = float(self.t_max if t_start is None else t_start)
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, found {num_steps}")
        if spacing not in SPACINGS:
            raise ValueError(f"spacing must be one of {', '.join(SPACINGS)}, found {spacing!r}")
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
        variance of the noise is ``nu'^2`` for every ``eta``. A step onto ``nu' = 0`` returns ``gamma' u0``.

        Parameters
        ----------
        u0, eps
            Estimates of the clean image and of the noise in ``u_t``, network units, same shape.
        t, t_next
            Times before and after, ``t_next <= t``.
        eta
            Share of fresh noise, 0 (deterministic) to 1 (ancestral sampling).
        noise
            Fresh standard normal noise ``z``, shape of ``u0``; needed if ``eta > 0``.
        """
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"eta must lie in [0, 1], found {eta}")
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
        return {"name": self.name, **{key: getattr(self, key) for key in _constants(type(self))}}

    @staticmethod
    def from_config(config: dict[str, Any]) -> NoiseSchedule:
        """Schedule of a dictionary written by `to_config`; raises ValueError for anything else."""
        name = config.get("name") if isinstance(config, dict) else config
        if not isinstance(config, dict) or name not in list(_SCHEDULES):
            raise ValueError(f"schedule must be one of {', '.join(_SCHEDULES)}, found {name!r}")
        kind = _SCHEDULES[config["name"]]
        values = {str(key): value for key, value in config.items() if key != "name"}
        if set(values) != set(_constants(kind)):
            raise ValueError(f"schedule {kind.name!r} has the constants {_constants(kind)}, found {sorted(values)}")
        for key, value in values.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"schedule constant {key} must be a finite number, found {value!r}")
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


@dataclass(frozen=True)
class VPSchedule(NoiseSchedule):
    """Variance-preserving diffusion with a linear rate, ``beta(t) = beta_min + t (beta_max - beta_min)``, t in [0, 1].

    With ``l(t) = beta_min t + (beta_max - beta_min) t^2 / 2``: ``gamma = exp(-l / 2)``, ``nu = sqrt(1 - gamma^2)``,
    ``sigma = sqrt(exp(l) - 1)`` (Song et al. 2021, arXiv:2011.13456; the constants are those of Singh et al. 2024,
    MELBA 2, for PET). ``t = 0`` is the clean image.

    Examples
    --------
    >>> round(VPSchedule().sigma(1.0), 2)
    12.45
    """

    name = "vp"
    beta_min: float = 0.1
    beta_max: float = 10.0
    t_min: ClassVar[float] = 1e-4

    def __post_init__(self) -> None:
        if not 0 < self.beta_min < self.beta_max <= 100:
            raise ValueError(f"VP needs 0 < beta_min < beta_max <= 100, found {self.beta_min} and {self.beta_max}")

    def gamma(self, t: Time) -> Time:
        return _exp(-0.5 * self._log_snr_integral(t))

    def nu(self, t: Time) -> Time:
        return _sqrt(-_expm1(-self._log_snr_integral(t)))

    def sigma(self, t: Time) -> Time:
        return _sqrt(_expm1(self._log_snr_integral(t)))

    def t_of_sigma(self, sigma: Time) -> Time:
        self._check_sigma(sigma)
        slope = self.beta_max - self.beta_min
        integral = _log1p(sigma * sigma)
        # Conjugate form of the quadratic's root: the textbook form cancels for small sigma.
        t = 2.0 * integral / (self.beta_min + _sqrt(self.beta_min**2 + 2.0 * slope * integral))
        return _into_unit_interval(t)

    def _log_snr_integral(self, t: Time) -> Time:
        self._check_time(t)
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    @property
    def _t_lowest(self) -> float:
        return 0.0


@dataclass(frozen=True)
class VESchedule(NoiseSchedule):
    """Variance-exploding diffusion: ``gamma = 1``, ``nu = sigma_min (sigma_max / sigma_min)^t``, ``0 <= t <= 1``.

    Song et al. 2021, arXiv:2011.13456.
    """

    name = "ve"
    sigma_min: float = 0.01
    sigma_max: float = 40.0
    t_min: ClassVar[float] = 0.0
    variance_preserving: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max <= 1e6:
            raise ValueError(f"VE needs 0 < sigma_min < sigma_max <= 1e6, found {self.sigma_min} and {self.sigma_max}")

    def gamma(self, t: Time) -> Time:
        self._check_time(t)
        return torch.ones_like(t) if isinstance(t, Tensor) else 1.0

    def nu(self, t: Time) -> Time:
        self._check_time(t)
        return self.sigma_min * _exp(t * math.log(self.sigma_max / self.sigma_min))

    def sigma(self, t: Time) -> Time:
        return self.nu(t)

    def t_of_sigma(self, sigma: Time) -> Time:
        self._check_sigma(sigma)
        t = _log(sigma / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)
        return _into_unit_interval(t)


@dataclass(frozen=True)
class DDPMSchedule(NoiseSchedule):
    """Discrete variance-preserving diffusion with linearly spaced rates; ``t`` is 0, 1, ..., ``num_train_steps - 1``.

    ``gamma_i^2 = prod_{j <= i} (1 - beta_j)``, ``nu_i^2 = 1 - gamma_i^2`` (Ho et al. 2020, arXiv:2006.11239). The
    lowest time still carries noise. `t_of_sigma` gives the time whose noise level is nearest in ``log sigma``.
    """

    name = "ddpm"
    num_train_steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    t_min: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if int(self.num_train_steps) != self.num_train_steps or not 2 <= self.num_train_steps <= 100_000:
            raise ValueError(f"num_train_steps must be a whole number from 2 to 100000, found {self.num_train_steps}")
        object.__setattr__(self, "num_train_steps", int(self.num_train_steps))
        if not 0 < self.beta_start < self.beta_end < 1:
            raise ValueError(f"DDPM needs 0 < beta_start < beta_end < 1, found {self.beta_start} and {self.beta_end}")

    @property
    def t_max(self) -> float:
        """Index of the noisiest time."""
        return float(self.num_train_steps - 1)

    def gamma(self, t: Time) -> Time:
        return self._look_up(torch.exp(-0.5 * self._integral), t)

    def nu(self, t: Time) -> Time:
        return self._look_up(torch.sqrt(-torch.expm1(-self._integral)), t)

    def sigma(self, t: Time) -> Time:
        return self._look_up(torch.sqrt(torch.expm1(self._integral)), t)

    def t_of_sigma(self, sigma: Time) -> Time:
        self._check_sigma(sigma)
        table = torch.log(torch.expm1(self._integral)) / 2
        wanted = torch.log(torch.as_tensor(sigma, dtype=torch.float64).cpu())
        upper = torch.searchsorted(table, wanted).clamp(1, self.num_train_steps - 1)
        index = torch.where(wanted - table[upper - 1] < table[upper] - wanted, upper - 1, upper)
        return index.to(sigma.device) if isinstance(sigma, Tensor) else float(index)

    @cached_property
    def _integral(self) -> Tensor:
        """``-log gamma^2`` at each time, float64."""
        betas = torch.linspace(self.beta_start, self.beta_end, self.num_train_steps, dtype=torch.float64)
        return torch.cumsum(-torch.log1p(-betas), 0)

    def _look_up(self, table: Tensor, t: Time) -> Time:
        self._check_time(t)
        index = torch.as_tensor(t).double().cpu()
        if bool((index != index.round()).any()):
            raise ValueError(f"t of a discrete schedule must be a whole number, found {t}")
        values = table[index.long()]
        if not isinstance(t, Tensor):
            return float(values)
        return values.to(device=t.device, dtype=t.dtype if t.is_floating_point() else torch.float32)

    def _on_grid(self, times: Tensor) -> Tensor:
        steps = len(times) - 1
        first, last = round(float(times[0])), round(float(times[-1]))
        if steps > first - last:
            raise ValueError(
                f"num_steps = {steps} exceeds the {first - last} steps between t = {first} and {last} of a discrete "
                "schedule"
            )
        # Rounding can make neighbours coincide where the schedule is coarse: spread them upwards from the end, and
        # where that reaches the top, downwards from there.
        index = times.round()
        spread = torch.arange(steps, -1, -1, dtype=index.dtype)
        index = (index - spread).flip(0).cummax(0).values.flip(0) + spread
        return torch.minimum(index, first - spread.flip(0))


def denoised_and_noise(prediction: str, output: Tensor, u: Tensor, gamma: float, nu: float) -> tuple[Tensor, Tensor]:
    """Clean image and noise ``(u0, eps)``, with ``u = gamma u0 + nu eps``, from what a network predicts.

    ``eps``: the noise. ``x0``: the clean image. ``v = gamma eps - nu u0`` (Salimans and Ho 2022, arXiv:2202.00512;
    variance-preserving schedules only). ``score = -eps / nu``.
    """
    if prediction == "eps":
        return (u - nu * output) / gamma, output
    if prediction == "x0":
        return output, (u - gamma * output) / nu
    if prediction == "v":
        _check_v(gamma, nu)
        return gamma * u - nu * output, nu * u + gamma * output
    if prediction == "score":
        return (u + nu * nu * output) / gamma, -nu * output
    raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, found {prediction!r}")


def prediction_target(prediction: str, u0: Tensor, eps: Tensor, gamma: Tensor | float, nu: Tensor | float) -> Tensor:
    """What a network with this kind of prediction should output for ``gamma u0 + nu eps``: the training target."""
    if prediction == "eps":
        return eps
    if prediction == "x0":
        return u0
    if prediction == "v":
        _check_v(gamma, nu)
        return gamma * eps - nu * u0
    if prediction == "score":
        return -eps / nu
    raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, found {prediction!r}")


def _check_v(gamma: Tensor | float, nu: Tensor | float) -> None:
    deviation = torch.as_tensor(gamma * gamma + nu * nu - 1.0).abs().max()
    if float(deviation) > 1e-4:
        raise ValueError(f"v-prediction needs gamma^2 + nu^2 = 1 (a VP schedule), found a deviation of {deviation:.3g}")


def _constants(kind: type[NoiseSchedule]) -> list[str]:
    return [field.name for field in fields(kind)]  # type: ignore[arg-type]


def _linspace(first: float, last: float, steps: int) -> Tensor:
    return torch.linspace(first, last, steps + 1, dtype=torch.float64)


def _either(of_float: Callable[[float], float], of_tensor: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    return lambda value: of_tensor(value) if isinstance(value, Tensor) else of_float(value)


_exp, _expm1 = _either(math.exp, torch.exp), _either(math.expm1, torch.expm1)
_log, _log1p = _either(math.log, torch.log), _either(math.log1p, torch.log1p)
_sqrt = _either(math.sqrt, torch.sqrt)
_into_unit_interval = _either(lambda t: min(max(t, 0.0), 1.0), lambda t: t.clamp(0.0, 1.0))

_SCHEDULES: dict[str, type[NoiseSchedule]] = {kind.name: kind for kind in (VPSchedule, VESchedule, DDPMSchedule)}
