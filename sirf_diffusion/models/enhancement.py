"""Enhancement models: networks, doses and what noise a dose stands for, in one ``.safetensors`` file."""

from __future__ import annotations

import copy
import logging
import math
import os
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..environment import select_device
from ..files.weights import WeightsFormat, filled, in_dtype
from ..geometry.checks import check_keys, check_real
from ..geometry.gaussian import gaussian_smooth
from ..geometry.images import ImageGeometry
from .conditioning import anatomical_on, scaled_anatomical
from .doses import DoseSchedule
from .grid import GridAdapter
from .intensity import FWHM_MM
from .latent import EnhancementConfig, EnhancementNetwork, build_autoencoder, told_time
from .storage import ModelFileError, check_words, checked_voxel_size, find_model

if TYPE_CHECKING:
    from ..patient import AnatomicalImage

logger = logging.getLogger(__name__)

METADATA_KEY = "sirf_diffusion_enhancement"
_FORMAT = WeightsFormat("an enhancement model", METADATA_KEY, "train it again", ModelFileError)
#: The body, for `noise_measure`: smoothed activity above this share of the intensity scale.
_BODY = 0.5


@dataclass(frozen=True)
class LowDoseConfig:
    """The scan that lower doses are drawn of; ValueError for values out of range.

    Parameters
    ----------
    counts_per_ml
        Trues that the standard dose gives for each ml of activity 1 (mean of the emitting voxels), without attenuation.
    background
        Randoms and scatter, in units of the trues.
    num_iterations
        Iterations of OSEM that images of thinned counts are made with (noise ``binomial``).
    max_fwhm
        Half of the images are smoothed after it by a Gaussian of up to this width, mm.
    gaussian_sd
        Of noise ``gaussian``, at the standard dose.
    """

    counts_per_ml: float = 1e5
    background: float = 0.5
    num_iterations: int = 3
    max_fwhm: float = 5.0
    gaussian_sd: float = 0.06

    def __post_init__(self) -> None:
        limits = {"counts_per_ml": (1, 1e9), "background": (0, 100), "num_iterations": (1, 100), "max_fwhm": (0, 30),
                  "gaussian_sd": (1e-4, 100)}  # fmt: skip
        for name, (low, high) in limits.items():
            check_real(name, getattr(self, name), low, high)


@dataclass(frozen=True)
class EnhancementModelConfig:
    """What a model file says beside the weights; ValueError for values out of range.

    ``latent_scale`` is the standard deviation of latents, by which they are divided. ``noise_by_dose`` are pairs of a
    dose and the `noise_measure` of images of that dose, from the standard dose down, by which the dose of an image is
    estimated. The other fields are those of score models.
    """

    architecture: EnhancementConfig
    schedule: DoseSchedule
    scan: LowDoseConfig
    voxel_size: tuple[float, float, float] = (4.0, 4.0, 4.0)
    latent_scale: float = 1.0
    noise_by_dose: tuple[tuple[float, float], ...] = ()
    tracer: str = ""
    licence: str = ""
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "voxel_size", checked_voxel_size(self.voxel_size))
        check_real("latent_scale", self.latent_scale, 1e-6, 1e6)
        pairs = tuple((float(d), float(n)) for d, n in self.noise_by_dose)
        object.__setattr__(self, "noise_by_dose", pairs)
        falling = all(a[0] > b[0] and a[1] < b[1] for a, b in pairwise(pairs))
        if len(pairs) > 1000 or not falling or any(not (0 < d <= 1 and 0 <= n < math.inf) for d, n in pairs):
            raise ValueError("noise_by_dose must be pairs of falling doses and rising noise")
        check_words(self)

    def to_dict(self) -> dict[str, Any]:
        """Contents as JSON has them; `from_dict` is the inverse."""
        own = {item.name: getattr(self, item.name) for item in fields(self)}
        parts = {"architecture": self.architecture.to_dict(), "schedule": self.schedule.__dict__}
        return own | parts | {"scan": self.scan.__dict__}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> EnhancementModelConfig:
        """Checked contents; ValueError for an unknown or missing key."""
        check_keys("the configuration", content, cls.__dataclass_fields__)
        parts: dict[str, Any] = {"architecture": EnhancementConfig.from_dict(content["architecture"])}
        for name, kind in (("schedule", DoseSchedule), ("scan", LowDoseConfig)):
            if not isinstance(content[name], dict):
                raise ValueError(f"{name} must be a dictionary, found {content[name]!r:.40}")
            parts[name] = kind(**content[name])
        return cls(**content | parts)


