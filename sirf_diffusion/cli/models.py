"""``sirf-diffusion models``: list the bundled score models, or show what a model file says of itself."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser = subparsers.add_parser(
        "models",
        parents=[common],
        help="list score models, or show one",
        description="Without a name: list the bundled score models. With a name or a file: show its configuration.",
        epilog="example: sirf-diffusion models brain-fdg",
    )
    parser.add_argument("model", nargs="?", metavar="NAME|FILE", help="a bundled model, or a .safetensors file")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """List or show."""
    from ..models import ScoreModel, list_models, read_config
    from ..models.storage import find_model

    if arguments.model is None:
        for name in list_models():
            config = read_config(find_model(name))
            millimetres = " x ".join(f"{v:.4g}" for v in config.voxel_size)
            print(f"{name}  tracer {config.tracer}, voxels of {millimetres} mm (z, y, x), licence {config.licence}")
        return 0
    model = ScoreModel.load(arguments.model)
    print(f"{arguments.model}")
    print(json.dumps(describe_model(model), indent=2))
    return 0


def describe_model(model: Any) -> dict[str, Any]:
    """What a user wants to know of a model, as JSON values."""
    from ..outputs import jsonable

    return jsonable(
        {
            "sha256": model.hash,
            "prediction": model.prediction,
            "schedule": model.schedule.to_config(),
            "voxel_size_mm": list(model.voxel_size),
            "metadata": model.metadata,
        }
    )
