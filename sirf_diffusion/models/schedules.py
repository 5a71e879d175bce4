"""The noise schedules: variance-preserving, variance-exploding and discrete diffusion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from ..geometry.checks import check_choice, check_count
from .noise_schedule import (
    PREDICTIONS,
    SPACINGS,
    NoiseSchedule,
    Time,
    denoised_and_noise,
    exp,
    into_unit_interval,
    log,
    log1p,
    prediction_target,
    sqrt,
)  # fmt: skip

__all__ = [
    "BETAS",
    "PREDICTIONS",
    "SPACINGS",
    "DDPMSchedule",
    "NoiseSchedule",
    "VESchedule",
    "VPSchedule",
    "denoised_and_noise",
    "prediction_target",
]

#: How the rates of a discrete schedule lie between the first and the last.
BETAS = ("linear", "scaled_linear", "cosine", "sigmoid")


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

    def t_of_sigma(self, sigma: Time) -> Time:
        self._check_sigma(sigma)
        slope = self.beta_max - self.beta_min
        integral = log1p(sigma * sigma)
        # Conjugate form of the quadratic's root: the textbook form cancels for small sigma.
        t = 2.0 * integral / (self.beta_min + sqrt(self.beta_min**2 + 2.0 * slope * integral))
        return into_unit_interval(t)

    def _log_total(self, t: Time) -> Time:
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
        return self.sigma_min * exp(t * math.log(self.sigma_max / self.sigma_min))

    def sigma(self, t: Time) -> Time:
        return self.nu(t)

    def t_of_sigma(self, sigma: Time) -> Time:
        self._check_sigma(sigma)
        t = log(sigma / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)
        return into_unit_interval(t)


@dataclass(frozen=True)
class DDPMSchedule(NoiseSchedule):
    """Discrete variance-preserving diffusion; ``t`` is 0, 1, ..., ``num_train_steps - 1``.

    ``gamma_i^2 = prod_{j <= i} (1 - beta_j)``, ``nu_i^2 = 1 - gamma_i^2`` (Ho et al. 2020, arXiv:2006.11239). The
    lowest time still carries noise. `t_of_sigma` gives the time whose noise level is nearest in ``log sigma``.

    Parameters
    ----------
    num_train_steps
        Number of times, 2 to 100000.
    beta_start, beta_end
        First and last rate; of no account for ``"cosine"``, where they must be left as they are.
    betas
        Rates between them: ``"linear"``; ``"scaled_linear"``, the squares of linearly spaced numbers (Rombach et al.
        2022, arXiv:2112.10752); ``"sigmoid"``, along a sigmoid from -6 to 6; or ``"cosine"``, ``gamma^2`` falls as
        ``cos^2((t + 0.008) / 1.008 pi / 2)``, rates at most 0.999 (Nichol and Dhariwal 2021, arXiv:2102.09672).
    zero_snr
        Whether ``gamma`` is shifted and scaled to reach 0 at the last time (Lin et al. 2023, arXiv:2305.08891), which
        then holds no image and is left out: ``t`` ends at ``num_train_steps - 2``.
    """

    name = "ddpm"
    later = ("betas", "zero_snr")
    num_train_steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    betas: str = "linear"
    zero_snr: bool = False
    t_min: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        num_train_steps = check_count("num_train_steps", self.num_train_steps, 2, 100_000)
        object.__setattr__(self, "num_train_steps", num_train_steps)
        if not 0 < self.beta_start < self.beta_end < 1:
            raise ValueError(f"DDPM needs 0 < beta_start < beta_end < 1, found {self.beta_start} and {self.beta_end}")
        check_choice("schedule constant betas", self.betas, BETAS)
        if self.betas == "cosine" and (self.beta_start, self.beta_end) != (1e-4, 0.02):
            raise ValueError("a cosine schedule has no beta_start and beta_end: leave them as 0.0001 and 0.02")
        if len(self._integral) < 2:
            raise ValueError(f"num_train_steps must be at least 3 with zero_snr, found {self.num_train_steps}")

    @property
    def t_max(self) -> float:
        """Index of the noisiest time that holds an image."""
        return float(len(self._integral) - 1)

    def t_of_sigma(self, sigma: Time) -> Time:
        self._check_sigma(sigma)
        table = torch.log(torch.expm1(self._integral)) / 2
        wanted = torch.log(torch.as_tensor(sigma, dtype=torch.float64).cpu())
        upper = torch.searchsorted(table, wanted).clamp(1, len(table) - 1)
        index = torch.where(wanted - table[upper - 1] < table[upper] - wanted, upper - 1, upper)
        return index.to(sigma.device) if isinstance(sigma, Tensor) else float(index)

    @cached_property
    def _integral(self) -> Tensor:
        """``-log gamma^2`` at each time, float64."""
        n = self.num_train_steps
        if self.betas == "cosine":
            share = torch.cos((torch.arange(n + 1, dtype=torch.float64) / n + 0.008) / 1.008 * (math.pi / 2)) ** 2
            betas = (1 - share[1:] / share[:-1]).clamp_max(0.999)
        elif self.betas == "scaled_linear":
            betas = torch.linspace(math.sqrt(self.beta_start), math.sqrt(self.beta_end), n, dtype=torch.float64) ** 2
        elif self.betas == "sigmoid":
            rise = torch.sigmoid(torch.linspace(-6, 6, n, dtype=torch.float64))
            betas = self.beta_start + (self.beta_end - self.beta_start) * rise
        else:
            betas = torch.linspace(self.beta_start, self.beta_end, n, dtype=torch.float64)
        integral = torch.cumsum(-torch.log1p(-betas), 0)
        if not self.zero_snr:
            return integral
        gamma = torch.exp(-0.5 * integral)
        return -2 * torch.log((gamma[:-1] - gamma[-1]) * gamma[0] / (gamma[0] - gamma[-1]))

    def _log_total(self, t: Time) -> Time:
        self._check_time(t)
        index = torch.as_tensor(t).double().cpu()
        if bool((index != index.round()).any()):
            raise ValueError(f"t of a discrete schedule must be a whole number, found {t}")
        values = self._integral[index.long()]
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