class EnhancementModel(nn.Module):
    """Network, and autoencoder where there is one, with their configuration.

    Images are in network units: activity divided by its intensity scale. `to_latent` and `to_image` are the identity
    without an autoencoder. ``hash`` is the SHA-256 of the file that it was loaded from.
    """

    hash: str = ""
    #: Whether a network that was trained with CT images may do without.
    without_ct: bool = False

    def __init__(self, config: EnhancementModelConfig) -> None:
        super().__init__()
        self.config = config
        self.network = EnhancementNetwork(config.architecture)
        self.autoencoder = build_autoencoder(config.architecture)
        self._anatomical: Any = None

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str], device: str = "auto") -> EnhancementModel:
        """Of a bundled name or a file; `ModelFileError` if there is none, or it cannot be used."""
        path, where = find_model(name_or_path), select_device(device)
        document, stored, digest = _FORMAT.read(path)
        with _FORMAT.guarded(path):
            config = EnhancementModelConfig.from_dict(document)
            with torch.device("meta"):  # shapes without memory, whatever the header asks for
                model = cls(config)
            filled(model, stored).to(where)
        model.hash = digest
        return model

    @classmethod
    def is_one(cls, name_or_path: str | os.PathLike[str]) -> bool:
        """Whether a name or file is an enhancement model, by its header."""
        try:
            _FORMAT.document(find_model(name_or_path))
        except (ModelFileError, OSError):
            return False
        return True

    def save(self, path: str | os.PathLike[str], weights_dtype: str = "float16") -> str:
        """Write the model file; returns its SHA-256."""
        return _FORMAT.write(path, in_dtype(self.state_dict(), self, weights_dtype), self.config.to_dict())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def sees_ct(self) -> bool:
        """Whether the network was trained with CT images."""
        return self.config.architecture.ct != "none"

    @torch.no_grad()
    def to_latent(self, images: Tensor) -> Tensor:
        """What is diffused, of images ``[n, 1, (z,) y, x]``."""
        return images if self.autoencoder is None else self.autoencoder.encode(images)[0] / self.config.latent_scale

    @torch.no_grad()
    def to_image(self, latents: Tensor) -> Tensor:
        """The inverse."""
        return latents if self.autoencoder is None else self.autoencoder.decode(latents * self.config.latent_scale)

    @torch.no_grad()
    def clean(self, noisy: Tensor, dose: float, ct: Tensor | None) -> Tensor:
        """The network's estimate of the standard dose, of what is diffused; with neighbours, of the middle slice."""
        time = told_time(torch.full((len(noisy),), dose, device=noisy.device))
        return self.network(noisy, time, ct if self.sees_ct else None)

    def grid(self, geometry: ImageGeometry) -> GridAdapter:
        """How images of a grid become the network's: resampled to its voxels, which is logged, and padded."""
        architecture = self.config.architecture
        volumes = architecture.spatial_dims == 3
        planes = "volume" if volumes or (architecture.neighbours and geometry.shape[0] > 1) else "transverse"
        axial = None if volumes else 1
        return GridAdapter(geometry, self.config.voxel_size, architecture.multiple, planes, axial_multiple=axial)

    # As of score models, for what holds either: a light copy with a CT image, and a check before anything is computed.

    def guided_by(self, ct: Tensor | AnatomicalImage | str | os.PathLike[str] | None, guidance: float = 0.0) -> Any:
        """A light copy that is shown this CT image, see `ScoreModel.guided_by`; guidance of -1 is to do without."""
        if guidance not in (0, -1):
            raise ValueError(f"guidance of an enhancement model is 0, or -1 (without a CT image), found {guidance:g}")
        if ct is not None and not self.sees_ct:
            raise ValueError("this enhancement model was trained without CT images: it takes none")
        copied = copy.copy(self)
        copied._anatomical, copied.without_ct = None if guidance else ct, guidance == -1
        return copied

    def check_anatomical(self, geometry: ImageGeometry) -> None:
        """Raise ValueError if the CT image cannot be put onto a grid."""
        if self._anatomical is not None:
            anatomical_on(self._anatomical, geometry)

    def ct_on(self, geometry: ImageGeometry) -> Tensor | None:
        """The CT image ``[z, y, x]`` on a grid, scaled as in training; None without one."""
        if self._anatomical is None:
            return None
        return scaled_anatomical(anatomical_on(self._anatomical, geometry).float().cpu(), geometry)

    def estimated_dose(self, image: Tensor, geometry: ImageGeometry) -> float:
        """Dose whose images are as noisy as this one ``[z, y, x]``, in network units on the network's voxels.

        Raises ValueError if the model does not know the noise of doses.
        """
        pairs = self.config.noise_by_dose
        if len(pairs) < 2:
            raise ValueError("the model does not say how noisy images of a dose are: give the dose ratio as a number")
        found = noise_measure(image, geometry)
        if not pairs[0][1] <= found <= pairs[-1][1]:
            side = "less than those of the standard" if found < pairs[0][1] else "more than those of the lowest"
            logger.warning("the image's noise is %s dose of this model: taken for that", side)
        found = min(max(found, pairs[0][1]), pairs[-1][1])
        for (d1, n1), (d2, n2) in pairwise(pairs):
            if found <= n2:
                return math.exp(math.log(d1) + math.log(d2 / d1) * (found - n1) / (n2 - n1))
        return pairs[-1][0]


def noise_measure(image: Tensor, geometry: ImageGeometry) -> float:
    """How much an image ``[z, y, x]`` differs from its in-plane neighbours: the median, relative to the local mean.

    Of voxels in the body alone: those above half of the mean activity after smoothing by 8 mm. Edges are few.

    Raises ValueError if there are none.
    """
    smooth = gaussian_smooth(image, geometry, FWHM_MM)
    emitting = smooth[smooth > 0.2 * smooth.max()]
    inside = smooth > _BODY * emitting.mean() if emitting.numel() else smooth > 0
    if not bool(inside.any()):
        raise ValueError("the noise of an image without activity cannot be estimated")
    planes = image[:, None]
    near = nn.functional.avg_pool2d(nn.functional.pad(planes, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return float(((image - near[:, 0]).abs() / smooth.clamp_min(1e-30))[inside].median())
