"""MONAI's ``DiffusionModelUNet``: the same network, also under the names of the former MONAI Generative package."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from ..networks import NetworkConfig
from .reading import UnsupportedNetworkError, require

_WHAT = "MONAI DiffusionModelUNet"
_KNOWN = (
    "spatial_dims", "in_channels", "out_channels", "num_res_blocks", "channels", "num_channels", "attention_levels",
    "norm_num_groups", "norm_eps", "resblock_updown", "num_head_channels", "with_conditioning",
    "transformer_num_layers", "cross_attention_dim", "num_class_embeds", "upcast_attention", "dropout_cattn",
    "include_fc", "use_combined_linear", "use_flash_attention",
)  # fmt: skip
_FITTING: dict[str, tuple[Any, ...]] = {
    "spatial_dims": (2, 3), "out_channels": (1,), "resblock_updown": (False,), "with_conditioning": (False,),
    "cross_attention_dim": (None,), "include_fc": (True,), "use_combined_linear": (False,),
}  # fmt: skip


def convert_monai(weights: dict[str, Tensor], config: dict[str, Any]) -> tuple[NetworkConfig, dict[str, Tensor]]:
    """Configuration and weights of a state dictionary and the arguments that the network was built with.

    Raises UnsupportedNetworkError if an argument is unknown, missing or has no counterpart here.
    """
    config = constructor_arguments(config)
    unknown = sorted(set(config) - set(_KNOWN))
    if unknown:
        raise UnsupportedNetworkError(f"{_WHAT}: unknown arguments {unknown}; known are {sorted(_KNOWN)}")
    require(config, _FITTING, _WHAT)
    channels = config.get("channels", config.get("num_channels"))
    missing = [name for name in ("in_channels", "attention_levels", "num_res_blocks") if name not in config]
    if channels is None or missing:
        raise UnsupportedNetworkError(f"{_WHAT}: the configuration must give channels, {', '.join(missing)}")
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
    return architecture, {_new_name(name): value for name, value in weights.items()}


def constructor_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments out of a bundle's configuration (``{"network_def": {"_target_": ..., ...}}``), or as they are."""
    for value in (config, *config.values()):
        if isinstance(value, dict) and "DiffusionModelUNet" in str(value.get("_target_", "")):
            return plain_arguments(value, config, _WHAT)
    return plain_arguments(config, {}, _WHAT)


def plain_arguments(section: dict[str, Any], config: dict[str, Any], what: str) -> dict[str, Any]:
    """Arguments in a section of a bundle's configuration; references to plain values in it are followed.

    Raises UnsupportedNetworkError if an argument refers to something else, or is an expression: nothing is evaluated.
    """
    arguments = {}
    for key, value in section.items():
        if key.startswith("_"):
            continue
        found = value
        if isinstance(value, str) and value.startswith("@"):
            found = config
            for part in re.split("#|::", value[1:]):
                found = found.get(part, value) if isinstance(found, dict) else value
        if isinstance(found, dict) or (isinstance(found, str) and found[:1] in ("@", "$", "%")):
            raise UnsupportedNetworkError(f"{what}: {key} = {value!r} refers to something else: write its value")
        arguments[key] = found
    return arguments


def _one(name: str, value: Any) -> int:
    """A number that the network has at every level."""
    values = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(values) != 1:
        raise UnsupportedNetworkError(f"{_WHAT}: {name} = {value!r} differs between levels, which is not supported")
    return int(values.pop())


def _new_name(name: str) -> str:
    """MONAI Generative's names to those of MONAI."""
    name = re.sub(r"(attentions\.\d+|attention)\.(to_[qkv])\.", r"\1.attn.\2.", name)
    name = re.sub(r"(attentions\.\d+|attention)\.proj_attn\.", r"\1.attn.out_proj.", name)
    return re.sub(r"upsampler\.conv\.", "upsampler.postconv.", name)
