"""Networks that this package has too, under other names: of MONAI, Hugging Face diffusers and deepinv.

MONAI's ``DiffusionModelUNet`` descends from diffusers' ``UNet2DModel``; deepinv's DRUNet has the layers of its authors'
(DPIR).
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from ..networks import NetworkConfig
from .reading import UnsupportedNetworkError, head_channels, plain_arguments, renamed, require

_MONAI, _DIFFUSERS, _DRUNET = "MONAI DiffusionModelUNet", "diffusers UNet2DModel", "deepinv DRUNet"
_MONAI_ARGUMENTS = (
    "spatial_dims", "in_channels", "out_channels", "num_res_blocks", "channels", "num_channels", "attention_levels",
    "norm_num_groups", "norm_eps", "resblock_updown", "num_head_channels", "with_conditioning",
    "transformer_num_layers", "cross_attention_dim", "num_class_embeds", "upcast_attention", "dropout_cattn",
    "include_fc", "use_combined_linear", "use_flash_attention",
)  # fmt: skip
_MONAI_FITTING: dict[str, tuple[Any, ...]] = {
    "spatial_dims": (2, 3), "out_channels": (1,), "resblock_updown": (False,), "with_conditioning": (False,),
    "cross_attention_dim": (None,), "include_fc": (True,), "use_combined_linear": (False,),
}  # fmt: skip
# Names of the former MONAI Generative package.
_MONAI_GENERATIVE = (
    (r"(attentions\.\d+|attention)\.(to_[qkv])\.", r"\1.attn.\2."),
    (r"(attentions\.\d+|attention)\.proj_attn\.", r"\1.attn.out_proj."),
    (r"upsampler\.conv\.", "upsampler.postconv."),
)
_DIFFUSERS_FITTING: dict[str, tuple[Any, ...]] = {
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
_DIFFUSERS_NAMES = (
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
_DRUNET_FITTING: dict[str, tuple[Any, ...]] = {
    "act_mode": ("R",), "downsample_mode": ("strideconv",), "upsample_mode": ("convtranspose",), "out_channels": (1,),
}  # fmt: skip


def convert_monai(weights: dict[str, Tensor], config: dict[str, Any]) -> tuple[NetworkConfig, dict[str, Tensor]]:
    """Configuration and weights of a state dictionary and the arguments that the network was built with.

    Raises UnsupportedNetworkError if an argument is unknown, missing or has no counterpart here.
    """
    config = _constructor_arguments(config)
    unknown = sorted(set(config) - set(_MONAI_ARGUMENTS))
    if unknown:
        raise UnsupportedNetworkError(f"{_MONAI}: unknown arguments {unknown}; known are {sorted(_MONAI_ARGUMENTS)}")
    require(config, _MONAI_FITTING, _MONAI)
    channels = config.get("channels", config.get("num_channels"))
    missing = [name for name in ("in_channels", "attention_levels", "num_res_blocks") if name not in config]
    if channels is None or missing:
        raise UnsupportedNetworkError(f"{_MONAI}: the configuration must give channels, {', '.join(missing)}")
    architecture = NetworkConfig(
        channels=tuple(channels),
        attention_levels=tuple(config["attention_levels"]),
        num_res_blocks=_one("num_res_blocks", config["num_res_blocks"]),
        norm_num_groups=config.get("norm_num_groups", 32),
        num_head_channels=_one("num_head_channels", config.get("num_head_channels", 8)),
        num_class_embeds=config.get("num_class_embeds") or 0,
        in_channels=config["in_channels"],
        spatial_dims=config.get("spatial_dims", 2),
        norm_eps=config.get("norm_eps", 1e-6),
    )
    return architecture, renamed(weights, _MONAI_GENERATIVE)


def _constructor_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments out of a bundle's configuration (``{"network_def": {"_target_": ..., ...}}``), or as they are."""
    for value in (config, *config.values()):
        if isinstance(value, dict) and "DiffusionModelUNet" in str(value.get("_target_", "")):
            return plain_arguments(value, config, _MONAI)
    return plain_arguments(config, {}, _MONAI)


def _one(name: str, value: Any) -> int:
    """A number that the network has at every level."""
    values = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(values) != 1:
        raise UnsupportedNetworkError(f"{_MONAI}: {name} = {value!r} differs between levels, which is not supported")
    return int(values.pop())


