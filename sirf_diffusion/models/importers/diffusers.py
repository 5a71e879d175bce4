"""Hugging Face diffusers' ``UNet2DModel``, from which MONAI's network descends: only the names differ."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from ..networks import NetworkConfig
from .reading import UnsupportedNetworkError, require

_WHAT = "diffusers UNet2DModel"
_FITTING: dict[str, tuple[Any, ...]] = {
    "_class_name": ("UNet2DModel",), "center_input_sample": (False,), "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,), "freq_shift": (0,), "mid_block_scale_factor": (1, 1.0), "downsample_padding": (1,),
    "downsample_type": ("conv",), "upsample_type": ("conv",), "act_fn": ("silu", "swish"),
    "attn_norm_num_groups": (None,),
    "resnet_time_scale_shift": ("default",), "class_embed_type": (None,), "add_attention": (True,),
    "out_channels": (1,), "mid_block_type": ("UNetMidBlock2D",),
}  # fmt: skip
_DOWN = {"DownBlock2D": False, "AttnDownBlock2D": True}
_UP = {"UpBlock2D": False, "AttnUpBlock2D": True}

# Names in diffusers -> names in MONAI, the former attention layers' included; tried in this order.
_NAMES = (
    (r"^conv_in\.", "conv_in.conv."),
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2.conv."),
    (r"^mid_block\.resnets\.0\.", "middle_block.resnet_1."),
    (r"^mid_block\.resnets\.1\.", "middle_block.resnet_2."),
    (r"^mid_block\.attentions\.0\.", "middle_block.attention."),
    (r"\.conv([12])\.(weight|bias)$", r".conv\1.conv.\2"),
    (r"\.conv_shortcut\.", ".skip_connection.conv."),
    (r"\.downsamplers\.0\.conv\.", ".downsampler.op.conv."),
    (r"\.upsamplers\.0\.conv\.", ".upsampler.postconv.conv."),
    (r"\.group_norm\.", ".norm."),
    (r"\.(?:to_q|query)\.", ".attn.to_q."),
    (r"\.(?:to_k|key)\.", ".attn.to_k."),
    (r"\.(?:to_v|value)\.", ".attn.to_v."),
    (r"\.(?:to_out\.0|proj_attn)\.", ".attn.out_proj."),
)


def convert_diffusers(weights: dict[str, Tensor], config: dict[str, Any]) -> tuple[NetworkConfig, dict[str, Tensor]]:
    """Configuration and weights of a state dictionary and the ``config.json`` beside it.

    Raises UnsupportedNetworkError if the configuration has something that has no counterpart here.
    """
    require(config, _FITTING, _WHAT)
    channels = config.get("block_out_channels", (224, 448, 672, 896))
    attention = _attention(config)
    config_heads = config.get("attention_head_dim", 8)
    if config_heads is None:
        widths = {width for width, has in zip(channels, (*attention[:-1], True), strict=True) if has}
        if len(widths) != 1:
            raise UnsupportedNetworkError(f"{_WHAT}: attention_head_dim = None with attention at several widths")
        config_heads = widths.pop()
    architecture = NetworkConfig(
        channels=tuple(channels),
        attention_levels=attention,
        num_res_blocks=config.get("layers_per_block", 2),
        norm_num_groups=config.get("norm_num_groups", 32),
        num_head_channels=config_heads,
        num_class_embeds=config.get("num_class_embeds") or 0,
        in_channels=config.get("in_channels", 3),
        norm_eps=config.get("norm_eps") or 1e-5,
    )
    converted = {}
    for name, value in weights.items():
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        converted[name] = value
    if not config.get("flip_sin_to_cos", True):
        # Sines come first in the embedding of the time: exchange the halves that the first layer sees.
        first = converted["time_embed.0.weight"]
        converted["time_embed.0.weight"] = torch.cat(first.chunk(2, 1)[::-1], 1)
    return architecture, converted


def _attention(config: dict[str, Any]) -> tuple[bool, ...]:
    down = config.get("down_block_types", ["DownBlock2D", *["AttnDownBlock2D"] * 3])
    up = config.get("up_block_types", [*["AttnUpBlock2D"] * 3, "UpBlock2D"])
    for kinds, known in ((down, _DOWN), (up, _UP)):
        unknown = sorted(set(kinds) - set(known))
        if unknown:
            raise UnsupportedNetworkError(f"{_WHAT}: blocks {unknown} are not supported, only {sorted(known)}")
    levels = tuple(_DOWN[kind] for kind in down)
    if levels != tuple(_UP[kind] for kind in reversed(up)):
        raise UnsupportedNetworkError(f"{_WHAT}: attention on the way down ({down}) and up ({up}) must match")
    return levels
