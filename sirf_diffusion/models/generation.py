"""Images drawn from a score model alone, without data."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..geometry.checks import check_choice, check_count, check_seed
from ..geometry.images import ImageGeometry

if TYPE_CHECKING:
    from .score_model import ScoreModel

#: Ways to follow the reverse diffusion.
SAMPLERS = ("ddpm", "ddim", "ode", "sde")
#: Relative noise level of the last look at the network.
LAST_SIGMA = 0.03
#: Length of the corrector's Langevin steps relative to the noise.
_SNR = 0.16


def generate(
    model: ScoreModel,
    num: int,
    shape: tuple[int, int, int],
    sampler: str = "ddpm",
    num_steps: int = 100,
    seed: int = 0,
    *,
    eta: float = 0.0,
    progress: Callable[[int], None] = lambda step: None,
) -> Tensor:
    r"""Images ``[num, z, y, x]`` from noise, non-negative, in network units (mean activity about 1).

    Parameters
    ----------
    model
        Not bound; one that is conditioned on an anatomical image is shown none.
    shape
        ``(z, y, x)`` in voxels of the model's training images; a volume is seen in three orientations.
    sampler
        With :math:`\sigma` the relative noise level and ``D`` the denoised image:

        - ``"ddpm"``: ancestral sampling (Ho et al. 2020, arXiv:2006.11239).
        - ``"ddim"``: the same with ``eta`` of the fresh noise, 0 to 1 (Song et al. 2020, arXiv:2010.02502).
        - ``"ode"``: probability-flow ODE :math:`dx / d\sigma = (x - D) / \sigma`, Heun's method, two evaluations a step
          (Karras et al. 2022, arXiv:2206.00364).
        - ``"sde"``: reverse SDE, a predictor and a Langevin corrector, two evaluations a step (Song et al. 2021,
          arXiv:2011.13456).
    num_steps, seed
        Steps between noise levels; seed of all random numbers.
    progress
        Called with the number of each step.
    """
    check_choice("sampler", sampler, SAMPLERS)
    check_count("num", num)
    generator = torch.Generator().manual_seed(check_seed("seed", seed))
    geometry = ImageGeometry(shape, model.voxel_size)
    guidance = -1.0 if model.in_channels == 2 else 0.0
    bound = model.on(geometry, 1.0, model.planes_for(geometry), guidance=guidance)
    schedule = model.schedule
    last = max(LAST_SIGMA, schedule.sigma(float(schedule.t_min)))
    times = [float(t) for t in schedule.timesteps(num_steps, schedule.t_of_sigma(last))]

    def noise() -> Tensor:
        return torch.randn((num, *bound.latent_shape), generator=generator).to(bound.device)

    def denoised(x: Tensor, t: float) -> Tensor:
        """Of images with noise of SD ``sigma(t)``."""
        return bound.predict(schedule.gamma(t) * x, t)[0]

    # The highest level of a variance-exploding schedule is far from 1.
    u = schedule.nu(times[0]) * noise()
    for step, (t, t_next) in enumerate(pairwise(times), start=1):
        if sampler in ("ddpm", "ddim"):
            u0, eps = bound.predict(u, t)
            u = schedule.ddim_step(u0, eps, t, t_next, 1.0 if sampler == "ddpm" else eta, noise())
        else:
            x, sigma, after = u / schedule.gamma(t), float(schedule.sigma(t)), float(schedule.sigma(t_next))
            slope = (x - denoised(x, t)) / sigma
            if sampler == "ode":
                euler = x + (after - sigma) * slope
                x = x + (after - sigma) * (slope + (euler - denoised(euler, t_next)) / after) / 2
            else:
                removed = sigma**2 - after**2
                x = x - removed * slope / sigma + removed**0.5 * noise()
                score, fresh = (denoised(x, t_next) - x) / after**2, noise()
                length = 2 * (_SNR * fresh.norm() / score.norm()) ** 2
                x = x + length * score + (2 * length) ** 0.5 * fresh
            u = schedule.gamma(t_next) * x
        progress(step)
    return bound.to_image(bound.predict(u, times[-1])[0]).clamp(min=0).cpu()
