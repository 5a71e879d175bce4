"""Options of ``sirf-diffusion recon`` that fit the network to the data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..reconstructors.methods import ADAPTATIONS, Method, adaptation_for, build_adaptation

if TYPE_CHECKING:
    from ..reconstructors.adaptation.network_adaptation import NetworkAdaptation

#: For the command's description.
ABOUT = "\n".join(
    f"  {a.name:<10} {a.about}\n{'':13}{', '.join(f'{k}={v}' for k, v in a.settings.items())}"
    for a in ADAPTATIONS.values()
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    group = parser.add_argument_group("adaptation of the network to the data, for methods that draw samples")
    group.add_argument(
        "--adapt",
        choices=("none", *ADAPTATIONS),
        help="default: none, but for the methods ddip and steerable, which have their own",
    )
    group.add_argument(
        "--adapt-set",
        action="append",
        default=[],
        dest="adapt_settings",
        metavar="NAME=VALUE",
        help="a setting of the adaptation, see above; may be repeated",
    )
    group.add_argument(
        "--adapter", type=Path, metavar="FILE", help="start from a kept adapter; with --adapt none it is used as it is"
    )
    group.add_argument("--save-adapter", type=Path, metavar="FILE", help="keep what was learnt, for the next patient")


def adaptation_of(arguments: argparse.Namespace, method: Method, settings: dict[str, Any]) -> NetworkAdaptation | None:
    """What the options ask for; None for no adaptation.

    Raises
    ------
    ValueError
        For options that contradict each other or the method.
    FileNotFoundError
        If the adapter, or the folder for one, does not exist.
    """
    name = arguments.adapt or method.adaptation or "none"
    if name == "none":
        if method.adaptation is not None:
            raise ValueError(f"--adapt none: {method.name} is nothing without adaptation; use lisch, dds or hqs")
        if settings or arguments.save_adapter is not None:
            raise ValueError(
                "--adapt-set and --save-adapter need an adaptation: give --adapt ddip or --adapt steerable"
            )
        if arguments.adapter is None:
            return None
        name, settings = next(iter(ADAPTATIONS)), {"num_rounds": 0}
    if arguments.adapter is not None and not arguments.adapter.is_file():
        raise FileNotFoundError(f"--adapter {arguments.adapter}: there is no such file")
    if arguments.save_adapter is not None and not arguments.save_adapter.parent.is_dir():
        raise FileNotFoundError(f"--save-adapter {arguments.save_adapter}: its folder does not exist, make it first")
    return adaptation_for(method, build_adaptation(name, settings, arguments.adapter))
