"""State dictionaries of OpenAI's guided-diffusion U-Net and its descendants, in their plain form.

Plain: time embeddings are added (no scale-shift normalisation), and sizes change by convolutions (no residual blocks
for it). Dhariwal and Nichol 2021, arXiv:2105.05233.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from ..networks import NetworkConfig
from .reading import UnsupportedNetworkError, head_channels

_WHAT = "guided-diffusion U-Net"
_PLACES = {
    "input_blocks.0.0": "conv_in.conv", "out.2": "out.2.conv", "label_emb": "class_embedding",
    "middle_block.0": "middle_block.resnet_1", "middle_block.1": "middle_block.attention",
    "middle_block.2": "middle_block.resnet_2",
}  # fmt: skip
_PARTS = {
    "in_layers.0": "norm1", "in_layers.2": "conv1.conv", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2.conv", "skip_connection": "skip_connection.conv", "proj_out": "attn.out_proj",
}  # fmt: skip


def convert_guided_diffusion(
    weights: dict[str, Tensor], config: dict[str, Any]
) -> tuple[NetworkConfig, dict[str, Tensor]]:
    """Configuration, which the shapes tell but for the attention heads, and weights of a state dictionary.

    ``config`` has ``num_head_channels`` or ``num_heads``, and ``use_new_attention_order``. Raises
    UnsupportedNetworkError if the network is not of the plain form.
    """
    _refuse(weights)
    # Blocks of each level as their numbers on the way down; a convolution begins the next level.
    levels: list[list[int]] = [[]]
    places = dict(_PLACES)
    for k in range(1, _count(weights, "input_blocks")):
        i, j = len(levels) - 1, len(levels[-1])
        if f"input_blocks.{k}.0.op.weight" in weights:
            places[f"input_blocks.{k}.0.op"] = f"down_blocks.{i}.downsampler.op.conv"
            levels.append([])
            continue
        places[f"input_blocks.{k}.0"] = f"down_blocks.{i}.resnets.{j}"
        places[f"input_blocks.{k}.1"] = f"down_blocks.{i}.attentions.{j}"
        levels[-1].append(k)
    if len({len(level) for level in levels}) != 1:
        raise UnsupportedNetworkError(f"{_WHAT}: levels have different numbers of residual blocks")
    for k in range(_count(weights, "output_blocks")):
        i, j = divmod(k, len(levels[0]) + 1)
        places[f"output_blocks.{k}.0"] = f"up_blocks.{i}.resnets.{j}"
        places[f"output_blocks.{k}.1"] = f"up_blocks.{i}.attentions.{j}"
        for slot in (1, 2):
            places[f"output_blocks.{k}.{slot}.conv"] = f"up_blocks.{i}.upsampler.postconv.conv"
    channels = tuple(len(weights[f"input_blocks.{level[0]}.0.out_layers.3.weight"]) for level in levels)
    attention = tuple(f"input_blocks.{level[0]}.1.qkv.weight" in weights for level in levels)
    head = _head_channels(config, channels, attention)
    converted: dict[str, Tensor] = {}
    for name, value in weights.items():
        stem, _, kind = name.rpartition(".")
        place = stem
        while place and place not in places:
            place = place.rpartition(".")[0]
        place = place or stem
        part = stem[len(place) + 1 :]
        target = ".".join(filter(None, (places.get(place, place), _PARTS.get(part, part))))
        if part == "qkv":
            queries = _queries(value, head, interleaved=not config.get("use_new_attention_order", False))
            for letter, rows in zip("qkv", queries, strict=True):
                converted[f"{places[place]}.attn.to_{letter}.{kind}"] = rows
        elif place == "out.2":
            converted[f"{target}.{kind}"] = value[:1]  # a learned variance comes second and has no use here
        else:
            converted[f"{target}.{kind}"] = value.flatten(1) if part == "proj_out" and value.ndim > 1 else value
    architecture = NetworkConfig(
        channels=channels, attention_levels=attention, num_res_blocks=len(levels[0]), norm_num_groups=32,
        num_head_channels=head, num_class_embeds=len(weights.get("label_emb.weight", ())),
        in_channels=weights["input_blocks.0.0.weight"].shape[1], norm_eps=1e-5,
    )  # fmt: skip
    return architecture, converted


def _refuse(weights: dict[str, Tensor]) -> None:
    embedding, norm = "input_blocks.1.0.emb_layers.1.weight", "input_blocks.1.0.out_layers.0.weight"
    if embedding not in weights or norm not in weights:
        raise UnsupportedNetworkError(f"{_WHAT}: {embedding} is missing")
    if weights[embedding].shape[0] != weights[norm].shape[0]:
        raise UnsupportedNetworkError(
            f"{_WHAT}: scale-shift normalisation (use_scale_shift_norm=True) is not supported: MONAI's network adds "
            "the time embedding. Such a network can be used in Python: ScoreModel takes any callable as its network"
        )
    if any(re.match(r"output_blocks\.\d+\.[12]\.in_layers\.0\.weight", name) for name in weights):
        raise UnsupportedNetworkError(f"{_WHAT}: residual blocks for resampling (resblock_updown) are not supported")


def _queries(qkv: Tensor, head: int, interleaved: bool) -> tuple[Tensor, ...]:
    """Rows of queries, keys and values; interleaved: head by head."""
    qkv = qkv.flatten(1) if qkv.ndim > 1 else qkv
    size = len(qkv) // 3
    if interleaved:
        qkv = qkv.unflatten(0, (size // head, 3, head)).transpose(0, 1).flatten(0, 2)
    return tuple(rows.contiguous() for rows in qkv.split(size))


def _head_channels(config: dict[str, Any], channels: tuple[int, ...], attention: tuple[bool, ...]) -> int:
    if config.get("num_head_channels", -1) not in (-1, None):
        return int(config["num_head_channels"])
    if "num_heads" not in config:
        raise UnsupportedNetworkError(f"{_WHAT}: give num_head_channels or num_heads in the configuration")
    return head_channels(channels, attention, int(config["num_heads"]), f"{_WHAT}: num_heads")


def _count(weights: dict[str, Tensor], stem: str) -> int:
    numbers = (re.match(rf"{stem}\.(\d{{1,4}})\.", name) for name in weights)
    return 1 + max((int(match[1]) for match in numbers if match), default=-1)
