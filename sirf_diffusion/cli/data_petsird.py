"""``sirf-diffusion data petsird``: list-mode data in PETSIRD into sinograms."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command_line import add_command

if TYPE_CHECKING:
    from ..files.outputs import OutputFolder

_ABOUT = """\
Bin a PETSIRD file of a cylindrical scanner into the sinograms of a template:
prompts.hs (for --prompts of recon), delayeds.hs where the file stores them, and efficiencies.hs (for --multiplicative).
Detectors are found by their place, which must be that of the template's scanner. TOF bins and energy windows are
added up. Randoms are not estimated from the delayeds. Needs the extra: pip install "sirf-diffusion[petsird]".
"""


def add_parser(actions: Any, common: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser = add_command(
        actions,
        common,
        "petsird",
        run,
        summary="from PETSIRD list mode: sinograms",
        about=_ABOUT,
        example="sirf-diffusion data petsird scan.petsird --template template.hs --out sinograms",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="binary PETSIRD")
    parser.add_argument(
        "--template", required=True, type=Path, metavar="T.hs", help="header of projection data, with data or without"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of another result in --out")


def run(arguments: argparse.Namespace) -> int:
    """Bin, write, and say what was found."""
    from ..files.documents import digest
    from ..files.outputs import OutputFolder

    named = {"file": arguments.file, "template": arguments.template}
    contents = {name: digest(path) for name, path in named.items() if path.is_file()}
    settings = {**named, "contents": contents}
    with OutputFolder(arguments.out, settings, overwrite=arguments.overwrite).held() as folder:
        return _bin(arguments, folder)


def _bin(arguments: argparse.Namespace, folder: OutputFolder) -> int:
    from ..files.interfile import read_projection_data_geometry, write_projection_data
    from ..files.progress import progress_bar
    from ..interop.petsird import bin_events

    template = read_projection_data_geometry(arguments.template)
    with progress_bar(100, "events", "%") as bar:
        found = bin_events(arguments.file, template, lambda share: bar.update(int(100 * share) - bar.n))
    arrays = {"prompts": found.prompts, "delayeds": found.delayeds, "efficiencies": found.efficiencies}
    record: dict[str, Any] = {"notes": found.notes}
    for kind, outside in zip(("prompts", "delayeds"), found.outside, strict=True):
        if arrays[kind] is not None:
            record[kind] = {"binned": int(arrays[kind].double().sum()), "outside": outside}
            print(f"{kind}: {record[kind]['binned']} binned, {outside} outside the template")
        else:
            print(f"{kind}: the file stores none")
    with folder.staged(record) as staging:
        for name, array in arrays.items():
            if array is not None:
                write_projection_data(staging / f"{name}.hs", array, found.geometry, exam=found.exam)
    for note in found.notes:
        print(f"note: {note}")
    print(f"written to {arguments.out}: {', '.join(f'{name}.hs' for name in arrays if arrays[name] is not None)}")
    return 0
