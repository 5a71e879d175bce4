"""``sirf-diffusion train``: train a score model on a file of volumes, or by a bundled recipe."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..geometry.checks import check_choice
from .command_line import add_command, add_machine, whole


def add_parsers(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser = add_command(
        commands,
        common,
        "train",
        run,
        summary="train a score model",
        about="Train a score model on a file of volumes (`sirf-diffusion data build`), or by a bundled recipe "
        "that simulates its own. An interrupted or killed run goes on where it was when the same command is given "
        'again. Bundled recipes need the extra: pip install -c constraints.txt -e ".[train]"',
        example="  sirf-diffusion train --data train.h5 --out model.safetensors\n"
        "  sirf-diffusion train --distil brain --data train.h5 --out small.safetensors     # smaller, faster\n"
        "  torchrun --nproc-per-node 4 -m sirf_diffusion.cli train --data train.h5 --out model.safetensors",
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
        "--print-config", action="store_true",
        help="print the configuration of what the other options ask for, with every default, and end",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="model file (.safetensors) to write")
    parser.add_argument(
        "--init", metavar="NAME|FILE", help="start from this model; it decides network, schedule and prediction"
    )
    parser.add_argument(
        "--work-dir", type=Path, metavar="DIR", help="folder for checkpoints, logs and figures; default: FILE.training"
    )
    parser.add_argument(
        "--supervised", action="store_true",
        help="train an h-transform for `recon --method deft`, which steers the score model --init by the data",
    )  # fmt: skip
    parser.add_argument(
        "--distil", metavar="NAME|FILE", help="train a smaller network to give this model's clean images; schedule, "
        "prediction and what else --config leaves out are the model's, with half the channels",
    )  # fmt: skip
    parser.add_argument("--scanner", type=Path, metavar="F.hs", help="with --supervised: header of the data: "
                        "one sinogram trains for slices, more train for volumes")  # fmt: skip
    parser.add_argument(
        "--counts", type=_counts, metavar="LOW:HIGH", help="with --supervised: prompts of the scans; default: 2e4:2e6"
    )
    parser.add_argument(
        "--pool", type=whole(0, 10**6), metavar="N", help="with --supervised: slices, or volumes, with noise, kept in "
        "memory and used again and again with other scans, which saves half of the time; default: 0, all are new"
    )  # fmt: skip
    parser.add_argument(
        "--init-h", metavar="NAME|FILE", help="with --supervised: start from this h-transform, such as brain-fdg-deft"
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
    from ..training.distillation import Distillation
    from ..training.enhancement_recipes import ENHANCEMENT_RECIPES
    from ..training.recipes import RECIPES
    from ..training.trainer import RunOptions

    default = ENHANCEMENT_RECIPES["latent"] if arguments.latent else DEFAULT
    distillation = None if arguments.distil is None else Distillation(arguments.distil)
    if distillation is not None:
        if arguments.latent or arguments.supervised or arguments.init or arguments.recipe:
            raise ValueError("--distil MODEL takes no --latent, --supervised, --init or --recipe")
        default = distillation.recipe
    supervision = _supervision(arguments)
    if supervision is not None:
        default = supervision.recipe
    if arguments.print_config:
        if arguments.config is not None:
            raise ValueError("--print-config prints what a configuration can say, without --config: leave that out")
        known = RECIPES | ENHANCEMENT_RECIPES
        if arguments.recipe is not None:
            default = known[check_choice("recipe", arguments.recipe, tuple(sorted(known)))]
        print(default_text(default), end="")
        return 0
    if arguments.out is None:
        raise ValueError("--out FILE is needed: the model file to write")
    if arguments.recipe is None and arguments.data is None and not default.simulated:
        raise ValueError("give --data FILE (a file of `sirf-diffusion data`), or --recipe NAME for simulated subjects")
    if arguments.latent and (arguments.supervised or arguments.recipe not in (None, *ENHANCEMENT_RECIPES)):
        raise ValueError(f"--latent goes with --recipe {', '.join(ENHANCEMENT_RECIPES)}, and not with --supervised")
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
        supervision=supervision,
        distillation=distillation,
    )
    if os.environ.get("RANK", "0") == "0":
        made = arguments.out.is_file()
        print(f"{arguments.out}: {'the model' if made else 'not made yet: go on without --max-steps'}")
    return 0


def _supervision(arguments: argparse.Namespace) -> Any:
    from ..training.data.scans import ScanOptions
    from ..training.supervised import Supervision

    if not arguments.supervised:
        if any(v is not None for v in (arguments.scanner, arguments.counts, arguments.pool, arguments.init_h)):
            raise ValueError("--scanner, --counts, --pool and --init-h are for --supervised")
        return None
    if arguments.init is None or arguments.scanner is None or arguments.data is None or arguments.recipe is not None:
        raise ValueError("--supervised needs --init MODEL, --data FILE and --scanner F.hs, and takes no --recipe")
    scans = ScanOptions() if arguments.counts is None else ScanOptions(counts=arguments.counts)
    return Supervision(arguments.init, arguments.scanner, scans, arguments.pool or 0, arguments.init_h or "")


def _counts(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected LOW:HIGH, such as 2e4:2e6, found {text!r}") from None
    return low, high
