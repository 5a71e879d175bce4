"""Model files: one ``.safetensors`` file with the weights, and everything needed to use them as JSON in its header.

The network is drawn up without memory from the header, and filled only if every tensor fits.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..files.documents import is_file
from ..files.weights import WeightsFileError, WeightsFormat, filled, in_dtype
from ..geometry.checks import check_choice, check_keys, check_real
from ..geometry.images import VOXEL_SIZES
from .expected_image import bytes_of, expected_image
from .intensity import INTENSITY_RULES
from .networks import TIME_INPUTS, NetworkConfig, build_network, check_time_input
from .schedules import PREDICTIONS, NoiseSchedule

if TYPE_CHECKING:
    from ..patient import AnatomicalImage

METADATA_KEY = "sirf_diffusion"
FORMAT_VERSION = 1
#: Name of the tensor in a file that is no weight: `ModelConfig.expected_image`.
_EXPECTED = "expected_image"
BUNDLED = Path(__file__).parent / "bundled"
#: The bundled model of commands that are given none: many tracers.
DEFAULT_MODEL = "brain"
_SUFFIX = ".safetensors"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class ModelFileError(WeightsFileError):
    """A model file cannot be used; the message names the file and what is wrong with it."""


_FORMAT = WeightsFormat(
    "a model file", METADATA_KEY, "save the model again", ModelFileError, FORMAT_VERSION, "format_version"
)


@dataclass(frozen=True)
class ModelConfig:
    """What a model file says of its network besides the weights.

    Parameters
    ----------
    architecture, schedule
        The network, and the noise schedule it was trained with.
    prediction, time_input
        What it predicts: ``"eps"``, ``"x0"``, ``"v"`` or ``"score"``; what it is told of the time: ``"log_sigma"`` or
        ``"t"`` (see `network_time`).
    voxel_size
        Voxel size ``(z, y, x)`` of the training images in mm.
    intensity_rule
        How the intensity scale of an image is found: a name in `INTENSITY_RULES`.
    tracer, licence, training
        Tracer and body region, and licence of the weights, in words; provenance: anything that JSON can hold.
    expected_image
        What a model for one patient is shown, see `sirf_diffusion.models.expected_image`; a tensor in the file.
    """

    architecture: NetworkConfig
    schedule: NoiseSchedule
    prediction: str = "v"
    time_input: str = "log_sigma"
    voxel_size: tuple[float, float, float] = (2.0, 2.0, 2.0)
    intensity_rule: str = INTENSITY_RULES[0]
    tracer: str = ""
    licence: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    expected_image: AnatomicalImage | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_choice("prediction", self.prediction, PREDICTIONS)
        check_choice("time_input", self.time_input, TIME_INPUTS)
        check_choice("intensity_rule", self.intensity_rule, INTENSITY_RULES)
        check_time_input(self.architecture, self.time_input)
        if self.architecture.preconditioning != "none" and self.prediction != "x0":
            raise ValueError(f"a preconditioned network is a denoiser: prediction must be x0, not {self.prediction!r}")
        if self.prediction == "v" and not self.schedule.variance_preserving:
            raise ValueError(f"v-prediction needs a variance-preserving schedule, found {self.schedule.name!r}")
        object.__setattr__(self, "voxel_size", checked_voxel_size(self.voxel_size))
        check_words(self)

    def to_dict(self) -> dict[str, Any]:
        """Contents but for tensors as a dictionary that JSON can hold; `from_dict` is its inverse."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        del values["voxel_size"], values[_EXPECTED]
        return values | {
            "architecture": self.architecture.to_dict(),
            "schedule": self.schedule.to_config(),
            "voxel_size_mm": list(self.voxel_size),
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> ModelConfig:
        """Checked contents of a dictionary written by `to_dict`; raises ValueError for anything else."""
        wanted = {item.name for item in fields(cls)} - {"voxel_size", _EXPECTED} | {"voxel_size_mm"}
        check_keys("the model configuration", content, wanted)
        values = {key: value for key, value in content.items() if key != "voxel_size_mm"}
        values["architecture"] = NetworkConfig.from_dict(content["architecture"])
        values["schedule"] = NoiseSchedule.from_config(content["schedule"])
        return cls(voxel_size=content["voxel_size_mm"], **values)


def list_models(enhancing: bool = False) -> list[str]:
    """Names of the score models that come with the package, or of the models that enhance images."""
    return [name for name in bundled_names(BUNDLED) if name.endswith("-enhance") == enhancing]


def find_model(name_or_path: str | os.PathLike[str]) -> Path:
    """File of a bundled model's name, or of a path.

    Raises ModelFileError if there is neither such a model nor such a file.
    """
    return bundled_or_file(name_or_path, BUNDLED, "model")


def bundled_names(folder: Path) -> list[str]:
    """Names of the weights files in a folder of the package."""
    return sorted(path.name[: -len(_SUFFIX)] for path in folder.glob(f"*{_SUFFIX}"))


def bundled_or_file(name_or_path: str | os.PathLike[str], folder: Path, what: str) -> Path:
    """One of these files by its name, or a file by its path; ModelFileError if there is neither."""
    names = bundled_names(folder)
    if isinstance(name_or_path, str) and name_or_path in names:
        return folder / f"{name_or_path}{_SUFFIX}"
    if is_file(name_or_path):
        return Path(name_or_path)
    raise ModelFileError(
        f"{os.fspath(name_or_path)!r} is neither a bundled {what} nor a file; bundled {what}s: "
        f"{', '.join(names) or 'none in this installation'}. Give one of these names, or the path of a {_SUFFIX} file"
    )


def read_config(path: str | os.PathLike[str]) -> ModelConfig:
    """Configuration in a model file, read without its weights; raises ModelFileError."""
    document = _FORMAT.document(path)
    with _FORMAT.guarded(path):
        return ModelConfig.from_dict(document)


def load_model(path: str | os.PathLike[str]) -> tuple[nn.Module, ModelConfig, str]:
    """Network (float32, on the CPU, evaluation mode), configuration and SHA-256 of a model file.

    Raises ModelFileError if the file is not a safetensors file, is truncated, lacks or has an invalid configuration, or
    its tensors do not fit the network that the configuration describes.
    """
    document, stored, digest = _FORMAT.read(path)
    with _FORMAT.guarded(path):
        config = ModelConfig.from_dict(document)
        if (expected := stored.pop(_EXPECTED, None)) is not None:
            config = replace(config, expected_image=expected_image(expected, config.training))
        for name, tensor in stored.items():
            if tensor.dtype not in _DTYPES:
                raise ValueError(f"tensor {name!r} has type {tensor.dtype}, expected {', '.join(map(str, _DTYPES))}")
        # On the meta device: shapes without memory, however large a network the header asks for.
        network = build_network(config.architecture, device="meta")
        return filled(network, stored), config, digest


def save_model(
    path: str | os.PathLike[str], weights: dict[str, Tensor], config: ModelConfig, weights_dtype: str = "float32"
) -> str:
    """Write a model file, whole or not at all, and return its SHA-256; an existing one is replaced.

    ``weights`` is the network's state dictionary; ``weights_dtype`` is ``"float32"``, or ``"float16"`` for half the
    size. Raises ValueError if the weights do not fit the configuration's network, or are not finite in that type.
    """
    return _FORMAT.write(path, _storable(weights, config, weights_dtype), config.to_dict())


def serialise(weights: dict[str, Tensor], config: ModelConfig) -> bytes:
    """Contents of a model file, the same for the same weights and configuration."""
    return _FORMAT.content(_storable(weights, config, "float32"), config.to_dict())


def _storable(weights: dict[str, Tensor], config: ModelConfig, weights_dtype: str) -> dict[str, Tensor]:
    """Checked weights, and the image that is expected."""
    try:
        stored = in_dtype(weights, build_network(config.architecture, device="meta"), weights_dtype)
    except ValueError as error:
        raise ValueError(f"the weights do not fit the configured architecture: {error}") from error
    if config.expected_image is None:
        return stored
    return stored | {_EXPECTED: bytes_of(torch.from_numpy(config.expected_image.image.values))}


def check_words(config: Any, *more: str) -> None:
    """ValueError unless what a configuration says in words is text, and its ``training`` a dictionary."""
    for name in (*more, "tracer", "licence"):
        if not isinstance(getattr(config, name), str):
            raise ValueError(f"{name} must be text, found {getattr(config, name)!r}")
    if not isinstance(config.training, dict):
        raise ValueError(f"training must be a dictionary, found {config.training!r}")


def checked_voxel_size(voxel_size: Any) -> tuple[float, float, float]:
    """Three numbers (z, y, x) in mm that sizes of voxels may be, or a ValueError."""
    if not isinstance(voxel_size, (list, tuple)) or len(voxel_size) != 3:
        raise ValueError(f"voxel_size must be three numbers (z, y, x) in mm, found {voxel_size!r}")
    z, y, x = (check_real("voxel_size (mm)", value, *VOXEL_SIZES) for value in voxel_size)
    return z, y, x
