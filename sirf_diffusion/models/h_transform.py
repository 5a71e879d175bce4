"""The h-transform: a small network that steers a frozen score model by the gradient of the data's log-likelihood."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files.weights import WeightsFileError, WeightsFormat, filled, in_dtype
from ..geometry.checks import check_count, check_keys, check_real
from .networks import NetworkConfig, build_network, memory_format, network_time
from .schedules import NoiseSchedule
from .score_model import ScoreModel
from .storage import BUNDLED, ModelFileError, bundled_names, bundled_or_file, check_words, checked_voxel_size

logger = logging.getLogger(__name__)

#: What the network is shown: the noisy image, the base model's clean image, the EM increment, that increment sharpened,
#: and the logarithm of the counts.
NUM_INPUTS = 5
#: Increments of ordered subsets that a network for volumes is shown, the first in place of the sharpened one, the other
#: after all; and of so many planes above and below clean image and these increments.
INCREMENTS, NEIGHBOURS = 2, 2
FOLDER = BUNDLED / "h_transforms"
#: Width in voxels of the Gaussian that ends the ramp of `sharpened`.
_FWHM_VOXELS = 2.0
_LOWEST_SENSITIVITY = 1e-3
_LEAST_CORRECTION = 0.05


class HTransformFileError(WeightsFileError):
    """A file of an h-transform cannot be used; the message names the file and what is wrong with it."""


_FORMAT = WeightsFormat("an h-transform", "sirf_diffusion_h_transform", "train it again", HTransformFileError)


@dataclass(frozen=True)
class HTransformConfig:
    """What a file says of an h-transform besides the weights.

    Parameters
    ----------
    architecture
        Its network, of `NUM_INPUTS` input images.
    base, base_sha256
        Name, in words, and hash of the score model that it was trained with, and works with alone.
    counts
        Range of `counts_per_voxel` in training.
    num_planes, voxel_size, scanner
        Planes of the images, their voxel size ``(z, y, x)`` in mm and the scanner's name in training.
    tracer, licence, training
        As in `sirf_diffusion.models.ModelConfig`.
    num_updates
        0, for slices: the network sees the EM increment, and the same sharpened. Else what so many updates of as many
        ordered subsets add, and twice as many, besides, and neighbouring planes: in 3D no filter of slices undoes the
        backprojection's blur.
    """

    architecture: NetworkConfig
    base: str
    base_sha256: str
    counts: tuple[float, float]
    num_planes: int = 1
    voxel_size: tuple[float, float, float] = (2.0, 2.0, 2.0)
    scanner: str = ""
    tracer: str = ""
    licence: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    num_updates: int = 0

    def __post_init__(self) -> None:
        check_count("num_updates", self.num_updates, 0, 10**4)
        if (found := self.architecture.in_channels) != (needs := num_inputs(self.num_updates > 0)):
            raise ValueError(f"this h-transform takes {needs} images, found in_channels = {found}")
        check_words(self, "base", "base_sha256", "scanner")
        if not isinstance(self.counts, (list, tuple)) or len(self.counts) != 2:
            raise ValueError(f"counts must be two numbers, found {self.counts!r}")
        counts = tuple(check_real("counts", value, 0, 1e12, open_below=True) for value in self.counts)
        object.__setattr__(self, "counts", counts)
        object.__setattr__(self, "voxel_size", checked_voxel_size(self.voxel_size))
        if self.counts[0] > self.counts[1]:
            raise ValueError(f"counts must be a range, the lower first, found {self.counts}")
        check_count("num_planes", self.num_planes, 1, 10**5)
        if self.num_planes > 1 and not self.num_updates:
            raise ValueError("it sees volumes in three orientations, and without ordered subsets: no longer supported")

    def to_dict(self) -> dict[str, Any]:
        """Contents as a dictionary that JSON can hold; `from_dict` is its inverse."""
        return {**vars(self), "architecture": self.architecture.to_dict()}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> HTransformConfig:
        """Checked contents of a dictionary written by `to_dict`; raises ValueError for anything else."""
        content = {"num_updates": 0} | content  # older files
        check_keys("the configuration", content, cls.__dataclass_fields__)
        return cls(**content | {"architecture": NetworkConfig.from_dict(content["architecture"])})


class HTransform:
    r"""A network ``h`` beside a frozen score model, which it makes a model of images that the data agree with.

    .. math::
        v = D(u_t, t), \qquad e = \bigl(x_{EM}(c\,[v]_+) - c\,[v]_+\bigr) / c, \qquad
        \hat u_0 = v - \sqrt{\frac{\sigma^2 + 0.05^2}{1 + \sigma^2}}\; h(u_t, v, e, R e, \log c\,s;\ t)

    ``e`` is what one EM update would add to the score model's clean image: :math:`v \nabla L / s`, the gradient of the
    log-likelihood in network units, whatever the counts and the image's unit. ``R`` is `sharpened`; in volumes two
    increments of ordered subsets take its place (``num_updates`` of `HTransformConfig`). :math:`c\,s` are the counts
    that a voxel of mean activity gives, which tell how far the increment is noise. The output corrects what the score
    model predicts; of an untrained network it is zero, and :math:`\hat u_0 = v` to the bit.

    Webber et al. 2025, arXiv:2506.24034; the h-transform of Denker et al. 2024, arXiv:2406.01781.

    Parameters
    ----------
    network
        ``f(images [B, N, H, W], time [B], class_labels=None) -> [B, 1, H, W]`` of transverse slices, N of
        `num_inputs`.
    base
        The score model; ValueError unless its hash is ``config.base_sha256`` and its slices suit the network.
    config
        What the file says of it.
    """

    def __init__(self, network: nn.Module, base: ScoreModel, config: HTransformConfig) -> None:
        if base.hash != config.base_sha256:
            raise ValueError(
                f"this h-transform belongs to the score model {config.base!r} ({config.base_sha256[:12]}...) and works "
                f"with no other, found {base.hash[:12]}...: give --model {config.base}, or train one for this model"
            )
        needs = config.architecture.multiple
        if base.multiple % needs or base.spatial_dims != config.architecture.spatial_dims:
            raise ValueError(
                f"the score model's slices are multiples of {base.multiple} pixels, the h-transform needs {needs}"
            )
        layout = memory_format(config.architecture)
        self.network = network.to(memory_format=layout).to(base.device)  # type: ignore[call-overload]
        self.config, self.schedule, self.time_input = config, base.schedule, base.time_input
        #: SHA-256 of its file, empty for one that has none.
        self.sha256 = ""

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str], base: ScoreModel) -> HTransform:
        """Of a bundled name or of a file, for the score model that it was trained with.

        Raises HTransformFileError if there is no such file, it cannot be used, or belongs to another score model.
        """
        path = find_h_transform(name_or_path)
        document, tensors, digest = _FORMAT.read(path)
        with _FORMAT.guarded(path):
            config = HTransformConfig.from_dict(document)
            network = filled(build_network(config.architecture, device="meta"), tensors)
        try:
            loaded = cls(network, base, config)
        except ValueError as error:
            raise HTransformFileError(f"{path}: {error}") from error
        loaded.sha256 = digest
        return loaded

    def save(self, path: str | os.PathLike[str], weights_dtype: str = "float16") -> str:
        """Write the file, whole or not at all; returns its SHA-256."""
        self.sha256 = save_h_transform(path, self.network.state_dict(), self.config, weights_dtype)
        return self.sha256

    def estimate(
        self,
        base: ScoreModel,
        u: Tensor,
        v: Tensor,
        t: float,
        increments: Sequence[Tensor],
        counts: Tensor,
    ) -> Tensor:
        """The clean latent image that data and score model agree on, before anything is clipped.

        Parameters
        ----------
        base
            The score model, bound to the image grid.
        u, v, t
            Noisy latent images ``[..., Z', Y', X']``, the model's clean ones and the time, as of `ScoreModel.predict`.
        increments
            ``e``, network units, on the same grid; and those of ordered subsets.
        counts
            ``c s`` ``[Z', Y', X']``.
        """
        shown = inputs(u / math.hypot(self.schedule.gamma(t), self.schedule.nu(t)), v, increments, counts)
        told = float(network_time(self.time_input, self.schedule, t))
        correction = base.seen_by(self.network, self.config.architecture, shown, told, 0)
        return v - correction_size(self.schedule.sigma(t)) * correction

    @staticmethod
    def counts(base: ScoreModel, sensitivity: Tensor) -> Tensor:
        """``c s`` on the grid of the score model, which is bound to that of the sensitivity ``[z, y, x]``."""
        volumes = base.latent_geometry.voxel_volume / base.geometry.voxel_volume  # type: ignore[union-attr]
        return base.to_latent(sensitivity) * base.intensity_scale**2 * volumes

    def outside(self, counts: Tensor, v: Tensor, num_planes: int, scanner: str | None) -> list[str]:
        """In what ways data are unlike those of the training, in words, which are logged; none is what one wants.

        ``counts`` are those of `counts`, ``v`` an early latent image.
        """
        (low, high), number = self.config.counts, counts_per_voxel(counts, v)
        found = []
        if not low <= number <= high:
            found.append(f"{number:.3g} counts a voxel of mean activity, trained: {low:.3g} to {high:.3g}")
        if num_planes != self.config.num_planes:
            found.append(f"images of {num_planes} planes, trained with {self.config.num_planes}")
        if scanner is not None and self.config.scanner and scanner != self.config.scanner:
            found.append(f"the scanner {scanner!r}, trained with {self.config.scanner!r}")
        if found:
            logger.warning(
                "these data are unlike those that the h-transform was trained with (%s): its image may be wrong. "
                "Compare with lisch, or use recon --method deft with final_consistency",
                "; ".join(found),
            )
        return found


def find_h_transform(name_or_path: str | os.PathLike[str]) -> Path:
    """File of a bundled h-transform's name, or of a path; HTransformFileError if there is neither."""
    try:
        return bundled_or_file(name_or_path, FOLDER, "h-transform")
    except ModelFileError as error:
        raise HTransformFileError(f"{error}, or train one with sirf-diffusion train --supervised") from None


def list_h_transforms() -> list[str]:
    """Names of those that come with the package."""
    return bundled_names(FOLDER)


def read_h_transform(path: str | os.PathLike[str]) -> HTransformConfig:
    """Configuration in a file, read without its weights; raises HTransformFileError."""
    document = _FORMAT.document(path)
    with _FORMAT.guarded(path):
        return HTransformConfig.from_dict(document)


def save_h_transform(
    path: str | os.PathLike[str], weights: dict[str, Tensor], config: HTransformConfig, weights_dtype: str = "float16"
) -> str:
    """Write a file, whole or not at all, and return its SHA-256; ValueError for weights that do not fit."""
    stored = in_dtype(weights, build_network(config.architecture, device="meta"), weights_dtype)
    return _FORMAT.write(path, stored, config.to_dict())


def num_inputs(volumes: bool) -> int:
    """Images that the network is shown."""
    return NUM_INPUTS - 1 + INCREMENTS + 2 * NEIGHBOURS * (1 + INCREMENTS) if volumes else NUM_INPUTS


def inputs(u: Tensor, v: Tensor, increments: Sequence[Tensor], counts: Tensor) -> Tensor:
    """What the network is shown: images ``[..., N, Z, Y, X]`` of images ``[..., Z, Y, X]``.

    ``u`` is scaled to unit variance of its noise; ``counts`` is ``c s``, for each image or one for all.
    """
    increment, *others = increments
    seen = counts.amax((-2, -1), keepdim=True)
    logarithm = torch.log10(counts.clamp(min=1e-30).maximum(_LOWEST_SENSITIVITY * seen)) - 1
    first, *rest = others or [sharpened(increment, v)]
    if others:
        planes, last = torch.arange(v.shape[-3], device=v.device), v.shape[-3] - 1
        for k in (k for k in range(-NEIGHBOURS, NEIGHBOURS + 1) if k):
            rest += [x.index_select(-3, (planes + k).clamp(0, last)) for x in (v, *others)]
    return torch.stack((u, v, increment, first, logarithm.to(u).expand_as(u), *rest), -4)


def correction_size(sigma: Any) -> Any:
    """How large, in network units, the score model's error about is where the network's output is 1.

    It grows with the noise level up to the error of the prior's mean. A number or a tensor.
    """
    return ((sigma**2 + _LEAST_CORRECTION**2) / (1 + sigma**2)) ** 0.5


def sharpened(increment: Tensor, v: Tensor) -> Tensor:
    r"""The increment ``[..., H, W]`` through the ramp filter of filtered backprojection: about what ``v`` lacks.

    Backprojection blurs by :math:`1 / (\pi r)`, and an EM update divides by the mean line integral :math:`l` of the
    image: :math:`\pi\, l\, |f|` undoes both, with :math:`l = (\pi / 2) \sqrt{\sum v / \pi}` of a disc. A Gaussian of 2
    voxels ends the ramp. Linear in the increment; its noise is that of the data.
    """
    height, width = increment.shape[-2:]
    frequencies = [torch.fft.fftfreq(2 * height), torch.fft.rfftfreq(2 * width)]
    square = (frequencies[0][:, None] ** 2 + frequencies[1] ** 2).to(increment)
    ramp = square.sqrt() * torch.exp(-(math.pi**2) * _FWHM_VOXELS**2 / (4 * math.log(2)) * square)
    length = (math.pi / 2) * (v.clamp(min=0).sum((-2, -1), keepdim=True) / math.pi).sqrt()
    filtered = torch.fft.irfft2(torch.fft.rfft2(increment, s=(2 * height, 2 * width)) * ramp, s=(2 * height, 2 * width))
    return math.pi * length * filtered[..., :height, :width]


def non_negative(schedule: NoiseSchedule, u: Tensor, u0: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Clean images without negative values, and the noise that goes with them: ``u = gamma u0 + nu eps``."""
    u0 = u0.clamp(min=0)
    return u0, (u - schedule.gamma(t) * u0) / schedule.nu(t)


def counts_per_voxel(counts: Tensor, v: Tensor) -> float:
    """The mean of ``c s`` over the activity: the counts that a voxel of mean activity gives."""
    weight = v.clamp(min=0).double()
    return float((counts.double() * weight).sum() / weight.sum())
