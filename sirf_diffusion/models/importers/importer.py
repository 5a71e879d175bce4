"""From a foreign file, or folder, to a model file."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ..networks import NetworkConfig
from ..schedules import DDPMSchedule, NoiseSchedule, VESchedule, VPSchedule
from ..storage import ModelConfig, save_model
from .deepinv import convert_drunet
from .diffusers import convert_diffusers, diffusers_schedule
from .guided_diffusion import convert_guided_diffusion
from .monai import convert_monai
from .reading import UnsupportedNetworkError, find_weights, read_json, read_weights, sha256

logger = logging.getLogger(__name__)

Converter = Callable[[dict[str, Tensor], dict[str, Any]], tuple[NetworkConfig, dict[str, Tensor]]]

CONVERTERS: dict[str, Converter] = {
    "monai": convert_monai,
    "diffusers": convert_diffusers,
    "guided-diffusion": convert_guided_diffusion,
    "drunet": convert_drunet,
}
#: A weight that only networks of this kind have; kinds without converter are refused by name.
_SIGNS = (
    ("diffusers", "time_embedding.linear_1.weight"),
    ("guided-diffusion", "input_blocks.0.0.weight"),
    ("monai", "conv_in.conv.weight"),
    ("drunet", "m_head.weight"),
    ("drunet", "m_head.0.weight"),
    ("deepinv DnCNN", "in_conv.weight"),
    ("EDM (NVlabs) network", "model.map_layer0.weight"),
    ("EDM (NVlabs) network", "map_layer0.weight"),
)
_SCHEDULES: dict[str, NoiseSchedule] = {s.name: s for s in (VPSchedule(), VESchedule(), DDPMSchedule())}


def import_model(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    kind: str | None = None,
    config: dict[str, Any] | str | os.PathLike[str] | None = None,
    schedule: str | NoiseSchedule | None = None,
    prediction: str | None = None,
    time_input: str = "t",
    voxel_size: tuple[float, float, float] = (2.0, 2.0, 2.0),
    tracer: str = "",
    licence: str = "",
) -> ModelConfig:
    """Write a model file with the network of a foreign one.

    Parameters
    ----------
    source
        State dictionary (``.safetensors``, or ``.pt``, ``.pth``, ``.ckpt``, ``.bin`` of ``torch.save``), TorchScript or
        ``torch.export`` archive (of which the weights are taken, and the program is not run), or a folder of diffusers
        (a UNet's, or a pipeline's).
    out
        The model file to write.
    kind
        ``"monai"``, ``"diffusers"``, ``"guided-diffusion"`` or ``"drunet"``; None: as the names of the weights say.
    config
        The arguments that the network was built with, or their JSON file; a diffusers folder has its own.
    schedule
        Noise schedule of its training, or the name of one with default constants; default: the folder's, ``"ve"`` for a
        DRUNet, else DDPM with 1000 steps.
    prediction
        ``"eps"``, ``"x0"``, ``"v"`` or ``"score"``; default: the folder's, else ``"eps"``; a DRUNet's is ``"x0"``.
    time_input
        What the network is told of the time: ``"t"`` (the index, for DDPM) or ``"log_sigma"``; a DRUNet is told the
        noise level.
    voxel_size
        Voxel size ``(z, y, x)`` of its training images, mm.
    tracer, licence
        In words.

    Returns
    -------
    ModelConfig
        What the file says.

    Raises
    ------
    UnsupportedNetworkError
        If the network does not fit; the message names what does not.
    ValueError
        If another argument is not one of the above.
    FileNotFoundError
        If there is no such file.
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(2, "no such file or folder", str(path))
    found: dict[str, Any] = {}
    if path.is_dir():
        path, found, folder_schedule = _diffusers_folder(path)
        if folder_schedule is not None:
            constants, told = folder_schedule
            schedule = NoiseSchedule.from_config(constants) if schedule is None else schedule
            prediction = prediction or told
    if isinstance(config, (str, os.PathLike)):
        config = read_json(Path(config))
    weights = read_weights(path)
    kind = kind or _kind(weights, path)
    if kind not in CONVERTERS:
        raise ValueError(f"kind must be one of {', '.join(CONVERTERS)}, found {kind!r}")
    given = found if config is None else config
    if not given and kind not in ("guided-diffusion", "drunet"):
        raise ValueError(f"a {kind} network needs the arguments it was built with: give config (a JSON file)")
    try:
        architecture, converted = CONVERTERS[kind](weights, given)
    except (KeyError, TypeError) as error:
        raise UnsupportedNetworkError(f"{path}: not a complete {kind} network ({error})") from error
    if architecture.in_channels > 2:
        raise UnsupportedNetworkError(
            f"{kind}: the network takes {architecture.in_channels} images; known are 1 and 2 (noisy, anatomical)"
        )
    if kind == "drunet":
        if prediction not in (None, "x0"):
            raise ValueError(f"a DRUNet predicts the clean image: prediction must be 'x0', found {prediction!r}")
        schedule, prediction, time_input = schedule or "ve", "x0", "log_sigma"
    model = ModelConfig(
        architecture, _schedule(schedule), prediction or "eps", time_input, voxel_size, tracer=tracer, licence=licence,
        training={"imported": {"kind": kind, "file": path.name, "sha256": sha256(path)}},
    )  # fmt: skip
    try:
        save_model(out, converted, model)
    except ValueError as error:
        raise UnsupportedNetworkError(f"{path}: {error}") from error
    if kind == "drunet":
        logger.warning(
            "a DRUNet does not mind how its training images were scaled, but it was trained for little noise only "
            "(usually up to 0.2 of the brightest pixel): check it with sirf-diffusion models evaluate"
        )
        return model
    logger.warning(
        "how the network's training images were scaled is not known: where their mean over emitting voxels was not 1, "
        "fine-tune it (sirf-diffusion train --init %s --data ...), and check it with sirf-diffusion models evaluate",
        out,
    )  # fmt: skip
    return model


def _kind(weights: dict[str, Tensor], path: Path) -> str:
    for kind, sign in _SIGNS:
        if sign not in weights:
            continue
        if kind not in CONVERTERS:
            raise UnsupportedNetworkError(
                f"{path} is a {kind}, which model files cannot describe. Use it in Python, see "
                "sirf_diffusion.models.importers.DenoiserNetwork"
            )
        return kind
    some = ", ".join(sorted(weights)[:3])
    raise UnsupportedNetworkError(
        f"{path} is of no known kind (its first weights: {some}); known are {', '.join(CONVERTERS)}. Any denoiser can "
        "be used in Python, see sirf_diffusion.models.importers.DenoiserNetwork"
    )


def _diffusers_folder(folder: Path) -> tuple[Path, dict[str, Any], tuple[dict[str, Any], str] | None]:
    """Weights, configuration and schedule of a UNet's folder or a pipeline's."""
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    weights = find_weights(unet, ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"))
    for scheduler in (folder / "scheduler", folder.parent / "scheduler", folder):
        if (scheduler / "scheduler_config.json").is_file():
            return (
                weights,
                read_json(unet / "config.json"),
                diffusers_schedule(read_json(scheduler / "scheduler_config.json")),
            )
    return weights, read_json(unet / "config.json"), None


def _schedule(schedule: str | NoiseSchedule | None) -> NoiseSchedule:
    if isinstance(schedule, NoiseSchedule):
        return schedule
    if schedule is not None and schedule not in _SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(_SCHEDULES)}, found {schedule!r}")
    return _SCHEDULES[schedule or "ddpm"]
