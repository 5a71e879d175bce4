"""``sirf-diffusion models``: list, show, import, evaluate and sample score models."""

from __future__ import annotations

import argparse
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..files.documents import parse_json
from ..models.generation import SAMPLERS
from .command_line import add_command, add_machine, real, seed, whole

_ACTIONS = ("list", "show", "import", "evaluate", "sample")


def add_parsers(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser = add_command(
        commands,
        common,
        "models",
        _list,
        summary="list, show, import, evaluate or sample score models",
        about="Alone: list the bundled score models. With a name or a file: show its configuration.",
        example="sirf-diffusion models brain-fdg",
    )
    actions = parser.add_subparsers(dest="action", metavar="NAME|FILE|ACTION")
    about = "List the bundled models."
    example = "sirf-diffusion models list"
    add_command(actions, common, "list", _list, summary="list the bundled models", about=about, example=example)
    summary = "show what a model says of itself (or give just its name)"
    about, example = "Show what a model says of itself.", "sirf-diffusion models show brain-fdg"
    show = add_command(actions, common, "show", _show, summary=summary, about=about, example=example)
    show.add_argument("model", metavar="NAME|FILE", help="a bundled model, or a .safetensors file")
    _add_import(actions, common)
    _add_evaluate(actions, common)
    _add_sample(actions, common)
    _name_means_show(parser)


def _add_import(actions: Any, common: argparse.ArgumentParser) -> None:
    parser = add_command(
        actions,
        common,
        "import",
        _import,
        summary="import a network that other software trained",
        about="Write a model file with the network of MONAI (DiffusionModelUNet), diffusers (UNet2DModel "
        "folder), guided-diffusion (without scale-shift normalisation) or deepinv (DRUNet). Nothing in the file is "
        "run. What it does not say must be given: schedule, prediction, the meaning of class labels.",
        example="sirf-diffusion models import unet.pt --config unet.json --schedule cosine --prediction eps "
        "--out unet.safetensors",
    )
    parser.add_argument("source", type=Path, metavar="FILE|FOLDER", help="state dictionary, or folder of diffusers")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="model file (.safetensors) to write")
    parser.add_argument(
        "--kind", metavar="NAME", help="monai, diffusers, guided-diffusion or drunet; default: as found"
    )
    parser.add_argument("--config", metavar="FILE|JSON", help="the network's arguments, or a bundle's configuration")
    parser.add_argument(
        "--schedule",
        metavar="NAME|JSON",
        help="of its training, unless the file says it: ddpm (linear from 0.0001 to 0.02, 1000 steps), cosine, flow, "
        'vp or ve, or constants, such as {"name": "scaled_linear", "num_train_steps": 1000, "beta_start": 0.0015, '
        '"beta_end": 0.0195}',
    )
    parser.add_argument(
        "--prediction",
        metavar="NAME",
        help="what it predicts, unless the file says it: eps, x0, v or score; of a flow x0-eps (as in MONAI) or eps-x0 "
        "(as in diffusers)",
    )
    parser.add_argument("--time-input", default="t", metavar="t|log_sigma", help="how it is told the time; default: t")
    parser.add_argument(
        "--classes",
        metavar="N|NAMES",
        help="of a network with class labels: the one to use always, or transverse,coronal,sagittal in their order",
    )
    parser.add_argument(
        "--voxel-size", type=real(0.01, 1e3), nargs="+", default=[2.0], metavar="MM",
        help="of its training images: one, or z y x; default: 2",
    )  # fmt: skip
    parser.add_argument("--tracer", default="", help="tracer and body region in words")
    parser.add_argument("--licence", default="", help="licence of the weights")
    parser.add_argument("--overwrite", action="store_true", help="replace --out")


