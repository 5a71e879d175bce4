"""What every reconstructor shares: SIRF's life cycle, checked settings, and an account of what a run cost."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..engines import Objective, as_objective
from ..engines.em import raise_zeros
from ..engines.objective import NativeImages, mark
from ..files.outputs import jsonable
from ..geometry.checks import check_choice, check_image
from .checkpoint import Checkpoint
from .records import Cost, StepRecord
from .settings import DEFAULT_SPEED, SPEEDS, Settings, defaults, kinds_of_default, listed, make

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
    resume_from : str or Path, optional
        File written by ``CheckpointCallback``, set before :meth:`set_up`: the run goes on from there. Everything else
        must be as in the run that wrote it, or :meth:`process` raises ``ValueError``.
    record : dict
        After ``process``: ``method``, ``engine`` (whose projector), ``settings``, ``projections`` (``forward`` and
        ``back``, in full-data equivalents), ``network_evaluations``, ``seconds`` (``total``, ``projector``,
        ``network``, ``callbacks``, ``other``), ``log_likelihood`` (values that the method had to compute anyway) and
        ``stopped_early``.

    Raises
    ------
    TypeError
        If ``objective`` is nothing that ``sirf_diffusion.as_objective`` accepts.
    """

    method: ClassVar[str] = ""
    #: Name in figures, and one line for help.
    title: ClassVar[str] = ""
    about: ClassVar[str] = ""
    #: Keys of `references.bib`.
    references: ClassVar[tuple[str, ...]] = ()
    #: Wanted number of subsets.
    num_subsets: ClassVar[int] = 1
    uses_model: ClassVar[bool] = False
    samples: ClassVar[bool] = False
    #: Whether there are `SPEEDS` to choose from.
    has_speeds: ClassVar[bool] = False
    #: Bundled model, of a method that works with one alone.
    default_model: ClassVar[str] = ""
    #: Adaptation of the network that is part of the method.
    own_adaptation: ClassVar[Any] = None
    num_iterations: int = 0
    resume_from: str | Path | None = None
    _resumed: Checkpoint | None = None

    @classmethod
    def parts(cls) -> tuple[type[Settings], ...]:
        """The groups of settings that the constructor takes as keyword arguments."""
        return ()

    @classmethod
    def defaults(cls, *kinds: str) -> dict[str, Any]:
        """All settings with their defaults; of these kinds (``volumes``, ``quick``, ``published``) where there are."""
        return defaults(cls.parts(), *kinds)

    @classmethod
    def with_settings(
        cls, given: Mapping[str, Any], *, volume: bool = False, quick: bool = False, speed: str | None = None
    ) -> dict[str, Any]:
        """Defaults, replaced by what was given, checked.

        ``volume``: for a volume, unless it is seen as transverse slices only. ``quick``: for a quick look.
        """
        volume = volume and given.get("planes") != "transverse"
        kinds = kinds_of_default(cls.speed_of(speed), volume=volume, quick=quick)
        make(cls.parts(), given, cls.method, *kinds)
        return {**cls.defaults(*kinds), **given}

    @classmethod
    def speed_of(cls, speed: str | None, *, adapted: bool = False) -> str:
        """The speed that holds where ``speed`` was asked for; a ValueError for one that the method does not have.

        Unless told, a network that is ``adapted`` gets all the levels to adapt at.
        """
        if cls.has_speeds:
            return check_choice("speed", speed or (SPEEDS[0] if adapted else DEFAULT_SPEED), SPEEDS)
        if speed not in (None, SPEEDS[0]):
            raise ValueError(f"{cls.method} has no speed to choose, found {speed!r}: dds, hqs and lisch have")
        return SPEEDS[0]

    def __init_subclass__(cls) -> None:
        """Show the settings in signature and documentation, as if they stood there."""
        super().__init_subclass__()
        own = list(signature(cls.__init__).parameters.values())[1:]
        names = [parameter.name for parameter in own]
        entries = [entry for part in cls.parts() for entry in listed(part) if entry.name not in names]
        if entries and own[-1].kind is Parameter.VAR_KEYWORD:
            usual = cls.with_settings({})
            own[-1:] = [Parameter(e.name, Parameter.KEYWORD_ONLY, default=usual[e.name]) for e in entries]
            cls.__signature__ = Signature(own)  # type: ignore[attr-defined]
            lines = [f"    {entry.name}\n        {entry.metadata['about']}" for entry in entries]
            cls.__doc__ = f"{cls.__doc__}\n\n    Settings\n    --------\n" + "\n".join(lines) + "\n"

    def __init__(self, objective: Objective, *, callbacks: Iterable[Callable[[Any], None]] = ()) -> None:
        self.objective = as_objective(objective)
        self.callbacks = tuple(callbacks)
        self.settings: dict[str, Any] = {}
        self.record: dict[str, Any] = {}
        self._initial: Tensor | None = None
        self._output: Tensor | None = None
        self._trace: list[float] = []
        self._steps: list[dict[str, Any]] = []
        self._extras: dict[str, Any] = {}
        self._earlier = Cost()
        self._stopped = False

    def set_up(self, initial_image: Any = None) -> None:
        """Fix the starting image and compute what does not change during the run.

        Parameters
        ----------
        initial_image
            Non-negative image ``[z, y, x]`` in image units, or an image of the objective's engine, which is left as it
            is; if omitted, the objective's uniform image, or where a method says so its early image. Voxels inside the
            field of view that are zero are raised to 1e-4 of the mean: multiplicative updates cannot leave zero.

        Raises
        ------
        ValueError
            If the image has another shape than the objective's, is negative, not finite, or zero everywhere.
        """
        uniform = self.objective.uniform_image()
        if initial_image is not None and not isinstance(initial_image, Tensor):
            initial_image = self._taken(initial_image)
        initial = self._default_image() if initial_image is None else self._checked_image(initial_image, uniform)
        self._initial = raise_zeros(initial, self.objective.sensitivity())
        self._begin()

    def process(self) -> Reconstructor:
        """Run from the image given to :meth:`set_up`; returns the reconstructor itself."""
        if self._initial is None:
            self.set_up()
        self._output, self._trace, self._steps, self._extras, self._stopped = None, [], [], {}, False
        self._earlier = Cost()
        self._before, self._start = self._spent(), time.perf_counter()
        with torch.no_grad():
            self._output = self._run()
        if not bool(self._output.any()):
            raise ValueError(
                f"the image is zero everywhere: the counts are too few for {self.objective.num_subsets} subsets, each "
                "of which empties the voxels that it saw no count of. Take a longer time frame, or one subset "
                "(--subsets 1, in Python num_subsets=1)"
            )
        self.record = {
            "method": self.method,
            "engine": self.objective.engine,
            "settings": dict(self.settings),
            **self._cost().to_record(),
            "log_likelihood": list(self._trace),
            "trace": [dict(entry) for entry in self._steps],
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

    def _begin(self) -> None:
        self._output = self._identity = None
        self._resumed = None if self.resume_from is None else Checkpoint.load(self.resume_from)

    def _fingerprint(self) -> dict[str, Any]:
        """What must be the same for a run to go on from a checkpoint."""
        fingerprint = {
            "method": self.method,
            "image_shape": list(self.objective.geometry.shape),
            "sensitivity": float(self.objective.sensitivity().double().sum()),
            "mean_activity": float(self.objective.uniform_image().max()),
            "initial_image": mark(self._initial),
            **self.objective.marks(),
            **self.settings,
        }
        return jsonable(fingerprint)

    def _kept_so_far(self, step: int) -> dict[str, Any]:
        """Metadata of a checkpoint after a step; cheap, as one is made at every step and few are written."""
        self._identity = self._identity or self._fingerprint()
        return {
            "fingerprint": self._identity,
            "cost": asdict(self._cost()),
            "step": step,
            "steps": list(self._steps),
            "log_likelihood": list(self._trace),
            "extras": jsonable(self._extras),
        }

    def _take_over(self, *samples: int) -> tuple[dict[str, Tensor], int]:
        """Tensors of the checkpoint to go on from, and steps done; none in a fresh run. ``samples``: how many."""
        if self._resumed is None:
            return {}, 0
        kept, tensors = self._resumed.metadata, self._resumed.tensors
        self._resumed.check(self._fingerprint())
        self._earlier, self._trace = Cost.of(kept["cost"]), list(kept["log_likelihood"])
        self._steps, self._extras = [dict(entry) for entry in kept["steps"]], dict(kept["extras"])
        with self._resumed.taken_up():
            shape = (*samples, *self.objective.geometry.shape)
            for x in (tensors["x"], tensors.get("best", tensors["x"])):
                if tuple(x.shape) != shape or x.dtype != self._initial.dtype or bool((x < 0).any()):
                    raise ValueError(f"an image is {x.dtype} of shape {tuple(x.shape)}, or negative; expected {shape}")
        return {name: tensor.to(self.objective.device) for name, tensor in tensors.items()}, kept["step"]

    def _default_image(self) -> Tensor:
        """The starting image if none is given."""
        return self.objective.uniform_image()

    def _handed_out(self, image: Tensor) -> Any:
        """A copy, as an image of the objective's engine if that has images."""
        if isinstance(self.objective, NativeImages):
            return self.objective.to_image(image)
        return image.clone()

    def _taken(self, image: Any) -> Tensor:
        if isinstance(self.objective, NativeImages):
            return self.objective.to_tensor(image)
        raise TypeError(f"initial_image must be a tensor [z, y, x], found {type(image).__name__}")

    def _notify(self, step: Any) -> bool:
        """Note one record and pass it to all callbacks; True if one of them asked to stop."""
        self._steps.append(step.to_dict())
        for callback in self.callbacks:
            try:
                callback(step)
            except StopIteration as reason:
                logger.info("%s stopped by a callback: %s", self.method, reason)
                self._stopped = True
        return self._stopped

    def _spent(self) -> Cost:
        """What the counters show."""
        return Cost.now(self.objective)

    def _cost(self) -> Cost:
        """What the run has cost so far, before an interruption too."""
        cost = self._spent() - self._before + self._earlier
        cost.total += time.perf_counter() - self._start
        return cost

    def _iteration(
        self, number: int, x: Tensor, log_likelihood: Tensor | None, state: Mapping[str, Tensor] | None = None
    ) -> StepRecord:
        """Record of an iteration without noise levels.

        ``log_likelihood`` is that of the image before it, ``state`` what the method needs beside ``x`` to go on.
        """
        cost = self._spent() + self._earlier
        before = None if log_likelihood is None else log_likelihood.reshape(-1).tolist()
        return StepRecord(
            self.method,
            number,
            self.num_iterations,
            x,
            log_likelihood_before=before,
            forward=cost.forward,
            back=cost.back,
            network_evaluations=cost.evaluations,
            seconds=self._cost().total,
            checkpoint=lambda: Checkpoint({"x": x, **(state or {})}, self._kept_so_far(number)),
        )

    def _checked_image(self, image: Tensor, like: Tensor) -> Tensor:
        image = image.detach().to(like.device, like.dtype)
        check_image(image, "initial_image", self.objective.geometry.shape)
        if image.min() < 0:
            raise ValueError(f"initial_image must not be negative, found a minimum of {float(image.min()):.4g}")
        if image.max() <= 0:
            raise ValueError("initial_image is zero everywhere: multiplicative updates cannot leave it")
        return image
