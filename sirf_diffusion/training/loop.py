"""The loop around the steps of a training: batches, validation, logs, checkpoints, early stopping, the model file."""

from __future__ import annotations

import logging
import math
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..files.atomic import atomic_path
from ..files.progress import progress_bar
from ..files.stopping import Stopped, heeded
from ..models.lora import plain_weights
from ..models.score_model import ScoreModel
from ..models.storage import ModelConfig, save_model
from .corruption import corrupted
from .data.slice_stream import SliceStream, prefetched
from .evaluation.acceptance import save_sheet, unconditional_samples
from .evaluation.validation import relative_error, validation_set
from .log import SIGMA, Curves, TrainingLog, shown
from .recipes import check_settings, setting
from .state import TrainingState

logger = logging.getLogger(__name__)

#: Steps after which losses are looked at, and processes tell each other whether to stop.
FLUSH_EVERY = 10


@dataclass(frozen=True)
class RunOptions:
    """How a training runs, without a say in what comes out of it."""

    checkpoint_every: int = setting(250, "run", "steps between checkpoints", 1, 2**40)
    samples_every: int = setting(0, "run", "steps between sheets of unconditional samples; 0: none", 0, 2**40)
    compiled: bool = setting(False, "run", "compile the network with torch.compile")
    tensorboard: bool = setting(False, "run", "TensorBoard logs beside log.csv")
    licence: str = setting("", "run", "of the weights; empty: Apache-2.0 if the recipe simulates the data")

    def __post_init__(self) -> None:
        check_settings(self)


