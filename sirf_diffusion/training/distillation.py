"""Distillation: a smaller network learns the clean estimates of a score model, its teacher, from images alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..geometry.images import voxels_agree
from ..models.networks import NetworkConfig, build_network
from ..models.score_model import ScoreModel
from ..models.storage import ModelConfig
from .corruption import Example
from .evaluation.validation import ValidationSet, network_denoiser, root_mean_square, validation_set
from .fine_tuning import Start, smaller, thinned
from .log import Curves
from .loop import TrainingLoop
from .recipes import RECIPES, Recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Distillation:
    """The model that is distilled, a bundled name or a file."""

    teacher: str

    @cached_property
    def model(self) -> ScoreModel:
        """The teacher."""
        model = ScoreModel.load(self.teacher)
        if isinstance(model.metadata["training"].get("personalised"), Mapping):
            raise ValueError(f"{self.teacher} was made for one patient: distil a model of a population")
        return model

    @property
    def architecture(self) -> NetworkConfig:
        """The teacher's network, which model files always tell."""
        return self.model.architecture  # type: ignore[return-value]

    @cached_property
    def recipe(self) -> Recipe:
        """The default: all is the teacher's but the network, which is `smaller`."""
        model, old = self.model, self.architecture
        bundled, network = RECIPES.get(self.teacher), smaller(old)
        side, batch = (32, 4) if old.spatial_dims == 3 else (96, 8)
        return Recipe(
            f"{Path(self.teacher).stem}-student", model.metadata["tracer"], network, model.schedule,
            crops=(network.multiple * -(-side // network.multiple),), batch_size=batch, cycles=(20_000,),
            learning_rate=1e-3, decay="cosine", prediction=model.prediction, time_input=model.time_input,
            planes=tuple(range(min(old.num_class_embeds, 3) or 3)), phantoms=bundled and bundled.phantoms,
        )  # fmt: skip

    def checked(self, recipe: Recipe) -> Recipe:
        """The recipe, if the teacher can teach its network; ValueError otherwise."""
        own, old, new = self.recipe, self.architecture, recipe.architecture
        same = ("schedule", "prediction", "time_input", "tracer", "planes")
        pairs = {name: (getattr(own, name), getattr(recipe, name)) for name in same}
        for name in ("in_channels", "num_class_embeds", "spatial_dims"):
            pairs[name] = getattr(old, name), getattr(new, name)
        pairs |= {"rank": (0, recipe.rank), "grow": (False, recipe.grow)}
        for name, (wanted, found) in pairs.items():
            if wanted != found:
                raise ValueError(
                    f"{name} of a student of {self.teacher} must be {wanted}, found {found}: leave it out of the "
                    "configuration"
                )
        return recipe

    def start(self, recipe: Recipe) -> Start:
        """The student before its training: layers and channels of the teacher, and random where it has none."""
        new, old = recipe.architecture, self.architecture
        wanted = build_network(new, seed=recipe.seed).state_dict()
        forms = [(one.kind, one.patch_size, one.num_networks, len(one.channels)) for one in (old, new)]
        weights: dict[str, Tensor] = {}
        if forms[0] == forms[1]:
            taught = self.model.network.state_dict()  # type: ignore[attr-defined]
            weights = thinned(taught, wanted, old.num_res_blocks, new.num_res_blocks)
        logger.info("%d of the student's %d tensors start as the teacher's", len(weights), len(wanted))
        return Start(wanted | weights, self.provenance())

    def provenance(self) -> dict[str, str]:
        """The teacher's name and SHA-256."""
        return {"name": self.teacher, "sha256": self.model.hash}


class DistillationLoop(TrainingLoop):
    """A training loop whose target is the teacher's output for the same noisy image."""

    curves = Curves(reference="teacher", relative_to="the teacher's")

    def __init__(self, distillation: Distillation, *arguments: Any) -> None:
        self.distillation, state, source = distillation, *arguments[:2]
        self.teacher = distillation.model.network.to(state.device)  # type: ignore[attr-defined]
        found, wanted = source.file.voxel_size, distillation.model.voxel_size
        if not voxels_agree(found, wanted):
            raise ValueError(
                f"{source.file.path} has voxels of {found} mm, the teacher {wanted}: build the data with --voxel-size"
            )
        super().__init__(*arguments)
        licence = distillation.model.metadata["licence"]
        if self.options.licence not in ("", licence):
            raise ValueError(
                f"licence of a student is the teacher's, {licence!r}, found {self.options.licence!r}: leave it out of "
                "the configuration"
            )

    def _example(self, step: int) -> Example:
        example, device = super()._example(step), self.state.device.type
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=self.state.precision == "bfloat16"):
            return replace(example, target=example.predicted_by(self.teacher).float())

    def _validation_set(self) -> Any:
        found = validation_set(self.source.file.path, self.recipe)
        return found and TaughtValidation(found, self.teacher, self.recipe)

    def _config(self) -> ModelConfig:
        model = self.distillation.model
        told = {name: model.metadata[name] for name in ("licence", "intensity_rule")}
        return replace(super()._config(), voxel_size=model.voxel_size, **told)


class TaughtValidation:
    """Errors of a student by noise level, against the truth and against the teacher, beside those of the teacher."""

    def __init__(self, clean: ValidationSet, teacher: nn.Module, recipe: Recipe) -> None:
        self.recipe, self.groups = recipe, {sigma: list(clean.groups(sigma)) for sigma in clean.sigmas}
        self.truth = {sigma: [images for images, *_ in groups] for sigma, groups in self.groups.items()}
        self.taught = self._denoised(teacher)

    @torch.inference_mode()
    def _denoised(self, network: nn.Module) -> dict[float, list[Tensor]]:
        denoise = network_denoiser(network, self.recipe.schedule, self.recipe.prediction, self.recipe.time_input)
        return {
            sigma: [denoise(clean + sigma * noise, sigma, plane, anatomy) for clean, noise, anatomy, plane in groups]
            for sigma, groups in self.groups.items()
        }

    def gaussian_errors(self) -> dict[float | str, float]:
        """What the curves are relative to: the error of the teacher."""
        errors = _errors(self.taught, self.truth)
        return errors | _against_teacher(errors)

    def network_errors(self, network: nn.Module, *_: Any) -> dict[float | str, float]:
        """Root mean squared distance to the truth, and to the teacher's clean image (``teacher_SIGMA``)."""
        found = self._denoised(network)
        return _errors(found, self.truth) | _against_teacher(_errors(found, self.taught))


def _errors(found: dict[float, list[Tensor]], wanted: dict[float, list[Tensor]]) -> dict[float | str, float]:
    return {
        sigma: root_mean_square(a - b for a, b in zip(images, wanted[sigma], strict=True))
        for sigma, images in found.items()
    }


def _against_teacher(errors: dict[float | str, float]) -> dict[float | str, float]:
    return {f"teacher_{sigma:g}": error for sigma, error in errors.items()}
