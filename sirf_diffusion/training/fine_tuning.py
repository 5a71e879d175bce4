"""Starting from a trained model: its weights, and what the new training must take over from it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..models.networks import NetworkConfig, build_network
from ..models.score_model import ScoreModel
from .recipes import Recipe

_FIRST_LAYERS = ("conv_in.conv.weight", "head.weight")


@dataclass(frozen=True)
class Start:
    """Weights to start from, and where they come from."""

    weights: dict[str, Tensor]
    provenance: dict[str, str]


def fine_tuning(recipe: Recipe, model_name: str) -> tuple[Recipe, Start]:
    """The recipe with the model's network, schedule and prediction, and the model's weights.

    A recipe for a conditional network (``in_channels = 2``) may start from an unconditional model: the weights of the
    new input image start at zero, so that the first step makes the same images. A recipe with ``grow`` keeps its own
    network, which gets the weights of the smaller one that the model has (see `grown`).
    """
    model = ScoreModel.load(model_name)
    if model.architecture is None or not isinstance(model.network, torch.nn.Module):
        raise ValueError(f"{model_name} does not tell its network: it cannot be trained further")
    weights = {name: value.detach().clone() for name, value in model.network.state_dict().items()}
    old, wanted = model.architecture, recipe.architecture.in_channels
    if old.in_channels > wanted:
        raise ValueError(
            f"{model_name} takes {old.in_channels} images and the recipe {wanted}: set in_channels = {old.in_channels} "
            "and use data with anatomical images"
        )
    extended = replace(old, in_channels=wanted)
    weights = with_more_inputs(weights, old, extended)
    architecture = recipe.architecture if recipe.grow else extended
    if recipe.grow:
        weights = grown(weights, extended, architecture, recipe.seed)
    recipe = replace(
        recipe, architecture=architecture, schedule=model.schedule, prediction=model.prediction,
        time_input=model.time_input,
    )  # fmt: skip
    return recipe, Start(weights, {"name": str(model_name), "sha256": model.hash})


def with_more_inputs(weights: dict[str, Tensor], old: NetworkConfig, new: NetworkConfig) -> dict[str, Tensor]:
    """Weights of the network with more input images, on which they do not depend yet."""
    if new.in_channels == old.in_channels:
        return weights
    extra = (new.in_channels - old.in_channels) * new.patch_size**new.spatial_dims
    extended = dict(weights)
    for name, first in weights.items():
        if name.endswith(_FIRST_LAYERS):
            # Pixel unshuffling keeps the pixels of an image together, so that new images come last.
            zeros = first.new_zeros((first.shape[0], extra, *first.shape[2:]))
            extended[name] = torch.cat((first, zeros), 1)
    return extended


def grown(weights: dict[str, Tensor], old: NetworkConfig, new: NetworkConfig, seed: int = 0) -> dict[str, Tensor]:
    """Weights of a network with more levels, or more attention, that starts from a smaller one.

    Levels are added below the deepest one and take over its middle block; attention that is new adds nothing at first;
    all else starts at random from ``seed``.
    """
    levels = len(old.channels)
    kept = replace(new, channels=new.channels[:levels], attention_levels=old.attention_levels)
    more_attention = all(a <= b for a, b in zip(old.attention_levels, new.attention_levels, strict=False))
    if "drunet" in (old.kind, new.kind) or kept != old or not more_attention:
        raise ValueError(
            "grow adds levels below those of the model, and attention, and leaves the rest of the network as it is: "
            f"cannot make {new.to_dict()} of {old.to_dict()}"
        )
    result = build_network(new, seed=seed).state_dict()
    added = len(new.channels) - levels
    for name in result:
        if "attentions" in name and ".out_proj." in name:
            result[name].zero_()
    for name, value in weights.items():
        # The first block on the way up belongs to the deepest level.
        result[re.sub(r"up_blocks\.(\d+)", lambda match: f"up_blocks.{int(match[1]) + added}", name)] = value
    return result
