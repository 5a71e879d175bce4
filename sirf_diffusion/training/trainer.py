"""Training a score network on slices, resumable to the step."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models.networks import build_network, network_time
from ..models.schedules import prediction_target
from ..models.storage import ModelConfig, save_model
from .dataset import SIMULATION_VERSION, VOXEL_SIZE, SliceSampler, build_dataset
from .recipes import RECIPES, Recipe
from .validation import ValidationSet

logger = logging.getLogger(__name__)

PREDICTION = "v"
CHECKPOINT_EVERY = 250
VALIDATE_EVERY = 1000


class CheckpointError(ValueError):
    """A checkpoint cannot be resumed; the message names the file and the reason."""


def train(
    recipe: str | Recipe,
    out: str | os.PathLike[str],
    *,
    work_dir: str | os.PathLike[str] | None = None,
    max_steps: int | None = None,
    threads: int | None = None,
    resume: bool = True,
    device: str = "auto",
) -> Path:
    """Train a recipe and write its model file.

    Parameters
    ----------
    recipe
        Name in `RECIPES`, or a `Recipe`.
    out
        The model file (``.safetensors``) to write.
    work_dir
        Folder for training data, checkpoint and log; default ``<out>.training`` beside the model file.
    max_steps
        Stop after this step in all, leaving a checkpoint to resume from; the model file is written as it stands.
    threads
        CPU threads, default PyTorch's choice.
    resume
        Continue from the checkpoint in ``work_dir`` if there is one.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``. On CPUs and GPUs alike, networks run in bfloat16 with float32 weights.

    Returns
    -------
    Path
        The model file.

    Raises
    ------
    ValueError
        If the recipe is unknown, or the work folder holds another recipe's training.
    """
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise ValueError(f"unknown recipe {recipe!r}: known recipes are {', '.join(sorted(RECIPES))}")
        recipe = RECIPES[recipe]
    out = Path(out)
    work = Path(work_dir) if work_dir is not None else out.with_name(out.name + ".training")
    for folder in (work, out.parent):
        folder.mkdir(parents=True, exist_ok=True)
    if threads:
        torch.set_num_threads(threads)
    where = _device(device)

    run = _Run(recipe, work, where)
    if resume:
        run.load()
    last = recipe.num_steps if max_steps is None else min(max_steps, recipe.num_steps)
    run.advance(last)
    config = ModelConfig(
        recipe.architecture, recipe.schedule, PREDICTION, "log_sigma", (VOXEL_SIZE,) * 3,
        tracer=recipe.tracer, licence="Apache-2.0",
        training={"recipe": recipe.to_dict(), "steps": run.step, "validation": run.validation_error,
                  "torch": torch.__version__, "device": where.type},
    )  # fmt: skip
    save_model(out, run.average, config, weights_dtype="float16")
    return out


class _Run:
    """State of one training: network, running average, optimiser, step."""

    def __init__(self, recipe: Recipe, work: Path, device: torch.device) -> None:
        import h5py

        self.recipe, self.work, self.device = recipe, work, device
        volumes = []
        for name, subjects, contrasts in (
            ("training", recipe.subjects, recipe.contrasts), ("validation", recipe.validation_subjects, 1)
        ):  # fmt: skip
            path = work / f"{name}.h5"
            build_dataset(path, subjects, contrasts)
            with h5py.File(path) as file:
                volumes.append(torch.from_numpy(file["activity"][:]).flatten(0, 1))
        self.sampler = SliceSampler(volumes[0], recipe.crops, recipe.seed)
        self.validation = ValidationSet.from_volumes(volumes[1], recipe.schedule)
        self.network = build_network(recipe.architecture, seed=recipe.seed, device=device)
        self.network = self.network.to(memory_format=torch.channels_last)
        self.average = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=recipe.learning_rate, foreach=True)
        self.step = 0
        self.validation_error: dict[str, float] = {}

    def advance(self, last: int) -> None:
        """Train up to step ``last``, with a checkpoint now and then and at the end, also when interrupted."""
        from tqdm import tqdm

        self.network.train()
        progress = tqdm(total=last, initial=self.step, desc=self.recipe.name, unit="step")
        losses: list[float] = []
        started = time.perf_counter()
        try:
            while self.step < last:
                losses.append(self._one_step())
                progress.update()
                if self.step % 50 == 0:
                    progress.set_postfix(loss=f"{sum(losses[-200:]) / len(losses[-200:]):.4f}")
                if self.step % VALIDATE_EVERY == 0 or self.step == last:
                    self._validate(sum(losses) / max(len(losses), 1), time.perf_counter() - started)
                    losses = []
                if self.step % CHECKPOINT_EVERY == 0:
                    self.save()
        finally:
            progress.close()
            self.save()

    def _one_step(self) -> float:
        recipe = self.recipe
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + self.step)
        u0, planes = self.sampler.batch(self.step, recipe.batch_size)
        sigma = self._noise_levels(generator)
        noise = torch.randn(u0.shape, generator=generator)
        u0, noise, planes, sigma = (v.to(self.device) for v in (u0, noise, planes, sigma))
        t = recipe.schedule.t_of_sigma(sigma)
        gamma, nu = (f(t)[:, None, None, None] for f in (recipe.schedule.gamma, recipe.schedule.nu))
        noisy = (gamma * u0 + nu * noise).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            predicted = self.network(noisy, network_time("log_sigma", recipe.schedule, t), class_labels=planes)
        loss = (predicted.float() - prediction_target(PREDICTION, u0, noise, gamma, nu)).square().mean()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the training loss is not finite at step {self.step}: lower the learning rate")
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.learning_rate * self._rate()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        decay = min(recipe.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            current = list(self.network.state_dict().values())
            torch._foreach_lerp_(list(self.average.values()), current, 1 - decay)
        return loss.item()

    def _noise_levels(self, generator: torch.Generator) -> Tensor:
        size = self.recipe.batch_size
        low, high = (math.log(self.recipe.schedule.sigma(t)) for t in (self.recipe.schedule.t_min, 1.0))
        normal = torch.randn(size, generator=generator) * self.recipe.log_sigma_sd + self.recipe.log_sigma_mean
        uniform = torch.rand(size, generator=generator) * (high - low) + low
        chosen = torch.where(torch.rand(size, generator=generator) < 0.1, uniform, normal)
        return chosen.clamp(low + 1e-3, high - 1e-3).exp()

    def _rate(self) -> float:
        """Learning rate factor of the step about to be taken."""
        left = (self.recipe.num_steps - self.step) / (0.25 * self.recipe.num_steps)
        return min((self.step + 1) / self.recipe.warmup_steps, 1.0, left)

    def _validate(self, training_loss: float, seconds: float) -> None:
        network = build_network(self.recipe.architecture, device="cpu")
        network.load_state_dict({name: value.cpu() for name, value in self.average.items()})
        errors = self.validation.network_errors(network.eval(), PREDICTION)
        self.validation_error = {f"{sigma:g}": round(error, 5) for sigma, error in errors.items()}
        log = self.work / "log.csv"
        new = not log.exists()
        with log.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", "seconds", "training_loss", *(f"rmse_sigma_{s:g}" for s in errors)])
            writer.writerow([self.step, round(seconds, 1), round(training_loss, 5), *self.validation_error.values()])

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in self.network.state_dict().items():
            yield f"network/{name}", value
        for name, value in self.average.items():
            yield f"average/{name}", value
        for name, parameter in self.network.named_parameters():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                yield f"optimiser/{name}/{key}", value

    def _description(self) -> dict[str, Any]:
        return {"recipe": self.recipe.to_dict(), "simulation_version": SIMULATION_VERSION}

    def save(self) -> None:
        """Write the checkpoint under a temporary name and rename it."""
        from safetensors.torch import save_file

        path = self.work / "checkpoint.safetensors"
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        metadata = {"step": str(self.step), "description": json.dumps(self._description(), sort_keys=True)}
        metadata["validation"] = json.dumps(self.validation_error)
        try:
            save_file({name: value.detach().contiguous() for name, value in self._tensors()}, partial, metadata)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def load(self) -> None:
        """Take up the checkpoint, if there is one."""
        from safetensors import SafetensorError, safe_open

        path = self.work / "checkpoint.safetensors"
        if not path.exists():
            return
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}): remove it to start again") from error
        description = json.dumps(self._description(), sort_keys=True)
        if metadata.get("description") != description:
            raise CheckpointError(f"{path} belongs to another recipe: choose another folder or remove it")
        self.step = int(metadata["step"])
        self.validation_error = json.loads(metadata.get("validation", "{}"))
        self.network.load_state_dict({n[8:]: v for n, v in tensors.items() if n.startswith("network/")})
        self.average = {n: tensors[f"average/{n}"].to(self.device) for n in self.average}
        for name, parameter in self.network.named_parameters():
            state = {k: tensors[f"optimiser/{name}/{k}"] for k in ("step", "exp_avg", "exp_avg_sq")}
            self.optimiser.state[parameter] = {k: v if k == "step" else v.to(self.device) for k, v in state.items()}
        logger.info("resumed %s at step %d", path, self.step)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but PyTorch finds no usable GPU: use --device cpu")
    return torch.device(name)
