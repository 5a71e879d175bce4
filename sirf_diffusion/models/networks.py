"""Networks: MONAI's diffusion UNet in two dimensions, built from a configuration that may come from a hostile file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from .schedules import NoiseSchedule

TIME_INPUTS = ("log_sigma", "t")
_MAX_LEVELS = 6


@dataclass(frozen=True)
class NetworkConfig:
    """Architecture of a 2D ``monai.networks.nets.DiffusionModelUNet``.

    Parameters
    ----------
    channels
        Channels at each resolution level, 1 to 6 levels, multiples of ``norm_num_groups``, at most 1024.
    attention_levels
        Whether each level has self-attention, as many as ``channels``.
    num_res_blocks
        Residual blocks at each level, 1 to 8.
    norm_num_groups
        Groups of the group normalisation, 1 to 64.
    num_head_channels
        Channels of an attention head, 1 to 1024; divides the channels of the levels with attention, and of the last.
    num_class_embeds
        Number of slice orientations that the network tells apart (transverse 0, coronal 1, sagittal 2), 0 for none.
    in_channels, out_channels
        1 to 16 images in (the noisy slice first) and 1 out.
    patch_size
        1 to 4: the network works on blocks of ``patch_size x patch_size`` pixels as channels (pixel unshuffling as in
        Zhang et al. 2018, arXiv:1710.04026), which costs little accuracy and saves most of the time.

    Raises
    ------
    ValueError
        If a value has the wrong type or is out of range.
    """

    channels: tuple[int, ...] = (16, 32, 64, 96)
    attention_levels: tuple[bool, ...] = (False, False, False, True)
    num_res_blocks: int = 1
    norm_num_groups: int = 8
    num_head_channels: int = 32
    num_class_embeds: int = 3
    in_channels: int = 1
    out_channels: int = 1
    patch_size: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", _whole_numbers("channels", self.channels))
        levels = len(self.channels)
        if not 1 <= levels <= _MAX_LEVELS:
            raise ValueError(f"channels must name 1 to {_MAX_LEVELS} levels, found {levels}")
        attention = self.attention_levels
        if not isinstance(attention, (list, tuple)) or not all(isinstance(flag, bool) for flag in attention):
            raise ValueError(f"attention_levels must be a list of true or false, found {attention!r}")
        object.__setattr__(self, "attention_levels", tuple(attention))
        if len(attention) != levels:
            raise ValueError(f"attention_levels must have one entry per level ({levels}), found {len(attention)}")
        for name, low, high in (
            ("num_res_blocks", 1, 8),
            ("norm_num_groups", 1, 64),
            ("num_head_channels", 1, 1024),
            ("num_class_embeds", 0, 64),
            ("in_channels", 1, 16),
            ("out_channels", 1, 1),
            ("patch_size", 1, 4),
        ):
            value = getattr(self, name)
            if not _is_whole(value) or not low <= value <= high:
                raise ValueError(f"{name} must be a whole number from {low} to {high}, found {value!r}")
        for value in self.channels:
            if not 1 <= value <= 1024 or value % self.norm_num_groups:
                raise ValueError(
                    f"channels must be multiples of norm_num_groups = {self.norm_num_groups} up to 1024, found {value}"
                )
        # MONAI's middle block, at the last level, always has attention.
        for value, has_attention in zip(self.channels, (*self.attention_levels[:-1], True), strict=True):
            if has_attention and value % self.num_head_channels:
                raise ValueError(
                    f"num_head_channels = {self.num_head_channels} must divide the {value} channels that have attention"
                )

    @property
    def multiple(self) -> int:
        """In-plane image sizes must be multiples of this: each level below the first halves them."""
        return self.patch_size * 2 ** (len(self.channels) - 1)

    def to_dict(self) -> dict[str, Any]:
        """Values as a dictionary that JSON can hold; `from_dict` is its inverse."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> NetworkConfig:
        """Checked configuration of a dictionary; an unknown key is a ValueError, a missing one takes its default."""
        if not isinstance(config, dict):
            raise ValueError(f"architecture must be a dictionary, found {type(config).__name__}")
        known = {field.name for field in fields(cls)}
        unknown = sorted(str(key) for key in set(config) - known)
        if unknown:
            raise ValueError(f"architecture has unknown keys {unknown}; known are {sorted(known)}")
        return cls(**config)


def build_network(
    config: NetworkConfig | dict[str, Any], *, seed: int = 0, device: torch.device | str = "cpu"
) -> nn.Module:
    """An untrained network ``f(images [B, in, H, W], time [B], class_labels=plane [B]) -> [B, 1, H, W]``.

    Initial weights come from ``seed`` and leave PyTorch's global generator as it was. MONAI sets the last convolution
    to zero, so that an untrained network predicts zero. Building on ``device="meta"`` allocates nothing.

    Raises
    ------
    ValueError
        If the configuration is not valid.
    ImportError
        If MONAI is not installed.
    """
    config = NetworkConfig.from_dict(config) if isinstance(config, dict) else config
    try:
        from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
    except ImportError as error:
        raise ImportError("the networks need MONAI, which is not installed: run `pip install monai`") from error
    # Weights are drawn on the CPU, whatever the device, so that a seed means the same network everywhere.
    where = torch.device(device)
    with torch.random.fork_rng(devices=[]), torch.device("meta" if where.type == "meta" else "cpu"):
        torch.default_generator.manual_seed(seed)
        network: nn.Module = DiffusionModelUNet(
            spatial_dims=2,
            in_channels=config.in_channels * config.patch_size**2,
            out_channels=config.out_channels * config.patch_size**2,
            num_res_blocks=config.num_res_blocks,
            channels=config.channels,
            attention_levels=config.attention_levels,
            norm_num_groups=config.norm_num_groups,
            num_head_channels=config.num_head_channels,
            num_class_embeds=config.num_class_embeds or None,
        )
        if config.patch_size > 1:
            network = PatchedNetwork(network, config.patch_size)
    return network.to(where)


class PatchedNetwork(nn.Module):
    """A network seen through pixel unshuffling: blocks of pixels go in and come out as channels."""

    def __init__(self, network: nn.Module, patch_size: int) -> None:
        super().__init__()
        self.network = network
        self.patch_size = patch_size

    def forward(self, images: Tensor, time: Tensor, class_labels: Tensor | None = None) -> Tensor:
        patches = nn.functional.pixel_unshuffle(images, self.patch_size)
        return nn.functional.pixel_shuffle(self.network(patches, time, class_labels=class_labels), self.patch_size)


def network_time(time_input: str, schedule: NoiseSchedule, t: float | Tensor) -> float | Tensor:
    """What the network is told of the time ``t``.

    ``"log_sigma"``: ``250 ln sigma(t)``, comparable between schedules. ``"t"``: the schedule's own time, scaled to
    about 1000 (``1000 t``, or the index of a discrete schedule). Both suit MONAI's sinusoidal embedding, which takes
    any real number.
    """
    if time_input == "log_sigma":
        return 250.0 * torch.log(torch.as_tensor(schedule.sigma(t)))  # type: ignore[type-var]
    if time_input == "t":
        return t if schedule.t_max > 1 else 1000.0 * t
    raise ValueError(f"time_input must be one of {', '.join(TIME_INPUTS)}, found {time_input!r}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole_numbers(name: str, values: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(values, (list, tuple)) or not all(_is_whole(value) for value in values):
        raise ValueError(f"{name} must be a list of whole numbers, found {values!r}")
    return tuple(values)
