"""Networks: MONAI's diffusion UNet for slices or volumes, from a configuration that may come from a hostile file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..geometry.checks import check_choice, check_keys, check_real
from .preconditioning import PRECONDITIONINGS, PreconditionedNetwork
from .schedules import NoiseSchedule

TIME_INPUTS = ("log_sigma", "t")
KINDS = ("unet", "drunet")
_MAX_LEVELS = 6
# PyTorch's group normalisation in bfloat16 on a CPU takes eight times as long as in float32 where the channels of a
# group do not fill vector registers.
_VECTOR = 16


@dataclass(frozen=True)
class NetworkConfig:
    """Architecture of a ``monai.networks.nets.DiffusionModelUNet``, or of a `DRUNet`; ValueError if out of range.

    Parameters
    ----------
    channels, attention_levels
        Channels at each of 1 to 6 resolution levels, multiples of ``norm_num_groups`` up to 1024, and whether each
        level has self-attention.
    num_class_embeds
        Number of slice orientations that the network tells apart (transverse 0, coronal 1, sagittal 2), 0 for none, as
        for a network of volumes and for one network per orientation.
    in_channels, out_channels
        1 to 16 images in (the noisy slice first) and 1 out.
    patch_size
        1 to 4: the network works on blocks of this many pixels along each axis as channels (pixel unshuffling as in
        Zhang et al. 2018, arXiv:1710.04026), which costs little accuracy and saves most of the time.
    spatial_dims, num_networks
        2 for slices, 3 for volumes; 1, or 3 for a network of its own for each of the three slice orientations.
    norm_eps
        What is added to the variance in group normalisation, 1e-8 to 1e-3; networks of others have 1e-5.
    kind
        ``"unet"``, or ``"drunet"`` for the denoiser `DRUNet`, to which ``channels``, ``num_res_blocks`` and
        ``in_channels`` apply, and which has no attention, orientations or pixel blocks.
    preconditioning, data_sd, num_train_steps
        Fixed factors around the network, which make it a denoiser (`sirf_diffusion.models.preconditioning`): their
        kind, and the constants that some kinds have, at most 1e6.
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
    # Fields from here on came later: `to_dict` leaves them out where they have their defaults, so that older releases
    # read the files that they can use, and the provenance in older files stays comparable.
    spatial_dims: int = 2
    num_networks: int = 1
    norm_eps: float = 1e-6
    kind: str = "unet"
    preconditioning: str = "none"
    data_sd: float = 1.0
    num_train_steps: int = 1000

    def __post_init__(self) -> None:
        channels = self.channels
        if not isinstance(channels, (list, tuple)) or not all(type(value) is int for value in channels):
            raise ValueError(f"channels must be a list of whole numbers, found {channels!r}")
        object.__setattr__(self, "channels", tuple(channels))
        levels = len(channels)
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
            ("in_channels", 1, 32),
            ("out_channels", 1, 1),
            ("patch_size", 1, 4),
            ("spatial_dims", 2, 3),
            ("num_networks", 1, 3),
            ("num_train_steps", 2, 1_000_000),
        ):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
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
                    f"num_head_channels = {self.num_head_channels} must divide the {value} channels that have "
                    "attention, as those of the last level always do"
                )
        self._check_form()

    def _check_form(self) -> None:
        check_choice("kind", self.kind, KINDS)
        check_choice("preconditioning", self.preconditioning, PRECONDITIONINGS)
        check_real("norm_eps", self.norm_eps, 1e-8, 1e-3)
        check_real("data_sd", self.data_sd, 1e-6, 1e6)
        if self.num_networks == 2:
            raise ValueError("num_networks must be 1, or 3 for one network per slice orientation; found 2")
        if self.spatial_dims == 3 and (self.num_networks != 1 or self.num_class_embeds):
            raise ValueError(
                "a network of volumes (spatial_dims = 3) has no slice orientations: num_networks must be 1 and "
                f"num_class_embeds 0, found {self.num_networks} and {self.num_class_embeds}"
            )
        if self.num_class_embeds and self.num_networks != 1:
            raise ValueError(f"num_class_embeds must be 0 for num_networks = 3, found {self.num_class_embeds}")
        if self.preconditioning != "none" and (self.kind == "drunet" or self.num_networks != 1):
            raise ValueError("a drunet, and one network per orientation, have no preconditioning")
        if self.kind == "drunet" and (any(self.attention_levels) or self.num_class_embeds or self.patch_size > 1):
            raise ValueError("a drunet has no attention_levels, num_class_embeds or patch_size")

    @property
    def multiple(self) -> int:
        """Sizes of slices, or volumes, must be multiples of this: each level below the first halves them."""
        return self.patch_size * 2 ** (len(self.channels) - 1)

    def to_dict(self) -> dict[str, Any]:
        """Values as a dictionary that JSON can hold; `from_dict` is its inverse."""
        items = fields(self)
        first_later = [item.name for item in items].index("spatial_dims")
        stored = [item for k, item in enumerate(items) if k < first_later or getattr(self, item.name) != item.default]
        values = {item.name: getattr(self, item.name) for item in stored}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> NetworkConfig:
        """Checked configuration of a dictionary; an unknown key is a ValueError, a missing one takes its default."""
        check_keys("architecture", config, cls.__dataclass_fields__, all_needed=False)
        return cls(**config)


