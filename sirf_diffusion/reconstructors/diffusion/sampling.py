"""Settings of the diffusion loop itself, and the times at which it asks the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...models.schedules import SPACINGS
from ..settings import Settings, choice, count, real
from ..view import extent_setting, planes_setting
from .chain import NOISES

if TYPE_CHECKING:
    from ...models.schedules import NoiseSchedule

FINAL_NOISE_LEVEL = 0.05


@dataclass(frozen=True)
class Sampling(Settings):
    """Settings of the loop itself."""

    num_steps: int = count(40, "noise levels", volumes=60, published=40, quick=15)
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
    planes: str | None = planes_setting()
    extent: float | None = extent_setting()


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