class TrainingLoop:
    """A training from where its state is to a step: batches, validation, logs and checkpoints around the steps."""

    #: What the validation's errors are of.
    curves: ClassVar[Curves] = SIGMA
    #: Whether what is trained can draw images from noise alone.
    draws_samples: ClassVar[bool] = True

    def __init__(self, state: TrainingState, source: SliceStream, work: Path, options: RunOptions) -> None:
        self.state, self.source, self.work, self.options = state, source, work, options
        self.recipe, self.peers = state.recipe, state.peers
        if options.samples_every and not self.draws_samples:
            raise ValueError("this model draws no images from noise alone: leave --samples-every (samples_every) out")
        if (licence := self._inherited.get("licence")) and licence != self._licence:
            logger.warning("the file will say licence %s; the model it starts from has %s", self._licence, licence)
        self.validation = self._validation_set() if self.peers.first else None
        if self.peers.first and self.validation is None:
            if self.recipe.patience:
                raise ValueError("patience (early stopping) needs validation subjects, and the data have none")
            logger.warning("%s has no validation subjects: the training is not validated", source.file.path)
        self._pending: list[Tensor] = []
        self._saved: int | None = None

    def advance(self, last: int) -> None:
        """Train up to step ``last``; checkpoints now and then, at the end, and when asked to stop by a signal."""
        state, losses = self.state, self.state.notes.setdefault("losses", [0.0, 0])
        log = None
        if self.peers.first:
            reference = self.validation.gaussian_errors() if self.validation else {}
            log = TrainingLog(self.work, state.step, reference, self.options.tensorboard, self.curves)
        batches = prefetched(self._example, range(state.step, last))
        started = time.perf_counter()
        bar = progress_bar(last, self.recipe.name, initial=state.step, disable=not self.peers.first)
        with noted_signals() as asked, bar:
            try:
                while state.step < last and not self._finished:
                    self._pending.append(state.advance(next(batches)))
                    bar.update()
                    validates = state.step % self.recipe.validate_every == 0 or state.step == last
                    saves = state.step % self.options.checkpoint_every == 0
                    # Alone, a process may stop at any step; several must agree on one.
                    stops = bool(asked) and self.peers.world == 1
                    draws = self.options.samples_every and state.step % self.options.samples_every == 0
                    if state.step % FLUSH_EVERY and not (validates or saves or draws or stops):
                        continue
                    self._flush()
                    bar.set_postfix(loss=f"{losses[0] / max(losses[1], 1):.4f}", refresh=False)
                    if validates:
                        self._validate(log, time.perf_counter() - started)
                        started = time.perf_counter()
                    if draws and self.peers.first:
                        self._draw_samples()
                    stop = self.peers.any(bool(asked), state.device)
                    if saves or validates or stop:
                        self._save()
                    if stop:
                        logger.warning("the training is kept up to step %d: the same command goes on there", state.step)
                        raise Stopped(asked[0] if asked else signal.SIGTERM)
            finally:
                batches.close()
                if log is not None:
                    log.close()
        self._save()

    def export(self, out: Path) -> None:
        """Write the model file."""
        best = self.work / "best.safetensors"
        if self.recipe.patience and best.exists() and "best" in self.state.notes:
            with atomic_path(out) as temporary:
                shutil.copyfile(best, temporary)
        else:
            self._save_model(out)

    def _validation_set(self) -> Any:
        return validation_set(self.source.file.path, self.recipe)

    def _example(self, step: int) -> Any:
        rank, world = self.peers.rank, self.peers.world
        images, planes = self.source.batch(step, self.recipe.batch_size, rank, world)
        return corrupted(self.recipe, images, planes, step, self.state.device, rank, world)

    def _flush(self) -> None:
        """Add up the losses since the last time; they must be finite."""
        if not self._pending:
            return
        values = self.peers.mean(torch.stack(self._pending)).tolist()
        first = self.state.step - len(values)
        for k, value in enumerate(values):
            if not math.isfinite(value):
                raise FloatingPointError(f"the training loss is not finite at step {first + k}: lower learning_rate")
        losses = self.state.notes["losses"]
        for value in values:
            losses[0] += value
        losses[1] += len(values)
        self._pending.clear()

    def _validate(self, log: TrainingLog | None, seconds: float) -> None:
        """Validate, log, and decide whether to go on; the first process does, and tells the others."""
        notes = self.state.notes
        total, count = notes["losses"]
        if log is not None:
            errors: dict[Any, float] = {}
            if self.validation is not None:
                network = self.state.average.module
                errors = self.validation.network_errors(network, self.recipe.prediction, self.recipe.time_input)
            notes["validation"] = {shown(sigma): round(error, 5) for sigma, error in errors.items()}
            log.add(self.state.step, seconds, total / max(count, 1), errors)
            if self.recipe.patience:
                self._note_best(relative_error(errors, log.reference))
        notes["losses"][:] = [0.0, 0]
        if self.peers.world > 1:
            shared = [notes]
            torch.distributed.broadcast_object_list(shared, 0)
            notes.update({key: value for key, value in shared[0].items() if key != "losses"})

    def _note_best(self, error: float) -> None:
        """Remember the best validation for early stopping, and its model."""
        notes = self.state.notes
        best = notes.get("best")
        if best is None or error < best["error"]:
            self._save_model(self.work / "best.safetensors")
            notes["best"] = {"error": error, "step": self.state.step, "since": 0}
        else:
            best["since"] += 1

    @property
    def _finished(self) -> bool:
        best = self.state.notes.get("best")
        return bool(self.recipe.patience and best and best["since"] >= self.recipe.patience)

    def _save(self) -> None:
        if self.peers.first and self._saved != self.state.step:
            self.state.save(self.work)
        self._saved = self.state.step
        self.peers.wait()

    def _provenance(self) -> dict[str, Any]:
        """What a model file says of its training."""
        state = self.state
        training = {
            "recipe": self.recipe.to_dict(), "steps": state.step, "validation": state.notes.get("validation", {}),
            "torch": torch.__version__, "device": state.device.type, "precision": state.precision,
        }  # fmt: skip
        return training | {key: value for key, value in state.description.items() if key in ("data", "init", "teacher")}

    @property
    def _inherited(self) -> Mapping[str, Any]:
        """Tracer and licence of the model that the training starts from."""
        return self.state.inherited

    @property
    def _tracer(self) -> str:
        return self.recipe.tracer or self.source.file.tracer or self._inherited.get("tracer", "")

    @property
    def _licence(self) -> str:
        known = self.options.licence or self._inherited.get("licence", "")
        return known or ("Apache-2.0" if self.recipe.simulated else "")

    def _config(self) -> ModelConfig:
        recipe = self.recipe
        return ModelConfig(
            recipe.architecture, recipe.schedule, recipe.prediction, recipe.time_input, self.source.file.voxel_size,
            tracer=self._tracer, licence=self._licence, training=self._provenance(),
        )  # fmt: skip

    def _save_model(self, path: Path) -> None:
        save_model(path, plain_weights(self.state.average.module), self._config(), weights_dtype="float16")

    def _draw_samples(self) -> None:
        config = self._config()
        model = ScoreModel(
            self.state.average.module, config.schedule, config.prediction, config.voxel_size,
            time_input=config.time_input, architecture=config.architecture,
        )  # fmt: skip
        images = unconditional_samples(model, 8, max(self.recipe.crops), num_steps=30)
        save_sheet(images, self.work / f"samples-{self.state.step:07d}.png")


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Note the first signal that asks to end, instead of ending in the middle of a step; a second one works as ever."""
    asked: list[int] = []

    def note(number: int, earlier: dict[int, Any]) -> None:
        asked.append(number)
        signal.signal(number, earlier[number])
        logger.warning("asked to stop: finishing the step and writing a checkpoint")

    with heeded(note):
        yield asked
