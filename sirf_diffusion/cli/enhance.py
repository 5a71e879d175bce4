"""``sirf-diffusion enhance``: less noise in an image that cannot be reconstructed again."""

from __future__ import annotations

import argparse
from pathlib import Path

from .command_line import add_command, add_machine, real, seed, whole

_ABOUT = """\
Estimate the image of the standard dose from one of a lower dose. IMAGE is Interfile, NIfTI, or a folder with a DICOM
series; the result has the same format (or --format), grid, units, patient position and time frame. Written to --out:
the enhanced image, with several samples their standard deviation (uncertainty) and samples.h5, report.png (before,
after, difference, CT), record.json, references.bib.

If the sinograms are there, reconstruct instead (`sirf-diffusion recon`): an image does not tell what its counts do.
A run that was stopped goes on after its last whole sample when the same command is given again.
"""
_EXAMPLES = """\
  sirf-diffusion enhance pet.nii.gz --ct ct.nii.gz --model body-fdg-enhance --out enhanced
  sirf-diffusion enhance pet.hv --ct ct/ --dose-ratio 0.1 --samples 5 --model my.safetensors --out enhanced
"""


def add_parsers(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    """Declare the options."""
    summary = "take noise out of an image that cannot be reconstructed again"
    parser = add_command(commands, common, "enhance", run, summary=summary, about=_ABOUT, example=_EXAMPLES)
    parser.add_argument("image", type=Path, metavar="IMAGE", help="Interfile, NIfTI, or folder with a DICOM series")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the result")
    parser.add_argument("--model", required=True, metavar="NAME|FILE", help="enhancement model (`train --latent`)")
    parser.add_argument(
        "--ct", type=Path, metavar="FILE|FOLDER", help="CT image of the patient, in any format and grid, in place"
    )
    parser.add_argument(
        "--without-ct", action="store_true", help="do without the CT image that the model was trained with"
    )
    parser.add_argument(
        "--dose-ratio", type=_dose, default=None, metavar="R|auto",
        help="dose of the image, as a share of the model's standard dose; default: auto, by the image's noise",
    )  # fmt: skip
    samples = "draw samples; default: one mean image"
    parser.add_argument("--samples", type=whole(2, 1000), default=0, metavar="N", help=samples)
    steps = "network evaluations; default: 1, or 8 for each sample"
    parser.add_argument("--steps", type=whole(1, 1000), metavar="N", help=steps)
    parser.add_argument("--seed", type=seed, default=0, metavar="S", help="of the samples; default: 0")
    axial = "smoothing along the axis before a network of slices, default: 6, or 0 if it is shown the neighbours"
    parser.add_argument("--axial-fwhm", type=real(0, 50), metavar="MM", help=axial)
    written = "of the images: as IMAGE (default), NIfTI, or both"
    parser.add_argument("--format", choices=("same", "nifti", "both"), default="same", help=written)
    like = "of an Interfile image: write a DICOM PET series too, of the study of this series"
    parser.add_argument("--like", type=Path, metavar="DICOM", help=like)
    parser.add_argument("--restart", action="store_true", help="begin anew, whatever a stopped run kept")
    parser.add_argument("--overwrite", action="store_true", help="replace another result in --out")
    add_machine(parser)


def run(arguments: argparse.Namespace) -> int:
    """Enhance and write."""
    from ..files.outputs import OutputFolder
    from ..files.progress import progress_bar
    from ..models.enhancement import EnhancementModel
    from ..reconstructors.enhancement import SAMPLE_STEPS
    from ..study.enhancement import Enhancement

    what = Enhancement(
        arguments.image, EnhancementModel.load(arguments.model, arguments.device), arguments.ct, arguments.dose_ratio,
        arguments.steps, arguments.samples, arguments.seed, arguments.without_ct, arguments.axial_fwhm,
        arguments.format, arguments.like,
    )  # fmt: skip
    folder = OutputFolder(arguments.out, what.settings(), overwrite=arguments.overwrite)
    with folder.held():
        if folder.completed and not arguments.restart:
            print(f"{arguments.out}: the result was whole already and only had to be put into place")
            return 0
        total = max(arguments.samples, 1) * (arguments.steps or (SAMPLE_STEPS if arguments.samples else 1))
        with progress_bar(total, "enhance") as bar:
            record = what.run(folder, restart=arguments.restart, progress=bar.update)
    print(f"{arguments.out}: {record['title']} ({record['dose_ratio_from']})")
    if record["ct"] is not None and record["ct"]["resampled"]:
        print(f"the CT image was resampled: {record['ct']['from']} to {record['ct']['to']}")
    before, after = (record["activity"][name] for name in ("before", "after"))
    print(f"total activity changed by {100 * (after / before - 1):+.2f} %, {record['seconds']:.1f} s")
    return 0


def _dose(text: str) -> float | None:
    return None if text == "auto" else real(1e-4, 1)(text)
