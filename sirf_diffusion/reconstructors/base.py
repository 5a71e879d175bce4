"""What every reconstructor shares: SIRF's life cycle, checked settings, and an account of what a run cost."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..engines import Objective, as_objective
from ..engines.em import raise_zeros
from ..engines.objective import NativeImages
from ..geometry.checks import check_finite

logger = logging.getLogger(__name__)


class Reconstructor(ABC):
    """Base of all reconstructors: construct, :meth:`set_up`, :meth:`process`, :meth:`get_output`.

    A subclass implements :meth:`_run`, which returns the reconstructed image, and puts its JSON-able settings into
    ``settings``. ``process`` always starts from the image given to ``set_up``, so calling it twice gives the same
    result.

    Parameters
    ----------
    objective
        Poisson log-likelihood of the acquisition; whatever ``sirf_diffusion.as_objective`` accepts.
    callbacks
        Callables that get one ``StepRecord`` per step. ``StopIteration`` raised by one of them ends the run cleanly:
        the image of that step is the output.

    Attributes
    ----------
    record : dict
        After ``process``: ``method``, ``settings``, ``projections`` (``forward`` and ``back``, in full-data
        equivalents), ``network_evaluations``, ``seconds`` (``total``, ``projector``, ``network``, ``other``),
        ``log_likelihood`` (values that the method had to compute anyway) and ``stopped_early``.

    Raises
    ------
    TypeError
        If ``objective`` is nothing that ``sirf_diffusion.as_objective`` accepts.
    """

    method: ClassVar[str] = ""

    def __init__(self, objective: Objective, *, callbacks: Iterable[Callable[[Any], None]] = ()) -> None:
        self.objective = as_objective(objective)
        self.callbacks = tuple(callbacks)
        self.settings: dict[str, Any] = {}
        self.record: dict[str, Any] = {}
        self._initial: Tensor | None = None
        self._output: Tensor | None = None
        self._trace: list[float] = []
        self._extras: dict[str, Any] = {}
        self._start = 0.0
        self._stopped = False

    def set_up(self, initial_image: Any = None) -> None:
        """Fix the starting image and compute what does not change during the run.

        Parameters
        ----------
        initial_image
            Non-negative image ``[z, y, x]`` in image units, or an image of the objective's engine, which is left as it
            is; the objective's uniform image if omitted. Voxels inside the field of view that are zero are raised to
            1e-4 of the mean, because multiplicative updates cannot leave zero.

        Raises
        ------
        ValueError
            If the image has another shape than the objective's, is negative, not finite, or zero everywhere.
        """
        uniform = self.objective.uniform_image()
        if initial_image is not None and not isinstance(initial_image, Tensor):
            initial_image = self._taken(initial_image)
        initial = uniform if initial_image is None else self._checked_image(initial_image, uniform)
        self._initial = raise_zeros(initial, self.objective.sensitivity())
        self._output = None

    def process(self) -> Reconstructor:
        """Run from the image given to :meth:`set_up`; returns the reconstructor itself."""
        if self._initial is None:
            self.set_up()
        self._output, self._trace, self._extras, self._stopped = None, [], {}, False
        forward, back, projector_seconds = self._projections()
        evaluations, network_seconds = self._network()
        self._start = time.perf_counter()
        with torch.no_grad():
            self._output = self._run()
        total = time.perf_counter() - self._start
        forward_end, back_end, projector_end = self._projections()
        evaluations_end, network_end = self._network()
        projector, network = projector_end - projector_seconds, network_end - network_seconds
        self.record = {
            "method": self.method,
            "settings": dict(self.settings),
            "projections": {"forward": forward_end - forward, "back": back_end - back},
            "network_evaluations": evaluations_end - evaluations,
            "seconds": {
                "total": total,
                "projector": projector,
                "network": network,
                "other": max(total - projector - network, 0.0),
            },
            "log_likelihood": list(self._trace),
            "stopped_early": self._stopped,
            **self._extras,
        }
        return self

    def get_output(self) -> Any:
        """The reconstructed image in image units: of the objective's engine if that has images, else ``[z, y, x]``."""
        if self._output is None:
            raise RuntimeError(f"{type(self).__name__} has no output yet: call process() first")
        return self._handed_out(self._output)

    @abstractmethod
    def _run(self) -> Tensor:
        """Reconstruct from ``self._initial``."""

    def _handed_out(self, image: Tensor) -> Any:
        """A copy, as an image of the objective's engine if that has images."""
        if isinstance(self.objective, NativeImages):
            return self.objective.to_image(image)
        return image.clone()

    def _taken(self, image: Any) -> Tensor:
        if isinstance(self.objective, NativeImages):
            return self.objective.to_tensor(image)
        raise TypeError(f"initial_image must be a tensor [z, y, x], found {type(image).__name__}")

    def _network_counter(self) -> Any | None:
        """The model's counter (``evaluations``, ``seconds``), or None without a network."""
        return None

    def _notify(self, step: Any) -> bool:
        """Pass one record to all callbacks; True if one of them asked to stop."""
        for callback in self.callbacks:
            try:
                callback(step)
            except StopIteration as reason:
                logger.info("%s stopped by a callback: %s", self.method, reason)
                self._stopped = True
        return self._stopped

    def _projections(self) -> tuple[float, float, float]:
        counter = self.objective.counter
        return counter.forward, counter.back, counter.seconds

    def _network(self) -> tuple[int, float]:
        counter = self._network_counter()
        return (0, 0.0) if counter is None else (counter.evaluations, counter.seconds)

    def _checked_image(self, image: Tensor, like: Tensor) -> Tensor:
        shape = tuple(self.objective.geometry.shape)
        if tuple(image.shape) != shape:
            raise ValueError(
                f"initial_image has shape {tuple(image.shape)}, expected {shape} (z, y, x) as the objective"
            )
        image = image.detach().to(like.device, like.dtype)
        check_finite(image, "initial_image")
        if image.min() < 0:
            raise ValueError(f"initial_image must not be negative, found a minimum of {float(image.min()):.4g}")
        if image.max() <= 0:
            raise ValueError("initial_image is zero everywhere: multiplicative updates cannot leave it")
        return image