def convert_diffusers(weights: dict[str, Tensor], config: dict[str, Any]) -> tuple[NetworkConfig, dict[str, Tensor]]:
    """Configuration and weights of a state dictionary and the ``config.json`` beside it.

    Raises UnsupportedNetworkError if the configuration has something that has no counterpart here.
    """
    require(config, _DIFFUSERS_FITTING, _DIFFUSERS)
    channels = config.get("block_out_channels", (224, 448, 672, 896))
    attention = _attention(config)
    head = config.get("attention_head_dim", 8)
    if head is None:
        head = head_channels(channels, attention, 1, f"{_DIFFUSERS}: attention_head_dim = None")
    architecture = NetworkConfig(
        channels=tuple(channels),
        attention_levels=attention,
        num_res_blocks=config.get("layers_per_block", 2),
        norm_num_groups=config.get("norm_num_groups", 32),
        num_head_channels=head,
        num_class_embeds=config.get("num_class_embeds") or 0,
        in_channels=config.get("in_channels", 3),
        norm_eps=config.get("norm_eps") or 1e-5,
    )
    converted = renamed(weights, _DIFFUSERS_NAMES)
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
            raise UnsupportedNetworkError(f"{_DIFFUSERS}: blocks {unknown} are not supported, only {sorted(known)}")
    levels = tuple(_DOWN[kind] for kind in down)
    if levels != tuple(_UP[kind] for kind in reversed(up)):
        raise UnsupportedNetworkError(f"{_DIFFUSERS}: attention on the way down ({down}) and up ({up}) must match")
    return levels


def convert_drunet(weights: dict[str, Tensor], config: dict[str, Any]) -> tuple[NetworkConfig, dict[str, Tensor]]:
    """Configuration, which the shapes tell, and weights of a state dictionary.

    ``config`` has the arguments that the network was built with; ``act_mode``, which does not show in the weights, is
    needed. Raises UnsupportedNetworkError if it is missing, or the network has other layers: biases, other ways of
    resampling, colour images.
    """
    require(config, _DRUNET_FITTING, _DRUNET)
    if "act_mode" not in config:
        raise UnsupportedNetworkError(
            f"{_DRUNET}: the weights do not say which activation it has: give the configuration (--config) "
            '{"act_mode": "R"} if it is ReLU, as in deepinv\'s and DPIR\'s own; others ("E", ELU) are not supported'
        )
    # A single block stands without a number.
    weights = renamed(weights, ((r"^m_(head|tail)\.0\.", r"m_\1."), (r"^m_body\.res\.", "m_body.0.res.")))
    head = weights["m_head.weight"]
    images = head.shape[1] - 1
    if images not in (1, 2) or len(weights["m_tail.weight"]) != 1:
        raise UnsupportedNetworkError(
            f"{_DRUNET}: it takes {images} images and gives {len(weights['m_tail.weight'])} (for colour images 3 "
            "and 3): only in_channels = 1 or 2 and out_channels = 1 are supported"
        )
    levels = 1 + sum(re.fullmatch(r"m_down\d+\.0\.res\.0\.weight", name) is not None for name in weights)
    blocks = sum(re.fullmatch(r"m_body\.\d+\.res\.0\.weight", name) is not None for name in weights)
    channels = [len(head)]
    for level in range(1, levels):
        down = weights.get(f"m_down{level}.{blocks}.weight")
        if down is None or tuple(down.shape[2:]) != (2,) * (head.ndim - 2):
            raise UnsupportedNetworkError(f"{_DRUNET}: sizes must change by strided convolutions (strideconv)")
        channels.append(len(down))
    # Their noise level comes as the last image, ours as the first.
    weights["m_head.weight"] = torch.cat((head[:, -1:], head[:, :-1]), 1)
    names = (
        (r"^m_(head|tail|body)\.", r"\1."),
        (r"^m_down(\d+)\.", lambda match: f"downs.{int(match[1]) - 1}."),
        (r"^m_up(\d+)\.", lambda match: f"ups.{levels - 1 - int(match[1])}."),
        (r"\.res\.0\.", ".first."),
        (r"\.res\.2\.", ".second."),
    )
    architecture = NetworkConfig(
        channels=tuple(channels), attention_levels=(False,) * levels, num_res_blocks=blocks, norm_num_groups=1,
        num_head_channels=1, num_class_embeds=0, in_channels=images, spatial_dims=head.ndim - 2, kind="drunet",
    )  # fmt: skip
    return architecture, renamed(weights, names)
