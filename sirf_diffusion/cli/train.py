"""``sirf-diffusion train``: train a bundled recipe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser = subparsers.add_parser(
        "train",
        parents=[common],
        help="train a score model by a bundled recipe",
        description="Train a score model by a bundled recipe; an interrupted run goes on where it was. "
        'Needs the extra: pip install -c constraints.txt -e ".[train]"',
        epilog="example: sirf-diffusion train --recipe brain-fdg --out runs/brain-fdg.safetensors",
    )
    parser.add_argument("--recipe", required=True, metavar="NAME", help="name of the recipe, for example brain-fdg")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="model file (.safetensors) to write")
    parser.add_argument(
        "--work-dir", type=Path, metavar="DIR", help="folder for data, checkpoint and log; default: FILE.training"
    )
    parser.add_argument("--max-steps", type=int, metavar="N", help="end after this many steps instead of the recipe's")
    parser.add_argument(
        "--resume", action=argparse.BooleanOptionalAction, default=True, help="go on from the last checkpoint"
    )
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda", help="default: auto")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads; default: PyTorch's choice")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train."""
    from ..training import train

    train(
        arguments.recipe,
        arguments.out,
        work_dir=arguments.work_dir,
        max_steps=arguments.max_steps,
        threads=arguments.threads,
        resume=arguments.resume,
        device=arguments.device,
    )
    return 0
