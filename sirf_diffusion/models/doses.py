"""Diffusion in which time is dose: how much of the standard dose is left at a step, and counts of a lower dose."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry.checks import check_choice, check_count, check_real

#: How the dose falls from step to step, see `DoseSchedule`.
LAWS = ("log", "poisson")


@dataclass(frozen=True)
class DoseSchedule:
    r"""Share :math:`d_t` of the standard dose at step :math:`t = 0 \dots T`, from 1 down to the lowest.

    Law ``log``: :math:`d_t = d_T^{t/T}`. Law ``poisson``, of Jiang et al. 2023 (MICCAI, uPETe): step ``t`` adds Poisson
    noise whose variance is proportional to :math:`\lambda_t = t / T`; noise of a dose ``d`` has the variance ``1/d``,
    so that :math:`1/d_t = 1 + (1/d_T - 1) \sum_{s \le t} \lambda_s / \sum_{s \le T} \lambda_s`.

    Parameters
    ----------
    num_steps, lowest
        ``T``, and ``d_T``, below 1. With one step there is one dose beside the standard.
    law
        One of `LAWS`.

    Examples
    --------
    >>> schedule = DoseSchedule()
    >>> schedule.step_of(schedule.dose(123))
    123
    """

    num_steps: int = 400
    lowest: float = 0.02
    law: str = LAWS[0]

    def __post_init__(self) -> None:
        check_count("num_steps", self.num_steps, 1, 100_000)
        check_real("the lowest dose", self.lowest, 1e-4, 1, open_above=True)
        check_choice("law", self.law, LAWS)

    def dose(self, step: int) -> float:
        """Share of the standard dose at a step from 0 to ``num_steps``."""
        check_count("step", step, 0, self.num_steps)
        return float(self.doses[step])

    @property
    def doses(self) -> Tensor:
        """Of all steps, ``[T + 1]``, float64, falling."""
        t = torch.arange(self.num_steps + 1, dtype=torch.float64)
        if self.law == "log":
            return self.lowest ** (t / self.num_steps)
        variance = t * (t + 1) / (self.num_steps * (self.num_steps + 1))
        return 1 / (1 + (1 / self.lowest - 1) * variance)

    def step_of(self, dose: float) -> int:
        """The step at which a chain starts from an image of this dose: the one whose dose is nearest.

        Raises ValueError unless the dose is between 0 and 1.
        """
        check_real("the dose ratio", dose, 0, 1, open_below=True)
        return int((self.doses - dose).abs().argmin())


def thinned(counts: Tensor, share: Tensor | float, generator: torch.Generator | None = None) -> Tensor:
    r"""Counts of a lower dose: each one is kept with probability ``share``, :math:`y' \sim \mathrm{Bin}(y, p)`.

    Poisson counts of mean ``m`` become Poisson counts of mean ``p m``, in one step or in many: no other noise does.
    ``counts`` are whole numbers, of at least 0; ``share`` is a number, or a tensor that is broadcast.
    """
    p = torch.as_tensor(share, dtype=counts.dtype, device=counts.device)
    return torch.binomial(counts, p.expand(counts.shape).contiguous(), generator=generator)


def with_more_dose(image: Tensor, dose: float, more: Tensor, target: float) -> Tensor:
    r"""The image of ``target`` dose from one of a lower dose, and one of the counts that are missing.

    Thinning backwards: counts that were thinned away are Poisson counts of their own, of mean
    :math:`(d' - d) \lambda`. Images are in units of activity, so that both are weighted by their dose:
    :math:`(d\, x + (d' - d)\, x_\mathrm{more}) / d'`.
    """
    return (dose * image + (target - dose) * more) / target
