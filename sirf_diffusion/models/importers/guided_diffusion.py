"""State dictionaries of OpenAI's guided-diffusion U-Net and its descendants, in their plain form.

Plain: time embeddings are added (no scale-shift normalisation), and sizes change by convolutions (no residual blocks
for it). Dhariwal and Nichol 2021, arXiv:2105.05233.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ..networks import NetworkConfig
from .reading import UnsupportedNetworkError

_WHAT = "guided-diffusion U-Net"
_BLOCK = {
    "in_layers.0": "norm1", "in_layers.2": "conv1.conv", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2.conv", "skip_connection": "skip_connection.conv",
}  # fmt: skip


def convert_guided_diffusion(
    weights: dict[str, Tensor], config: dict[str, Any]
) -> tuple[NetworkConfig, dict[str, Tensor]]:
    """Configuration, which the shapes tell but for the attention heads, and weights.

    Parameters
    ----------
    weights
        The state dictionary.
    config
        ``num_head_channels`` or ``num_heads``; ``use_new_attention_order``.

    Raises
    ------
    UnsupportedNetworkError
        If the network is not of the plain form.
    """
    _refuse(weights)
    down = [_parts(weights, f"input_blocks.{k}") for k in range(1, _count(weights, "input_blocks"))]
    levels: list[list[dict[str, str]]] = [[]]
    for parts in down:
        if "down" in parts:
            levels.append([])
        else:
            levels[-1].append(parts)
    channels = tuple(weights[f"{level[0]['block']}.out_layers.3.weight"].shape[0] for level in levels)
    attention = tuple("attention" in level[0] for level in levels)
    if len({len(level) for level in levels}) != 1:
        raise UnsupportedNetworkError(f"{_WHAT}: levels have different numbers of residual blocks")
    head = _head_channels(config, channels, attention)
    converted: dict[str, Tensor] = {}
    for name in ("time_embed.0", "time_embed.2", "out.0"):
        _copy(weights, converted, name, name)
    _copy(weights, converted, "input_blocks.0.0", "conv_in.conv")
    _copy(weights, converted, "out.2", "out.2.conv")
    for name in ("out.2.conv.weight", "out.2.conv.bias"):
        # A learned variance comes second and has no use here.
        converted[name] = converted[name][:1]
    classes = 0
    if "label_emb.weight" in weights:
        converted["class_embedding.weight"] = weights["label_emb.weight"]
        classes = len(weights["label_emb.weight"])
    interleaved = not config.get("use_new_attention_order", False)
    for source, target in _places(weights, levels):
        if source.endswith("attention!"):
            _attention(weights, converted, source[: -len("attention!")], target, head, interleaved)
        elif f"{source}.in_layers.0.weight" in weights:
            for old, new in _BLOCK.items():
                _copy(weights, converted, f"{source}.{old}", f"{target}.{new}")
        else:
            _copy(weights, converted, source, target)
    architecture = NetworkConfig(
        channels=channels, attention_levels=attention, num_res_blocks=len(levels[0]), norm_num_groups=32,
        num_head_channels=head, num_class_embeds=classes, in_channels=weights["input_blocks.0.0.weight"].shape[1],
        norm_eps=1e-5,
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
    for k in range(1, _count(weights, "input_blocks")):
        if f"input_blocks.{k}.0.op.weight" not in weights and f"input_blocks.{k}.0.in_layers.0.weight" not in weights:
            raise UnsupportedNetworkError(f"{_WHAT}: input_blocks.{k} is neither a residual block nor a convolution")
    if any(re.match(r"output_blocks\.\d+\.[12]\.in_layers\.0\.weight", name) for name in weights):
        raise UnsupportedNetworkError(f"{_WHAT}: residual blocks for resampling (resblock_updown) are not supported")


def _places(weights: dict[str, Tensor], levels: list[list[dict[str, str]]]) -> Iterator[tuple[str, str]]:
    """Layers here and there; attention layers are marked, as their weights change too."""
    k = 1
    for i, level in enumerate(levels):
        for j, parts in enumerate(level):
            yield parts["block"], f"down_blocks.{i}.resnets.{j}"
            if "attention" in parts:
                yield parts["attention"] + "attention!", f"down_blocks.{i}.attentions.{j}"
            k += 1
        if i < len(levels) - 1:
            yield f"input_blocks.{k}.0.op", f"down_blocks.{i}.downsampler.op.conv"
            k += 1
    yield "middle_block.0", "middle_block.resnet_1"
    yield "middle_block.1attention!", "middle_block.attention"
    yield "middle_block.2", "middle_block.resnet_2"
    blocks = len(levels[0]) + 1
    for k in range(_count(weights, "output_blocks")):
        i, j = divmod(k, blocks)
        parts = _parts(weights, f"output_blocks.{k}")
        yield parts["block"], f"up_blocks.{i}.resnets.{j}"
        if "attention" in parts:
            yield parts["attention"] + "attention!", f"up_blocks.{i}.attentions.{j}"
        if "up" in parts:
            yield parts["up"], f"up_blocks.{i}.upsampler.postconv.conv"


def _parts(weights: dict[str, Tensor], place: str) -> dict[str, str]:
    parts = {}
    for k in range(3):
        if f"{place}.{k}.in_layers.0.weight" in weights:
            parts["block"] = f"{place}.{k}"
        elif f"{place}.{k}.qkv.weight" in weights:
            parts["attention"] = f"{place}.{k}"
        elif f"{place}.{k}.op.weight" in weights:
            parts["down"] = f"{place}.{k}.op"
        elif f"{place}.{k}.conv.weight" in weights:
            parts["up"] = f"{place}.{k}.conv"
    return parts


def _attention(
    weights: dict[str, Tensor], converted: dict[str, Tensor], source: str, target: str, head: int, interleaved: bool
) -> None:
    _copy(weights, converted, f"{source}.norm", f"{target}.norm")
    for kind in ("weight", "bias"):
        qkv = weights[f"{source}.qkv.{kind}"].flatten(1) if kind == "weight" else weights[f"{source}.qkv.{kind}"]
        size = qkv.shape[0] // 3
        if interleaved:  # [head, (q, k, v), channel of the head, ...]
            qkv = qkv.unflatten(0, (size // head, 3, head)).transpose(0, 1).flatten(0, 2)
        for name, part in zip("qkv", qkv.split(size), strict=True):
            converted[f"{target}.attn.to_{name}.{kind}"] = part.contiguous()
        out = weights[f"{source}.proj_out.{kind}"]
        converted[f"{target}.attn.out_proj.{kind}"] = out.flatten(1) if kind == "weight" else out


def _head_channels(config: dict[str, Any], channels: tuple[int, ...], attention: tuple[bool, ...]) -> int:
    if config.get("num_head_channels", -1) not in (-1, None):
        return int(config["num_head_channels"])
    if "num_heads" not in config:
        raise UnsupportedNetworkError(f"{_WHAT}: give num_head_channels or num_heads in the configuration")
    widths = {c // int(config["num_heads"]) for c, has in zip(channels, (*attention[:-1], True), strict=True) if has}
    if len(widths) != 1:
        raise UnsupportedNetworkError(f"{_WHAT}: num_heads at levels of different width is not supported")
    return widths.pop()


def _copy(weights: dict[str, Tensor], converted: dict[str, Tensor], source: str, target: str) -> None:
    for kind in ("weight", "bias"):
        if f"{source}.{kind}" in weights:
            converted[f"{target}.{kind}"] = weights[f"{source}.{kind}"]


def _count(weights: dict[str, Tensor], stem: str) -> int:
    pattern = re.compile(rf"^{stem}\.(\d+)\.")
    return 1 + max((int(match[1]) for name in weights if (match := pattern.match(name))), default=-1)