def build_network(
    config: NetworkConfig | dict[str, Any], *, seed: int = 0, device: torch.device | str = "cpu"
) -> nn.Module:
    """An untrained network ``f(images [B, in, H, W], time [B], class_labels=plane [B]) -> [B, 1, H, W]``.

    With three spatial dimensions images are ``[B, in, D, H, W]``. Initial weights come from ``seed`` and leave
    PyTorch's global generator as it was. MONAI sets the last convolution to zero, so that an untrained network predicts
    zero. Building on ``device="meta"`` allocates nothing. Raises ValueError for a configuration that is not valid.
    """
    config = NetworkConfig.from_dict(config) if isinstance(config, dict) else config
    # Weights are drawn on the CPU, whatever the device, so that a seed means the same network everywhere.
    where = torch.device(device)
    with torch.random.fork_rng(devices=[]), torch.device("meta" if where.type == "meta" else "cpu"), _Undrawn():
        torch.default_generator.manual_seed(seed)
        networks = [_single_network(config) for _ in range(config.num_networks)]
        network = networks[0] if len(networks) == 1 else PlaneNetworks(networks)
        mend_bfloat16(network)
    return network.to(where)


class _Undrawn(TorchFunctionMode):
    """Draws no normal numbers on the meta device: PyTorch would load its compiler for them, which takes seconds."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensor = kwargs.get("tensor", args[0] if args else None)
        if function is nn.init.normal_ and tensor.is_meta:
            return tensor
        return function(*args, **kwargs)


def _single_network(config: NetworkConfig) -> nn.Module:
    if config.kind == "drunet":
        from .drunet import DRUNet

        return DRUNet(config.channels, config.num_res_blocks, config.in_channels, config.spatial_dims)
    from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

    block = config.patch_size**config.spatial_dims
    network: nn.Module = DiffusionModelUNet(
        spatial_dims=config.spatial_dims,
        in_channels=config.in_channels * block,
        out_channels=config.out_channels * block,
        num_res_blocks=config.num_res_blocks,
        channels=config.channels,
        attention_levels=config.attention_levels,
        norm_num_groups=config.norm_num_groups,
        norm_eps=config.norm_eps,
        num_head_channels=config.num_head_channels,
        num_class_embeds=config.num_class_embeds or None,
        use_flash_attention=True,  # the same function, without its matrix of all pairs of pixels in memory
    )
    if config.patch_size > 1:
        network = PatchedNetwork(network, config.patch_size)
    if config.preconditioning == "none":
        return network
    return PreconditionedNetwork(network, config.preconditioning, config.data_sd, config.num_train_steps)


def mend_bfloat16(network: nn.Module) -> None:
    """Let a network do in float32 what PyTorch does slowly or wrongly in bfloat16 on a CPU.

    Slowly: group normalisation with few channels in a group. Wrongly: the gradient of the weights of a convolution of
    three planes where there are two; it contains memory that nobody wrote to (measured with PyTorch 2.13, oneDNN 3.12).
    """
    for module in network.modules():
        slow = isinstance(module, nn.GroupNorm) and module.num_channels // module.num_groups % _VECTOR
        if slow or isinstance(module, nn.Conv3d):
            module.register_forward_pre_hook(_in_float32)
            module.register_forward_hook(_as_autocast)


def _in_float32(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    if inputs[0].device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return inputs
    if isinstance(module, nn.Conv3d):
        if inputs[0].shape[-3] != 2 or not torch.is_grad_enabled():
            return inputs
        torch.set_autocast_enabled("cpu", False)
        module.autocast_waits = True
    return (inputs[0].float(),)


def _as_autocast(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    if vars(module).pop("autocast_waits", False):
        torch.set_autocast_enabled("cpu", True)
    if output.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        return output.to(torch.get_autocast_dtype("cpu"))
    return output


def memory_format(config: NetworkConfig | None) -> torch.memory_format:
    """The memory layout in which convolutions of such a network are fast: channels last."""
    return torch.channels_last_3d if config is not None and config.spatial_dims == 3 else torch.channels_last


class PlaneNetworks(nn.Module):
    """One network for each slice orientation behind the call of a single one: the class label chooses."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor, time: Tensor, class_labels: Tensor) -> Tensor:
        parts, places = [], []
        for plane, network in enumerate(self.networks):
            chosen = torch.nonzero(class_labels == plane)[:, 0]
            if len(chosen) == len(images):
                return network(images, time)
            if len(chosen):
                parts.append(network(images[chosen], time[chosen]))
                places.append(chosen)
        return torch.cat(parts)[torch.argsort(torch.cat(places))]


