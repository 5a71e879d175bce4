"""Starting from a trained model: its weights, and what the new training must take over from it."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

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
    #: Its voxel size (mm), tracer and licence.
    told: Mapping[str, Any] = field(default_factory=dict)


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
    told = {"voxel_size": model.voxel_size, **{name: model.metadata[name] for name in ("tracer", "licence")}}
    return recipe, Start(weights, {"name": str(model_name), "sha256": model.hash}, told)


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


def smaller(network: NetworkConfig) -> NetworkConfig:
    """Half the residual blocks, half the channels from the third level on, attention on the deepest level alone.

    Of a network with one residual block a level, half of all channels.
    """
    levels, blocks = len(network.channels), network.num_res_blocks
    kept = 2 if blocks > 1 else 0
    channels = tuple(n if k < kept else max(n // 2, 1) for k, n in enumerate(network.channels))
    return replace(
        network, channels=channels, num_res_blocks=max(blocks // 2, 1),
        attention_levels=(*[False] * (levels - 1), network.attention_levels[-1]),
        norm_num_groups=math.gcd(network.norm_num_groups, *channels),
        num_head_channels=math.gcd(network.num_head_channels, channels[-1]),
    )  # fmt: skip


def thinned(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], old: int, new: int) -> dict[str, Tensor]:
    """Weights of a smaller network: evenly spaced layers of each level, and of their channels evenly spaced ones.

    So groups of the normalisation, frequencies of the time and the two parts of a concatenation stay what they are.
    Left out is what ``weights`` do not have, or have smaller; ``old`` and ``new`` are the residual blocks of a level.
    """
    found = {}
    for name, one in wanted.items():
        source = name
        if match := re.search(r"(down|up)_blocks\.\d+\.(?:resnets|attentions)\.(\d+)", name):
            more = match[1] == "up"  # one block more on the way up
            layer = int(match[2]) * (old - 1 + more) // max(new - 1 + more, 1)
            source = f"{name[: match.start(2)]}{layer}{name[match.end(2) :]}"
        value = weights.get(source)
        if value is None or value.ndim != one.ndim or any(map(operator.lt, value.shape, one.shape)):
            continue
        for axis, (have, number) in enumerate(zip(value.shape, one.shape, strict=True)):
            value = value.index_select(axis, torch.arange(number, device=value.device) * have // number)
        found[name] = value
    return found
