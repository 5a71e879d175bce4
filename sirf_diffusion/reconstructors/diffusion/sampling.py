"""Settings of the diffusion loop itself, and the times at which it asks the network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...models.schedules import SPACINGS
from ..settings import Settings, choice, count, flag, real
from ..view import extent_setting, planes_setting
from .chain import NOISES, Chain

if TYPE_CHECKING:
    from torch import Tensor

    from ...models.schedules import NoiseSchedule
    from .consistency import DiffusionStep

FINAL_NOISE_LEVEL = 0.05
SOLVERS = ("ddim", "multistep")


@dataclass(frozen=True)
class Sampling(Settings):
    """Settings of the loop itself."""

    num_steps: int = count(
        40,
        "noise levels",
        volumes=60,
        balanced=28,
        balanced_volumes=60,
        fast=12,
        fast_volumes=18,
        published=40,
        quick=15,
    )
    eta: float = real(
        1.0, "share of fresh noise, 0 to 1; with 0, only the first noise is random", maximum=1.0, published=0.85
    )
    noise: str = choice(
        "balanced",
        "samplers only: the noises of a run's samples add up to zero, see [conventions](conventions.md#randomness); or "
        "`independent`",
        NOISES,
    )
    final_noise_level: float = real(FINAL_NOISE_LEVEL, "relative noise level of the last denoising", open_below=True)
    starting_noise_level: float | None = real(
        None, "relative noise level at the start; None is the highest that the network knows", open_below=True
    )
    spacing: str = choice("t", "of the noise levels: even in `t` or in `log_sigma`, or that of `karras`", SPACINGS)
    crop: bool = flag(
        False,
        "whether the network looks at the object only, as the early image shows it; outside, the image is air",
        balanced=True,
        fast=True,
    )
    coarse_above: float | None = real(
        None,
        "noise level above which the model's companion of half the resolution takes its place, where it has one and "
        "is not adapted (1.4 at least where it is shown an anatomical image), see [speed](#speed); None: nowhere",
        balanced=0.5,
        balanced_volumes=0.35,  # means of eight voxels have less noise
        fast=0.5,
        fast_volumes=0.35,
        open_below=True,
    )
    solver: str = choice(
        "ddim",
        "of what order a step is: `ddim` of the first; `multistep` of the second, for fewer levels",
        SOLVERS,
        balanced="multistep",
        balanced_volumes="ddim",  # steps of second order lose contrast of lesions in volumes
        fast="multistep",
    )
    planes: str | None = planes_setting()
    extent: float | None = extent_setting()

    def serves_next(self, step: DiffusionStep) -> bool:
        """Whether the next noise level takes over what the data change at this one, for a data step of its own."""
        return False


@dataclass(frozen=True)
class ReusingSampling(Sampling):
    """Settings of the loop around a data step that one noise level can take over from the one before."""

    reuse_above: float | None = real(
        None,
        "noise level above which every second level takes over what the data changed at the level before, see "
        "[projections that take long](#projections-that-take-long); None: nowhere",
        open_below=True,
    )

    def serves_next(self, step: DiffusionStep) -> bool:
        """Above ``reuse_above``; the last noise level has a data step of its own."""
        return self.reuse_above is not None and step.sigma_next > self.reuse_above and step.index + 2 < step.num_steps


def reverse_times(
    schedule: NoiseSchedule,
    num_steps: int,
    final_noise_level: float = FINAL_NOISE_LEVEL,
    spacing: str = "t",
    starting_noise_level: float | None = None,
) -> list[float]:
    """Times at which the network is asked, descending to the one of the final noise level."""
    start = None if starting_noise_level is None else float(schedule.t_of_sigma(starting_noise_level))
    if num_steps == 1:
        return [float(schedule.t_max if start is None else start)]
    end = float(schedule.t_of_sigma(final_noise_level))
    return [float(t) for t in schedule.timesteps(num_steps - 1, end, spacing, start)]


def renoised(
    chain: Chain, schedule: NoiseSchedule, times: Sequence[float], u0: Tensor, eps: Tensor, solver: str, eta: float
) -> Tensor:
    """Noisy images of the next noise level, from clean images and noise of this one.

    ``times`` are those of the level before, if there was one, this level and the next.
    """
    if solver == "multistep":
        before, chain.previous = chain.previous, u0
        if before is not None:
            u0, eps = extrapolated(schedule, times, u0, before, eps)
    return schedule.ddim_step(u0, eps, *times[-2:], eta, chain.noise() if eta > 0 else None)


def extrapolated(
    schedule: NoiseSchedule, times: Sequence[float], u0: Tensor, before: Tensor, eps: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Clean image and noise for a step of second order, from the clean images at two noise levels.

    .. math::
        \Delta = \tfrac12 \frac{\lambda_{k+1} - \lambda_k}{\lambda_k - \lambda_{k-1}} (u_{0,k} - u_{0,k-1}), \qquad
        u_0 \leftarrow u_0 + \Delta, \qquad \epsilon \leftarrow \epsilon - \Delta / \sigma_k

    with :math:`\lambda = -\log \sigma`: DPM-Solver++ (2M), and its stochastic form with ``eta`` 1 (Lu et al. 2022,
    arXiv:2211.01095). ``times`` are those of levels ``k - 1``, ``k`` and ``k + 1``; ``before`` is the first's image.
    """
    first, here, following = (-math.log(schedule.sigma(t)) for t in times)
    change = 0.5 * (following - here) / (here - first) * (u0 - before)
    return u0 + change, eps - change / float(schedule.sigma(times[1]))