class PatchedNetwork(nn.Module):
    """A network seen through pixel unshuffling: blocks of pixels, or voxels, go in and come out as channels."""

    def __init__(self, network: nn.Module, patch_size: int) -> None:
        super().__init__()
        self.network = network
        self.patch_size = patch_size

    def forward(self, images: Tensor, time: Tensor, class_labels: Tensor | None = None) -> Tensor:
        patches = unshuffled(images, self.patch_size)
        return shuffled(self.network(patches, time, class_labels=class_labels), self.patch_size)


def unshuffled(images: Tensor, size: int) -> Tensor:
    """Blocks of ``size`` pixels along each axis as channels; those of one image stay together."""
    if images.ndim == 4:
        return nn.functional.pixel_unshuffle(images, size)
    return rearrange(images, "b c (z i) (y j) (x k) -> b (c i j k) z y x", i=size, j=size, k=size)


def shuffled(images: Tensor, size: int) -> Tensor:
    """The inverse of `unshuffled`."""
    if images.ndim == 4:
        return nn.functional.pixel_shuffle(images, size)
    return rearrange(images, "b (c i j k) z y x -> b c (z i) (y j) (x k)", i=size, j=size, k=size)


def network_time(time_input: str, schedule: NoiseSchedule, t: float | Tensor) -> float | Tensor:
    """What the network is told of the time ``t``.

    ``"log_sigma"``: ``250 ln sigma(t)``, comparable between schedules. ``"t"``: the schedule's own time, scaled to
    about 1000 (``1000 t``, or the index of a discrete schedule). Both suit MONAI's sinusoidal embedding, which takes
    any real number.
    """
    if time_input == "log_sigma":
        return 250.0 * torch.log(torch.as_tensor(schedule.sigma(t)))  # type: ignore[type-var]
    check_choice("time_input", time_input, TIME_INPUTS)
    return t if schedule.t_max > 1 else 1000.0 * t


def check_time_input(config: NetworkConfig, time_input: str) -> None:
    """A ValueError if the network cannot be told the time so."""
    if (config.kind == "drunet" or config.preconditioning != "none") and time_input != "log_sigma":
        raise ValueError(f"this network is told the noise level: time_input must be log_sigma, found {time_input!r}")
