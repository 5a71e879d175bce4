"""``sirf-diffusion train``: train a score model on a file of volumes, or by a bundled recipe."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from .command_line import add_command, add_machine, whole


def add_parsers(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser = add_command(
        commands,
        common,
        "train",
        run,
        summary="train a score model, or one that enhances images",
        about="Train a score model on a file of volumes (`sirf-diffusion data build`), or by a bundled recipe "
        "that simulates its own. An interrupted or killed run goes on where it was when the same command is given "
        'again. Bundled recipes need the extra: pip install -c constraints.txt -e ".[train]"',
        example="sirf-diffusion train --data train.h5 --out model.safetensors; several GPUs: torchrun "
        "--nproc-per-node 4 -m sirf_diffusion.cli train --data train.h5 --out model.safetensors",
    )
    parser.add_argument("--data", type=Path, metavar="FILE", help="HDF5 file of `sirf-diffusion data`")
    parser.add_argument(
        "--latent", action="store_true", help="train an enhancement model (`sirf-diffusion enhance`) on standard-dose "
        "images, and CT: an autoencoder, then the diffusion of its latents",
    )  # fmt: skip
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--recipe", metavar="NAME", help="bundled recipe, for example brain-fdg; simulates its own data")
    how.add_argument("--config", type=Path, metavar="FILE", help="TOML configuration; see --print-config")
    parser.add_argument(
        "--print-config", action="store_true", help="print the configuration with every default, and end"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="model file (.safetensors) to write")
    parser.add_argument(
        "--init", metavar="NAME|FILE", help="start from this model; it decides network, schedule and prediction"
    )
    parser.add_argument(
        "--work-dir", type=Path, metavar="DIR", help="folder for checkpoints, logs and figures; default: FILE.training"
    )
    steps = whole(0, 2**40)
    parser.add_argument("--max-steps", type=steps, metavar="N", help="end after this many steps instead of all")
    parser.add_argument("--restart", action="store_true", help="begin anew, whatever an earlier run kept")
    parser.add_argument("--samples-every", type=steps, metavar="N", help="steps between sheets of samples; 0: none")
    parser.add_argument("--compile", action="store_true", help="compile the network (torch.compile)")
    parser.add_argument("--tensorboard", action="store_true", help="TensorBoard logs too")
    add_machine(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train."""
    from ..training import train
    from ..training.configuration import DEFAULT, default_text, read_configuration
    from ..training.enhancement import ENHANCEMENT_RECIPES
    from ..training.trainer import RunOptions

    default = ENHANCEMENT_RECIPES["latent"] if arguments.latent else DEFAULT
    if arguments.print_config:
        print(default_text(default), end="")
        return 0
    if arguments.out is None:
        raise ValueError("--out FILE is needed: the model file to write")
    if arguments.recipe is None and arguments.data is None:
        raise ValueError("give --data FILE (a file of `sirf-diffusion data`), or --recipe NAME for simulated subjects")
    if arguments.latent and arguments.recipe is not None and arguments.recipe not in ENHANCEMENT_RECIPES:
        raise ValueError(f"--latent with --recipe takes {', '.join(ENHANCEMENT_RECIPES)}, found {arguments.recipe!r}")
    recipe, options = arguments.recipe or default, RunOptions()
    if arguments.config is not None:
        configured = read_configuration(arguments.config, default)
        recipe, options = configured.recipe, configured.options
    given = {"samples_every": arguments.samples_every, "compiled": arguments.compile or None,
             "tensorboard": arguments.tensorboard or None}  # fmt: skip
    options = replace(options, **{name: value for name, value in given.items() if value is not None})
    train(
        recipe,
        arguments.out,
        data=arguments.data,
        init=arguments.init,
        work_dir=arguments.work_dir,
        max_steps=arguments.max_steps,
        threads=arguments.threads,
        resume=not arguments.restart,
        device=arguments.device,
        options=options,
    )
    return 0
