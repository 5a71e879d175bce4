"""The networks of post-reconstruction enhancement: autoencoder, and diffusion UNet with CT-guided cross-attention.

Jiang et al. 2023, MICCAI (uPETe). With a compression of 1 there is no autoencoder: the UNet sees the image itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..geometry.checks import check_choice, check_count, check_keys
from .networks import NetworkConfig, mend_bfloat16, shuffled, unshuffled

#: How the network is shown the CT image.
CT_INPUTS = ("none", "attention", "channel", "both")
#: The noise that it is trained on.
NOISES = ("binomial", "sinogram", "gaussian")
_CT_CHANNELS = 32
#: Largest distance that the position bias tells apart, and most positions that may attend to each other.
_REACH, _MOST_POSITIONS = 32, 8192


@dataclass(frozen=True)
class EnhancementConfig:
    """What an enhancement network is made of, and what it is told; ValueError for values out of range.

    Parameters
    ----------
    network
        The UNet: dimensions, channels, levels with attention, residual blocks, pixel blocks (``patch_size``).
    ct
        ``"attention"``: CT-guided cross-attention at the UNet's levels with attention and in its middle, see
        `CTGuidedAttention`. ``"channel"``: the CT image as a second input image. ``"both"``, or ``"none"``.
    noise
        ``"binomial"``: images of exactly thinned counts. ``"sinogram"``: Poisson deviates on projections of what is
        diffused, image or latent (the published noise). ``"gaussian"``: white. A latent has no counts to thin.
    compression
        1 (no autoencoder), 2, 4 or 8: factor of each axis between image and latent.
    latent_channels, autoencoder_channels
        Channels of the latent, 1 to 16; of the autoencoder's first level, 8 to 256; they double from level to level.
    patch
        Side of the training patches, and of those that a large image is divided into, in voxels.
    neighbours
        Slices on each side that a network of slices is shown beside the one that it cleans, 0 to 4.
    """

    network: NetworkConfig = field(default_factory=lambda: NetworkConfig(num_class_embeds=0, spatial_dims=3))
    ct: str = "attention"
    noise: str = "sinogram"
    compression: int = 4
    latent_channels: int = 3
    autoencoder_channels: int = 32
    patch: int = 96
    neighbours: int = 0

    def __post_init__(self) -> None:
        check_choice("ct", self.ct, CT_INPUTS)
        check_choice("noise", self.noise, NOISES)
        if self.compression not in (1, 2, 4, 8):
            raise ValueError(f"compression must be 1, 2, 4 or 8, found {self.compression!r}")
        check_count("latent_channels", self.latent_channels, 1, 16)
        if check_count("autoencoder_channels", self.autoencoder_channels, 8, 256) % 8:
            raise ValueError(f"autoencoder_channels must be a multiple of 8, found {self.autoencoder_channels}")
        network = self.network
        if network.kind != "unet" or network.num_networks != 1 or network.num_class_embeds or network.in_channels != 1:
            raise ValueError("the network must be one unet with in_channels = 1, without orientations")
        if network.preconditioning != "none":
            raise ValueError(f"the network has no preconditioning here, found {network.preconditioning!r}")
        if self.compression > 1 and self.noise == "binomial":
            raise ValueError("a latent has no counts to thin: noise = binomial needs compression = 1")
        if check_count("neighbours", self.neighbours, 0, 4) and (self.compression > 1 or self.spatial_dims == 3):
            raise ValueError("neighbours are shown to networks of slices without an autoencoder (compression = 1)")
        if check_count("patch", self.patch, 8, 1024) % self.multiple:
            raise ValueError(f"patch must be a multiple of {self.multiple} for this network, found {self.patch}")
        most = max(self._positions(level) for level, flag in enumerate((*network.attention_levels[:-1], True)) if flag)
        if most > _MOST_POSITIONS:
            raise ValueError(
                f"{most} positions would attend to each other in a patch of {self.patch} voxels, more than "
                f"{_MOST_POSITIONS}: use attention at lower levels only, or smaller patches"
            )

    @property
    def spatial_dims(self) -> int:
        """2 for slices, 3 for volumes."""
        return self.network.spatial_dims

    @property
    def multiple(self) -> int:
        """Sizes of images must be multiples of this."""
        return self.compression * self.network.multiple

    def to_dict(self) -> dict[str, Any]:
        """Values as JSON has them; `from_dict` is the inverse."""
        return {**self.__dict__, "network": self.network.to_dict()}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> EnhancementConfig:
        """Checked configuration of a dictionary with exactly the keys that `to_dict` writes."""
        if isinstance(content, dict):
            content = {"neighbours": 0} | content  # of files that are older than it
        check_keys("architecture", content, cls.__dataclass_fields__)
        return cls(**content | {"network": NetworkConfig.from_dict(content["network"])})

    def _positions(self, level: int) -> int:
        side = self.patch // (self.compression * self.network.patch_size * 2**level)
        return side**self.spatial_dims


class CTGuidedAttention(nn.Module):
    r"""Where to look is decided by the CT image, what is seen there is PET.

    .. math:: \mathrm{softmax}(Q_{CT} K_{CT}^T / \sqrt d + B)\, V_{PET}

    with queries and keys of the CT latent and values of the features ``[n, channels, (z,) y, x]``, each by a
    convolution of one voxel, and a position bias ``B`` that is the sum of one learned value for the distance along each
    axis. A last such convolution, zero at first, adds the result to the features. The CT latent is averaged to the
    features' size; without one the bias alone decides.
    """

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        conv = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        self.norm = nn.GroupNorm(8 if channels % 8 == 0 else 1, channels)
        self.query, self.key = conv(_CT_CHANNELS, channels, 1), conv(_CT_CHANNELS, channels, 1)
        self.value, self.out = conv(channels, channels, 1), conv(channels, channels, 1)
        self.bias = nn.Parameter(torch.zeros(spatial_dims, 2 * _REACH + 1))
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor, context: Tensor | None = None) -> Tensor:
        size = features.shape[2:]
        if context is None:
            context = features.new_zeros((len(features), _CT_CHANNELS, *size))
        pool = functional.adaptive_avg_pool3d if len(size) == 3 else functional.adaptive_avg_pool2d
        context = pool(context, size)
        tokens = [self.query(context), self.key(context), self.value(self.norm(features))]
        q, k, v = (t.flatten(2).transpose(1, 2) for t in tokens)
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=self._position_bias(size).to(q.dtype))
        return features + self.out(seen.transpose(1, 2).reshape(features.shape))

    def _position_bias(self, size: torch.Size) -> Tensor:
        """``[positions, positions]``."""
        axes = torch.meshgrid(*(torch.arange(n, device=self.bias.device) for n in size), indexing="ij")
        total = 0
        for places, values in zip((axis.flatten() for axis in axes), self.bias, strict=True):
            total = total + values[(places[:, None] - places).clamp(-_REACH, _REACH) + _REACH]
        return total  # type: ignore[return-value]


class EnhancementNetwork(nn.Module):
    """``f(noisy [n, c, (z,) y, x], time [n], ct [n, 1, (z,) y, x]) -> clean``; untrained: what it gets.

    ``noisy`` is an image, or the latent of one where there is an autoencoder; the CT image is of the image's size. With
    ``neighbours``, ``c`` are slices, of which the middle one is cleaned: ``clean`` and the CT image have it alone.
    ``time`` is ``250 ln(1 / dose)``.
    """

    def __init__(self, config: EnhancementConfig) -> None:
        super().__init__()
        from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet, SpatialTransformer

        self.config = config
        network, dims = config.network, config.spatial_dims
        images = 1 if config.compression == 1 else config.latent_channels
        slices = 1 + 2 * config.neighbours
        block, shown = network.patch_size**dims, config.ct in ("channel", "both")
        guided = config.ct in ("attention", "both")
        self.unet = DiffusionModelUNet(
            dims, (slices * images + shown) * block, images * block, network.num_res_blocks, network.channels,
            network.attention_levels, network.norm_num_groups, network.norm_eps, use_flash_attention=not guided,
            num_head_channels=network.num_head_channels, with_conditioning=guided,
            cross_attention_dim=1 if guided else None,
        )  # fmt: skip
        # MONAI's own cross-attention asks the context for keys and values; here the context has queries and keys.
        for owner in list(self.unet.modules()):
            for name, child in list(owner.named_children()):
                if isinstance(child, SpatialTransformer):
                    channels = child.proj_in.conv.in_channels
                    owner.register_module(name, CTGuidedAttention(dims, int(channels)))
        self.ct_encoder = _ct_encoder(dims, config.compression * network.patch_size) if guided else None
        mend_bfloat16(self)

    def forward(self, noisy: Tensor, time: Tensor, ct: Tensor | None = None) -> Tensor:
        config, size = self.config, self.config.network.patch_size
        shown = [unshuffled(noisy, size)]
        if config.ct in ("channel", "both"):
            pool = functional.avg_pool3d if config.spatial_dims == 3 else functional.avg_pool2d
            image = noisy.new_zeros((len(noisy), 1, *noisy.shape[2:])) if ct is None else pool(ct, config.compression)
            shown.append(unshuffled(image, size))
        context = None if self.ct_encoder is None or ct is None else self.ct_encoder(ct)
        if k := config.neighbours:
            noisy = noisy[:, k : k + 1]
        return noisy + shuffled(self.unet(torch.cat(shown, 1), time, context=context), size)


def build_autoencoder(config: EnhancementConfig) -> nn.Module | None:
    """MONAI's ``AutoencoderKL`` without attention; None for a compression of 1."""
    if config.compression == 1:
        return None
    from monai.networks.nets.autoencoderkl import AutoencoderKL

    channels = tuple(config.autoencoder_channels * 2**k for k in range(int(math.log2(config.compression)) + 1))
    return AutoencoderKL(
        config.spatial_dims, num_res_blocks=1, channels=channels, attention_levels=(False,) * len(channels),
        latent_channels=config.latent_channels, norm_num_groups=8, with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )  # fmt: skip


def told_time(dose: Tensor) -> Tensor:
    """What the network is told of the dose."""
    return -250.0 * dose.log()


def _ct_encoder(dims: int, factor: int) -> nn.Module:
    """Convolutions that halve the CT image down to the UNet's grid; made with the UNet, for it."""
    conv = nn.Conv3d if dims == 3 else nn.Conv2d
    layers: list[nn.Module] = [conv(1, _CT_CHANNELS, 3, padding=1), nn.SiLU()]
    while factor > 1:
        step = 2 if factor % 2 == 0 else factor
        layers += [conv(_CT_CHANNELS, _CT_CHANNELS, 2 * step - 1, step, padding=step - 1), nn.SiLU()]
        factor //= step
    return nn.Sequential(*layers, conv(_CT_CHANNELS, _CT_CHANNELS, 3, padding=1))
