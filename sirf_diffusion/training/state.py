"""The state of a training: weights, their running average, optimiser and step; how it changes and is kept."""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..environment import faster_precision, warn_of_slow_precision
from ..files.outputs import difference, jsonable
from ..geometry.checks import check_choice, check_finite
from ..models.lora import attach_low_rank
from ..models.networks import build_network, memory_format
from .checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from .distributed import Processes
from .fine_tuning import Start
from .recipes import Recipe

logger = logging.getLogger(__name__)


class TrainingState:
    """Network, running average, optimiser and step of one process.

    ``provenance`` is what decides the result beside the recipe (the data): a checkpoint of anything else is refused.
    ``network`` is an untrained one, if it is not that of the recipe's architecture.
    """

    def __init__(
        self,
        recipe: Recipe,
        provenance: dict[str, Any],
        device: torch.device,
        peers: Processes,
        start: Start | None = None,
        compiled: bool = False,
        network: nn.Module | None = None,
    ) -> None:
        self.recipe, self.device, self.peers = recipe, device, peers
        self.network = (network or build_network(recipe.architecture, seed=recipe.seed)).to(device)
        if start is not None:
            self.network.load_state_dict(start.weights)
        if start is None and (recipe.rank or recipe.grow):
            name = "rank (low-rank fine-tuning)" if recipe.rank else "grow"
            raise ValueError(f"{name} needs a model to start from: give --init")
        free = attach_low_rank(self.network, recipe.rank, recipe.seed) if recipe.rank else self.network.parameters()
        self.network = self.network.to(memory_format=memory_format(recipe.architecture))  # type: ignore[call-overload]
        self.average = AveragedModel(self.network, multi_avg_fn=self._blend).eval().requires_grad_(False)
        self.average.n_averaged.fill_(1)  # the weights at the start count: the first step is blended, not copied
        self.optimiser = torch.optim.Adam(free, lr=recipe.learning_rate, foreach=True)
        self.step = 0
        #: Tracer and licence of the model that it starts from.
        self.inherited = {} if start is None else start.told
        #: What the network computes in; a training keeps what it began with.
        self.precision = faster_precision(device) if recipe.precision == "auto" else recipe.precision
        warn_of_slow_precision(self.precision, device)
        #: Values that go into the checkpoint as they are.
        self.notes: dict[str, Any] = {}
        self.description = {"recipe": recipe.to_dict(), **provenance}
        if start is not None:
            self.description["init"] = start.provenance
        # One network per plane: a batch may have no slice of a plane.
        self._wrapped = peers.wrap(self.network, device, partial=recipe.architecture.num_networks > 1)
        if compiled:
            self._wrapped = torch.compile(self._wrapped)  # type: ignore[assignment]
        self.network.train()

    def advance(self, example: Any) -> Tensor:
        """One step of the optimiser on this process' share of the batch; returns its loss as a tensor on the device."""
        recipe = self.recipe
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.rate(self.step)
        self.optimiser.zero_grad(set_to_none=True)
        losses = []
        for k in range(recipe.accumulation):
            part = example if recipe.accumulation == 1 else example.part(k, recipe.accumulation)
            losses.append(self._backward(part, last=k == recipe.accumulation - 1))
        if recipe.gradient_clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), recipe.gradient_clip)
        self.optimiser.step()
        self.step += 1
        self.average.update_parameters(self.network)
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    def _blend(self, average: list[Tensor], current: list[Tensor], _: Tensor) -> None:
        """``average = d average + (1 - d) current``; the decay ``d`` grows with the steps to that of the recipe."""
        decay = min(self.recipe.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(average, current, 1 - decay)

    def save(self, work: Path) -> None:
        """Write a checkpoint."""
        tensors = {f"network/{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"average/{name}": value for name, value in self.average.module.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"optimiser/{name}/{key}"] = value
        metadata = {"step": str(self.step), "description": self._description_text(), "precision": self.precision}
        write_checkpoint(work, tensors, metadata | {key: json.dumps(value) for key, value in self.notes.items()})

    @torch.no_grad()
    def load(self, work: Path) -> bool:
        """Take up the newest whole checkpoint; whether there was one."""
        content = read_checkpoint(work)
        if content is None:
            return False
        tensors, metadata = content
        if metadata.get("description") != self._description_text():
            raise CheckpointError(
                f"the checkpoint in {work} belongs to another training: {self._difference(metadata)}; --restart begins "
                "anew, or choose another folder"
            )
        try:
            self._take_up(tensors, metadata)
        except (KeyError, ValueError, RuntimeError, RecursionError) as error:
            raise CheckpointError(
                f"the checkpoint in {work} does not fit this training ({error}): remove it to start again"
            ) from error
        logger.info("resumed from %s at step %d", work, self.step)
        return True

    def _take_up(self, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        for name, tensor in tensors.items():
            check_finite(tensor, f"tensor {name!r}")
        self.step = int(metadata["step"])
        # checkpoints that do not say it are older than the choice
        self.precision = metadata.get("precision", "bfloat16" if self.recipe.precision == "auto" else self.precision)
        warn_of_slow_precision(check_choice("precision", self.precision, ("bfloat16", "float32")), self.device)
        known = ("step", "description", "precision")
        self.notes = {key: json.loads(v) for key, v in metadata.items() if key not in known}
        for part, network in (("network/", self.network), ("average/", self.average.module)):
            network.load_state_dict({n.removeprefix(part): v for n, v in tensors.items() if n.startswith(part)})
        if self.step:
            for name, parameter in self.network.named_parameters():
                if f"optimiser/{name}/step" not in tensors:  # not trained, or of a plane of which no slice was seen yet
                    continue
                state = {"step": tensors[f"optimiser/{name}/step"]}
                for key in ("exp_avg", "exp_avg_sq"):
                    # In the memory layout of the parameter, which is faster.
                    state[key] = torch.empty_like(parameter).copy_(tensors[f"optimiser/{name}/{key}"]).detach()
                self.optimiser.state[parameter] = state

    def _backward(self, part: Any, last: bool) -> Tensor:
        """Add the gradient of a part of the batch; processes exchange theirs with the last."""
        alone = last or self.peers.world == 1
        with nullcontext() if alone else self._wrapped.no_sync():  # type: ignore[operator]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                predicted = part.predicted_by(self._wrapped)
            loss = part.loss(predicted)
            (loss if self.recipe.accumulation == 1 else loss / self.recipe.accumulation).backward()
        return loss.detach()

    def _difference(self, metadata: dict[str, str]) -> str:
        try:
            return difference(json.loads(metadata["description"]), jsonable(self.description))
        except (KeyError, ValueError, AttributeError, RecursionError):
            return "it does not say which"

    def _description_text(self) -> str:
        return json.dumps(self.description, sort_keys=True)
