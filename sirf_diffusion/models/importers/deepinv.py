"""deepinv's DRUNet, which has the layers of its authors' (DPIR): the same network under other names."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from ..networks import NetworkConfig
from .reading import UnsupportedNetworkError, require

_WHAT = "deepinv DRUNet"
_FITTING: dict[str, tuple[Any, ...]] = {
    "act_mode": ("R",), "downsample_mode": ("strideconv",), "upsample_mode": ("convtranspose",), "out_channels": (1,),
}  # fmt: skip


def convert_drunet(weights: dict[str, Tensor], config: dict[str, Any]) -> tuple[NetworkConfig, dict[str, Tensor]]:
    """Configuration, which the shapes tell, and weights.

    Raises UnsupportedNetworkError if ``act_mode`` is missing, or the network has other layers: biases, other ways of
    resampling, colour images.

    Parameters
    ----------
    weights
        The state dictionary.
    config
        Arguments that the network was built with; ``act_mode``, which does not show in the weights, is needed.
    """
    require(config, _FITTING, _WHAT)
    if "act_mode" not in config:
        raise UnsupportedNetworkError(
            f"{_WHAT}: the weights do not say which activation it has: give the configuration (--config) "
            '{"act_mode": "R"} if it is ReLU, as in deepinv\'s and DPIR\'s own; others ("E", ELU) are not supported'
        )
    weights = {re.sub(r"^m_(head|tail)\.0\.", r"m_\1.", name): value for name, value in weights.items()}
    # A single block stands without a number.
    weights = {re.sub(r"^m_body\.res\.", "m_body.0.res.", name): value for name, value in weights.items()}
    head = weights["m_head.weight"]
    images = head.shape[1] - 1
    if images not in (1, 2) or len(weights["m_tail.weight"]) != 1:
        raise UnsupportedNetworkError(
            f"{_WHAT}: it takes {images} images and gives {len(weights['m_tail.weight'])} (a network for colour images "
            "has 3): only in_channels = 1 or 2 and out_channels = 1 are supported"
        )
    levels = 1 + sum(re.fullmatch(r"m_down\d+\.0\.res\.0\.weight", name) is not None for name in weights)
    blocks = sum(re.fullmatch(r"m_body\.\d+\.res\.0\.weight", name) is not None for name in weights)
    channels = [len(head)]
    for level in range(1, levels):
        down = weights.get(f"m_down{level}.{blocks}.weight")
        if down is None or tuple(down.shape[2:]) != (2,) * (head.ndim - 2):
            raise UnsupportedNetworkError(f"{_WHAT}: sizes must change by strided convolutions (strideconv)")
        channels.append(len(down))
    # Their noise level comes as the last image, ours as the first.
    converted = {"head.weight": torch.cat((head[:, -1:], head[:, :-1]), 1)}
    for name, value in weights.items():
        if name != "m_head.weight":
            converted[_new_name(name, levels)] = value
    architecture = NetworkConfig(
        channels=tuple(channels), attention_levels=(False,) * levels, num_res_blocks=blocks, norm_num_groups=1,
        num_head_channels=1, num_class_embeds=0, in_channels=images, spatial_dims=head.ndim - 2, kind="drunet",
    )  # fmt: skip
    return architecture, converted


def _new_name(name: str, levels: int) -> str:
    name = re.sub(r"^m_(tail|body)\.", r"\1.", name)
    name = re.sub(r"^m_down(\d+)\.", lambda match: f"downs.{int(match[1]) - 1}.", name)
    name = re.sub(r"^m_up(\d+)\.", lambda match: f"ups.{levels - 1 - int(match[1])}.", name)
    return re.sub(r"\.res\.(0|2)\.", lambda match: ".first." if match[1] == "0" else ".second.", name)
