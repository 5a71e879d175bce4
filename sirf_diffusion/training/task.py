"""What a training is of: its network, examples, validation and model file. Here that of score models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..models.networks import build_network
from ..models.score_model import ScoreModel
from ..models.storage import ModelConfig, save_model
from .corruption import corrupted
from .evaluation.acceptance import save_sheet, unconditional_samples
from .evaluation.validation import ValidationSet, validation_set
from .recipes import Recipe


class Example(Protocol):
    """What a network is shown and what is wanted of it; of several images."""

    def __len__(self) -> int: ...

    def part(self, index: int, parts: int) -> Example:
        """One of ``parts`` equal parts."""

    def predicted_by(self, network: nn.Module) -> Any:
        """What a network makes of it."""

    def loss(self, predicted: Any) -> Tensor:
        """How far that is from what is wanted."""


class ScoreTask:
    """A score model, trained on noisy slices or cubes. Others have the same methods."""

    #: What the validation's errors are of, for the columns of ``log.csv``.
    level = "sigma"
    #: What decides the result beside recipe and data.
    provenance: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def build(self, device: torch.device) -> nn.Module:
        """The untrained network."""
        return build_network(self.recipe.architecture, seed=self.recipe.seed, device=device)

    def example(self, images: Tensor, planes: Tensor, step: int, device: torch.device, rank: int, world: int) -> Any:
        """The training example of clean images."""
        return corrupted(self.recipe, images, planes, step, device, rank, world)

    def validation(self, path: Path) -> ValidationSet | None:
        """What the network is validated on; None without validation subjects."""
        return validation_set(path, self.recipe)

    def errors(self, validation: ValidationSet, network: nn.Module) -> dict[float, float]:
        """Its error at each noise level."""
        return validation.network_errors(network, self.recipe.prediction, self.recipe.time_input)

    def save(self, path: Path, network: nn.Module, source: Any, training: dict[str, Any]) -> None:
        """Write the model file."""
        save_model(path, network.state_dict(), self._config(source, training), weights_dtype="float16")

    def draw_samples(self, path: Path, network: nn.Module, source: Any) -> None:
        """Write a sheet of samples."""
        config = self._config(source, {})
        model = ScoreModel(
            network, config.schedule, config.prediction, config.voxel_size,
            time_input=config.time_input, architecture=config.architecture,
        )  # fmt: skip
        save_sheet(unconditional_samples(model, 8, max(self.recipe.crops), num_steps=30), path)

    def _config(self, source: Any, training: dict[str, Any]) -> ModelConfig:
        recipe = self.recipe
        return ModelConfig(
            recipe.architecture, recipe.schedule, recipe.prediction, recipe.time_input, source.file.voxel_size,
            tracer=recipe.tracer or source.file.tracer,
            licence="Apache-2.0" if recipe.simulated else "", training=training,
        )  # fmt: skip