def _add_evaluate(actions: Any, common: argparse.ArgumentParser) -> None:
    parser = add_command(
        actions,
        common,
        "evaluate",
        _evaluate,
        summary="judge a model on held-out volumes",
        about="Denoising error beside the best Gaussian and non-local means filters, unconditional samples, "
        "scale equivariance and calibration, as a model card with figures (README.md) and numbers (report.json).",
        example="sirf-diffusion models evaluate model.safetensors --data train.h5 --out card",
    )
    parser.add_argument("model", metavar="NAME|FILE", help="a bundled model, or a .safetensors file")
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="HDF5 file of `sirf-diffusion data`")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the card")
    parser.add_argument("--split", metavar="NAME", help="test, validation or train; default: the first that is there")
    parser.add_argument(
        "--size", type=whole(1, 4096), metavar="PIXELS", help="side of the samples; default: 128, or that of the cubes"
    )
    add_machine(parser)


def _add_sample(actions: Any, common: argparse.ArgumentParser) -> None:
    parser = add_command(
        actions,
        common,
        "sample",
        _sample,
        summary="draw images from a model alone",
        about="Images that the model takes for likely, without any data, in network units (mean activity about 1): "
        "samples.h5, a sheet of their middle planes (samples.png), record.json. Samplers: ddpm (ancestral), ddim, ode "
        "(probability flow, Heun), sde (predictor and corrector).",
        example="sirf-diffusion models sample brain-fdg --num 16 --out prior",
    )
    parser.add_argument("model", metavar="NAME|FILE", help="a bundled model, or a .safetensors file")
    parser.add_argument("--num", type=whole(), default=16, metavar="N", help="default: %(default)s")
    parser.add_argument("--sampler", choices=SAMPLERS, default="ddpm", help="default: ddpm")
    parser.add_argument("--steps", type=whole(), default=100, metavar="N", help="default: %(default)s")
    parser.add_argument("--size", type=whole(1, 4096), default=128, metavar="PIXELS", help="side; default: %(default)s")
    parser.add_argument("--planes", type=whole(1, 4096), default=1, metavar="N", help="of a volume; default: one slice")
    parser.add_argument("--seed", type=seed, default=0, metavar="S", help="default: 0")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the samples")
    parser.add_argument("--overwrite", action="store_true", help="replace another result in --out")
    add_machine(parser)


def _name_means_show(parser: argparse.ArgumentParser) -> None:
    """Let ``models NAME`` mean ``models show NAME``."""
    parse = parser.parse_known_args

    def parse_known_args(args: Any = None, namespace: Any = None) -> Any:
        args = list(args or [])
        first = next((k for k, word in enumerate(args) if not word.startswith("-")), None)
        if first is not None and args[first] not in _ACTIONS:
            args.insert(first, "show")
        return parse(args, namespace)

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign]


