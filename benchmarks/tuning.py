"""Choose a method's parameter on noise realisations other than those it is judged on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from sirf_diffusion.study.metrics import nrmse

Parameter = TypeVar("Parameter")
Data = TypeVar("Data")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tuned(Generic[Parameter]):
    """The chosen parameter, and the mean NRMSE of each candidate in the order given."""

    best: Parameter
    candidates: tuple[Parameter, ...]
    mean_nrmse: tuple[float, ...]

    @property
    def at_edge(self) -> bool:
        """Whether the best is the first or last candidate: then the range should be widened."""
        return len(self.candidates) > 1 and self.best in (self.candidates[0], self.candidates[-1])


def tune(
    reconstruct: Callable[[Data, Parameter], Tensor],
    candidates: Sequence[Parameter],
    realisations: Sequence[Data],
    truth: Tensor,
) -> Tuned[Parameter]:
    """Try every candidate on every realisation and keep the one with the least mean NRMSE.

    Parameters
    ----------
    reconstruct
        ``reconstruct(data, parameter)`` gives an image of the truth's shape.
    candidates
        Ordered values of the parameter.
    realisations
        Noise realisations of the same object: not the ones that results are reported on.
    truth
        The image behind all of them.

    Raises
    ------
    ValueError
        If there is nothing to try.

    Examples
    --------
    >>> import torch
    >>> truth = torch.ones(1, 2, 2)
    >>> tune(lambda noise, scale: scale * (truth + noise), [0.5, 1.0, 2.0], [0.1, -0.1], truth).best
    1.0
    """
    if not candidates or not realisations:
        raise ValueError("tuning needs at least one candidate and one realisation")
    errors = []
    for parameter in candidates:
        values = [nrmse(reconstruct(data, parameter), truth) for data in realisations]
        errors.append(sum(values) / len(values))
        _logger.info("parameter %s: mean NRMSE %.4f over %d realisations", parameter, errors[-1], len(values))
    tuned = Tuned(candidates[errors.index(min(errors))], tuple(candidates), tuple(errors))
    if tuned.at_edge:
        _logger.warning("the best parameter %s is at the edge of the candidates: widen them", tuned.best)
    return tuned
