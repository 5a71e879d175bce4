"""From a foreign file, or folder, to a model file."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ...geometry.checks import check_choice
from ..networks import NetworkConfig
from ..schedules import NoiseSchedule
from ..storage import ModelConfig, ModelFileError, save_model
from .check import check_denoising
from .families import convert_diffusers, convert_drunet, convert_monai
from .guided_diffusion import convert_guided_diffusion
from .reading import UnsupportedNetworkError, read_config, read_weights
from .schedulers import Training, of_diffusers, of_monai, training, works_on_latents

logger = logging.getLogger(__name__)

Converter = Callable[[dict[str, Tensor], dict[str, Any]], tuple[NetworkConfig, dict[str, Tensor]]]

CONVERTERS: dict[str, Converter] = {
    "monai": convert_monai,
    "diffusers": convert_diffusers,
    "guided-diffusion": convert_guided_diffusion,
    "drunet": convert_drunet,
}
#: Tells schedule and prediction of a scheduler's configuration, if there is one.
Said = Callable[[], tuple[dict[str, Any], str] | None] | None
ORIENTATIONS = ("transverse", "coronal", "sagittal")
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
_SCALING = {
    "drunet": "a DRUNet does not mind how its training images were scaled, but it was trained for little noise only "
    "(usually up to 0.2 of the brightest pixel)",
    "": "how the network's training images were scaled is not known: where their mean over emitting voxels was not 1, "
    "fine-tune it (sirf-diffusion train --init FILE --data ...)",
}
_LATENT = "its network denoises what an autoencoder makes of images, not images"
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


def import_model(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    kind: str | None = None,
    config: dict[str, Any] | str | os.PathLike[str] | None = None,
    schedule: str | dict[str, Any] | NoiseSchedule | None = None,
    prediction: str | None = None,
    time_input: str = "t",
    classes: str | int | None = None,
    voxel_size: tuple[float, float, float] = (2.0, 2.0, 2.0),
    tracer: str = "",
    licence: str = "",
    overwrite: bool = False,
) -> ModelConfig:
    """Write a model file with the network of a foreign one, and try it on a simple image.

    What the file says is returned; its ``training["imported"]`` tells how the network was taken to be trained.
    Raises UnsupportedNetworkError if the file is damaged or the network does not fit, by name, and ValueError if
    another argument is missing, or is not one of these.

    Parameters
    ----------
    source, out
        State dictionary (``.safetensors``, or of ``torch.save``), or a folder of diffusers (a UNet's, or a pipeline's);
        the model file to write.
    kind
        A name in `CONVERTERS`; None: as the names of the weights say.
    config
        The arguments that the network was built with, or their JSON file; a diffusers folder has its own. A MONAI
        bundle's configuration may hold the scheduler too.
    schedule, prediction, time_input
        How it was trained, see `sirf_diffusion.models.importers.schedulers.training`. Schedule and prediction are
        needed unless a scheduler's configuration says them, or it is a DRUNet.
    classes
        What the labels of a network with class labels mean: the one to use always, or, where they are slice
        orientations, ``"transverse,coronal,sagittal"`` in the order of the labels.
    voxel_size, tracer, licence
        Voxel size ``(z, y, x)`` of its training images, mm, and the rest in words.
    overwrite
        Replace ``out`` if it exists.
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(2, "no such file or folder", str(path))
    if Path(out).exists() and not overwrite:
        raise ValueError(f"{out} exists: give another name, or --overwrite to replace it")
    given: dict[str, Any] = {}
    said: Said = None
    if path.is_dir():
        path, given, said = _diffusers_folder(path)
    if config is not None:
        given = config if isinstance(config, dict) else read_config(Path(config))
    weights = read_weights(path)
    kind = check_choice("kind", kind or _kind(weights, path), tuple(CONVERTERS))
    if not given and kind not in ("guided-diffusion", "drunet"):
        raise ValueError(f"a {kind} network needs the arguments it was built with: give config (a JSON file)")
    if kind == "monai":
        if latent := works_on_latents(given):
            raise UnsupportedNetworkError(f"the configuration has a {latent}: {_LATENT}")
        said = partial(of_monai, given)
    try:
        architecture, converted = CONVERTERS[kind](weights, given)
    except ModelFileError:
        raise
    except Exception as error:
        # Missing, misshapen and mistyped entries of a hostile or damaged file raise anything.
        raise UnsupportedNetworkError(f"{path}: not a complete {kind} network ({error})") from error
    if architecture.in_channels > 2:
        raise UnsupportedNetworkError(
            f"{kind}: the network takes {architecture.in_channels} images; known are 1 and 2 (noisy, anatomical)"
        )
    how = (
        _drunet_training(schedule, prediction)
        if kind == "drunet"
        else _training(said, schedule, prediction, time_input)
    )
    architecture, labels = _with_classes(architecture, converted, classes)
    if how.negate:
        for name in ("out.2.conv.weight", "out.2.conv.bias"):
            converted[name] = -converted[name]
    if how.network:
        architecture = dataclasses.replace(architecture, **how.network)
        converted = {f"network.{name}": value for name, value in converted.items()}
    words = "; ".join(part for part in (how.words, labels) if part)
    imported = {
        "kind": kind,
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "training": words,
    }
    model = ModelConfig(
        architecture, how.schedule, how.prediction, how.time_input, voxel_size, tracer=tracer, licence=licence,
        training={"imported": imported},
    )  # fmt: skip
    try:
        save_model(out, converted, model)
    except ValueError as error:
        raise UnsupportedNetworkError(f"{path}: {error}") from error
    logger.info("%s: a %s network; taken to be trained with %s", out, kind, words)
    check_denoising(out)
    logger.warning("%s; check it with sirf-diffusion models evaluate", _SCALING["drunet" if kind == "drunet" else ""])
    return model