def _list(arguments: argparse.Namespace) -> int:
    from ..models import list_models, read_config
    from ..models.enhancement import EnhancementModel
    from ..models.h_transform import find_h_transform, list_h_transforms, read_h_transform
    from ..models.storage import find_model

    for name in list_models():
        config = read_config(find_model(name))
        millimetres = " x ".join(f"{v:.4g}" for v in config.voxel_size)
        print(f"{name}  tracer {config.tracer}, voxels of {millimetres} mm (z, y, x), licence {config.licence}")
    for name in list_models(enhancing=True):
        about = EnhancementModel.load(name, "cpu").config
        millimetres = " x ".join(f"{v:.4g}" for v in about.voxel_size)
        print(f"{name}  enhances images; tracer {about.tracer}, voxels of {millimetres} mm, licence {about.licence}")
    for name in list_h_transforms():
        steers = read_h_transform(find_h_transform(name))
        print(f"{name}  for --method deft, steers {steers.base}; tracer {steers.tracer}, licence {steers.licence}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from ..files.documents import digest
    from ..files.outputs import jsonable
    from ..models import ScoreModel
    from ..models.enhancement import EnhancementModel
    from ..models.h_transform import HTransformFileError, find_h_transform, read_h_transform

    h_transform = None
    with suppress(HTransformFileError, OSError):
        h_transform = read_h_transform(path := find_h_transform(arguments.model))
    if EnhancementModel.is_one(arguments.model):
        model = EnhancementModel.load(arguments.model, "cpu")
        about = jsonable({"sha256": model.hash, **model.config.to_dict()})
    elif h_transform is not None:
        about = jsonable({"sha256": digest(path), **h_transform.to_dict()})
    else:
        about = describe_model(ScoreModel.load(arguments.model))
    print(f"{arguments.model}")
    print(json.dumps(about, indent=2))
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from ..models.importers import import_model

    sizes = arguments.voxel_size * 3 if len(arguments.voxel_size) == 1 else arguments.voxel_size
    config = import_model(
        arguments.source, arguments.out, kind=arguments.kind, config=_json_or_text("--config", arguments.config),
        schedule=_json_or_text("--schedule", arguments.schedule), prediction=arguments.prediction,
        time_input=arguments.time_input, classes=arguments.classes, voxel_size=tuple(sizes),
        tracer=arguments.tracer, licence=arguments.licence, overwrite=arguments.overwrite,
    )  # fmt: skip
    imported, voxels = config.training["imported"], " x ".join(f"{size:g}" for size in sizes)
    told = f"taken to be trained with {imported['training']}, on voxels of {voxels} mm"
    print(f"{arguments.out}: {imported['kind']} network, {told}")
    return 0


def _json_or_text(option: str, text: str | None) -> Any:
    """The dictionary in JSON text, or other text as it is."""
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{option} {text!r} is not JSON: {error}") from error


def _evaluate(arguments: argparse.Namespace) -> int:
    from ..training.evaluation.acceptance import evaluate
    from ..training.evaluation.model_card import card_folder, write_card

    settings = {name: getattr(arguments, name) for name in ("model", "data", "split", "size")}
    with card_folder(arguments.out, settings).held() as folder:
        evaluation = evaluate(
            arguments.model, arguments.data, split=arguments.split, size=arguments.size, device=arguments.device
        )
        card = write_card(evaluation, folder)
    for line in evaluation.summary():
        print(line)
    print(f"the card is {card}")
    return 0


def _sample(arguments: argparse.Namespace) -> int:
    from ..files.outputs import OutputFolder
    from ..files.progress import progress_bar
    from ..geometry.images import ImageGeometry
    from ..models import ScoreModel
    from ..models.generation import generate
    from ..study.result import write_samples
    from ..training.evaluation.acceptance import mean_activity, save_sheet

    model = ScoreModel.load(arguments.model, arguments.device)
    shape = (arguments.planes, arguments.size, arguments.size)
    settings = {name: getattr(arguments, name) for name in ("num", "sampler", "steps", "seed")}
    settings |= {"model": model.hash, "shape": shape}
    folder = OutputFolder(arguments.out, settings, overwrite=arguments.overwrite)
    with folder.held():
        folder.check_space(8 * arguments.num * arguments.planes * arguments.size**2)
        with progress_bar(arguments.steps, arguments.sampler) as bar:
            chosen = (shape, arguments.sampler, arguments.steps, arguments.seed)
            images = generate(model, arguments.num, *chosen, progress=lambda step: bar.update())
        with folder.staged({"settings": settings}) as staging:
            geometry = ImageGeometry(shape, model.voxel_size)
            write_samples(staging / "samples.h5", images, geometry, seed=arguments.seed, unit="network units")
            save_sheet(images[:, shape[0] // 2], staging / "samples.png")
    print(f"{arguments.out}: {arguments.num} images by {arguments.sampler}, mean activity {mean_activity(images):.3g}")
    return 0


def describe_model(model: Any) -> dict[str, Any]:
    """What a user wants to know of a model, as JSON values."""
    from ..files.outputs import jsonable

    return jsonable(
        {
            "sha256": model.hash,
            "prediction": model.prediction,
            "schedule": model.schedule.to_config(),
            "voxel_size_mm": list(model.voxel_size),
            "companion": None if model.companion is None else model.companion.hash,
            "metadata": model.metadata,
        }
    )
