"""Records of a run: one a step, with its cost so far, and the callbacks that receive them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..engines.objective import Objective
from ..files.progress import progress_bar
from ..geometry.checks import check_count, check_real

logger = logging.getLogger(__name__)


@dataclass
class StepRecord:
    """State of a reconstruction after one step; callbacks receive one per step and may raise ``StopIteration``.

    Parameters
    ----------
    step, num_steps
        Steps done, counted from 1, and steps planned. A step is an epoch (OSEM, MAP-EM) or a noise level.
    x
        Current data-consistent image ``[z, y, x]``, or images ``[samples, z, y, x]``, in image units. Not a copy: a
        callback that keeps it must clone it.
    t, sigma
        Diffusion time and relative noise level ``nu / gamma`` of the step.
    log_likelihood_before, log_likelihood_after, target
        Per sample, of the denoised image and of the image after the data step; None where the method did not compute
        it. What the data step had to reach.
    num_inner, loss
        Data-step updates, per sample; of the network's adaptation, before its first update at this noise level.
    forward, back, network_evaluations, seconds
        So far: projections in full-data equivalents, images or volumes denoised, wall time.
    checkpoint
        Called without arguments, gives all that is needed to go on from here; None if the method cannot be resumed.
    """

    method: str
    step: int
    num_steps: int
    x: Tensor
    t: float | None = None
    sigma: float | None = None
    log_likelihood_before: list[float] | None = None
    log_likelihood_after: list[float] | None = None
    target: float | None = None
    num_inner: list[int] | None = None
    loss: float | None = None
    forward: float = 0.0
    back: float = 0.0
    network_evaluations: int = 0
    seconds: float = 0.0
    checkpoint: Callable[[], Any] | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The step's numbers (everything but the image), ready for JSON."""
        return {k: v for k, v in vars(self).items() if k not in ("method", "num_steps", "x", "checkpoint")}


@dataclass
class Cost:
    """Projections, network evaluations and seconds."""

    forward: float = 0.0
    back: float = 0.0
    evaluations: int = 0
    projector: float = 0.0
    network: float = 0.0
    callbacks: float = 0.0
    total: float = 0.0

    @classmethod
    def now(cls, objective: Objective, network: Any = None) -> Cost:
        """What the counters show; ``network`` is whatever has one, such as a score model."""
        p, n = objective.counter, getattr(network, "counter", None)
        return cls(p.forward, p.back, getattr(n, "evaluations", 0), p.seconds, getattr(n, "seconds", 0.0))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Cost:
        """Inverse of ``asdict``; a ValueError or TypeError for anything else."""
        checked = {name: check_real(name, value) for name, value in values.items()}
        return cls(**checked | {"evaluations": int(checked.get("evaluations", 0))})

    def to_record(self) -> dict[str, Any]:
        """The entries of a run's record."""
        other = self.total - self.projector - self.network - self.callbacks
        return {
            "projections": {"forward": self.forward, "back": self.back},
            "network_evaluations": self.evaluations,
            "seconds": {
                "total": self.total,
                "projector": self.projector,
                "network": self.network,
                "callbacks": self.callbacks,
                "other": max(other, 0.0),
            },
        }

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(a - b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


class ProgressBar:
    """Callback that shows a bar with the noise level and the likelihood; in a log, a line every half minute."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, record: StepRecord) -> None:
        """Move the bar to this step; a step that does not follow the last one starts a new bar."""
        if self._bar is None or record.step <= self._bar.n:
            self.close()
            self._bar = progress_bar(record.num_steps, record.method, initial=record.step - 1)
        self._bar.update(record.step - self._bar.n)
        self._bar.set_postfix_str(", ".join(_numbers(record)), refresh=False)
        if record.step == record.num_steps:
            self.close()

    def close(self) -> None:
        """End the bar; done by itself after the last step."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None


class LogCallback:
    """Callback that logs every ``every``-th step and the last one, through :mod:`logging`."""

    def __init__(self, every: int = 1, level: int = logging.INFO) -> None:
        self.every, self.level = check_count("every", every), level

    def __call__(self, record: StepRecord) -> None:
        """Log one line."""
        if record.step % self.every == 0 or record.step == record.num_steps:
            cost = f"{record.forward:.4g} forward, {record.back:.4g} back, {record.seconds:.1f} s"
            numbers = ", ".join([*_numbers(record), cost])
            logger.log(self.level, "%s %d/%d: %s", record.method, record.step, record.num_steps, numbers)


def _numbers(record: StepRecord) -> list[str]:
    parts = []
    if record.sigma is not None:
        parts.append(f"sigma {record.sigma:.3g}")
    likelihood = record.log_likelihood_after or record.log_likelihood_before
    if likelihood:
        parts.append(f"L {sum(likelihood) / len(likelihood):.7g}")
    if record.target is not None:
        parts.append(f"target {record.target:.7g}")
    if record.num_inner:
        parts.append(f"{sum(record.num_inner) / len(record.num_inner):.3g} inner")
    if record.loss is not None:
        parts.append(f"loss {record.loss:.4g}")
    return parts