def _training(
    said: Said,
    schedule: str | dict[str, Any] | NoiseSchedule | None,
    prediction: str | None,
    time_input: str,
) -> Training:
    """What the caller says, before what the file says."""
    if said is not None and (schedule is None or prediction is None):
        found = said()
        if found is not None:
            schedule, prediction = schedule or found[0], prediction or found[1]
    missing = [name for name, value in (("schedule", schedule), ("prediction", prediction)) if value is None]
    if schedule is None or prediction is None:
        raise ValueError(
            f"the file does not say how the network was trained: give {' and '.join(missing)} "
            f"({' and '.join(f'--{name}' for name in missing)}), such as cosine and eps, or flow and x0-eps"
        )
    try:
        return training(schedule, prediction, time_input)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"schedule {schedule!r} is not valid: {error}") from error


def _drunet_training(schedule: str | dict[str, Any] | NoiseSchedule | None, prediction: str | None) -> Training:
    if prediction not in (None, "x0"):
        raise ValueError(f"a DRUNet predicts the clean image: prediction must be 'x0', found {prediction!r}")
    return training(schedule or "ve", "x0", "log_sigma")


def _with_classes(
    architecture: NetworkConfig, weights: dict[str, Tensor], classes: str | int | None
) -> tuple[NetworkConfig, str]:
    """The network, and its weights in place, with class labels as slice orientations or one label for good."""
    number = architecture.num_class_embeds
    if not number:
        if classes is not None:
            raise ValueError(f"classes = {classes!r} is given, but the network has no class labels: leave it out")
        return architecture, ""
    names = [name.strip() for name in str(classes).split(",")]
    if number == len(ORIENTATIONS) and sorted(names) == sorted(ORIENTATIONS):
        order = [names.index(name) for name in ORIENTATIONS]
        weights["class_embedding.weight"] = weights["class_embedding.weight"][order]
        return architecture, f"class labels are {', '.join(names)} slices"
    if isinstance(classes, bool) or not str(classes).isdecimal() or int(classes) >= number:  # type: ignore[arg-type]
        raise ValueError(
            f"the network has {number} class labels, and the file does not say what they mean: give classes "
            f"(--classes), the label from 0 to {number - 1} to use always"
            + (f", or the three orientations in their order ({','.join(ORIENTATIONS)})" if number == 3 else "")
            + f"; found {classes!r}"
        )
    # The embedding of the label is added to that of the time: a constant one is part of the last bias.
    chosen = weights.pop("class_embedding.weight")[int(classes)]  # type: ignore[arg-type]
    weights["time_embed.2.bias"] = weights["time_embed.2.bias"] + chosen
    return dataclasses.replace(architecture, num_class_embeds=0), f"class label {classes} always"


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


def _diffusers_folder(folder: Path) -> tuple[Path, dict[str, Any], Said]:
    """Weights, configuration and scheduler of a UNet's folder or a pipeline's."""
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    if coder := next((n for n in ("vae", "vqvae") if unet.name == "unet" and (unet.parent / n).is_dir()), None):
        raise UnsupportedNetworkError(f"{unet.parent} has the folder {coder}: {_LATENT}")
    weights = next((unet / name for name in _WEIGHTS if (unet / name).is_file()), None)
    if weights is None:
        raise UnsupportedNetworkError(f"{unet} has none of {', '.join(_WEIGHTS)}")
    config = read_config(unet / "config.json")
    for scheduler in (folder / "scheduler", folder.parent / "scheduler", folder):
        if (scheduler / "scheduler_config.json").is_file():
            return weights, config, partial(of_diffusers, read_config(scheduler / "scheduler_config.json"))
    return weights, config, None
