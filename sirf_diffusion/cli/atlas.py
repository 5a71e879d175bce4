"""``sirf-diffusion atlas``: the mean shape and time course of the dynamic PET of several subjects."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .command_line import add_command, bars, real, whole

_ABOUT = """\
Make a 4D atlas of dynamic PET: motion between the frames of a subject is taken out, every frame of every subject is
registered to the template's frame by diffeomorphic demons, the velocities of the frames of a subject are averaged, and
template and deformations take turns. --out has one volume for each frame; with --mr it is also a bank for
`sirf-diffusion personalise`. --images writes the frames as Interfile, to start a reconstruction from (recon --initial)
or to anchor it to (AnchorPrior), and their curves (curves.csv).

A dynamic image is a NIfTI file with four axes, or a folder with one image for each frame, in the order of their names.
"""


def add_parsers(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser = add_command(
        commands, common, "atlas", run, summary="make a 4D atlas of dynamic PET", about=_ABOUT,
        example="sirf-diffusion atlas --subjects sub-01.nii.gz sub-02.nii.gz sub-03/ --out atlas.h5 --images atlas",
    )  # fmt: skip
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--subjects", nargs="+", type=Path, metavar="DYNAMIC", help="dynamic images, one a subject")
    source.add_argument(
        "--frames", nargs="+", type=Path, metavar="FILE", help="of one subject: a dynamic image, or its frames in order"
    )
    for name, what in (("mr", "MRs"), ("labels", "label images (0: none), for curves by region")):
        parser.add_argument(
            f"--{name}", nargs="+", type=Path, default=[], metavar="FILE", help=f"{what}, one a subject, same order"
        )
    parser.add_argument(
        "--voxel-size", nargs="+", type=real(0.5, 20), default=[2.0], metavar="MM",
        help="one number, or three for z, y, x; default: 2",
    )  # fmt: skip
    parser.add_argument("--rounds", type=whole(0, 20), default=3, metavar="N", help="0: affine only; default: 3")
    parser.add_argument("--tracer", default="", help="written into the file, for example '[11C]raclopride'")
    parser.add_argument("--out", required=True, type=Path, metavar="A.h5", help="file to write")
    parser.add_argument("--images", type=Path, metavar="DIR", help="write the frames as Interfile, and their curves")
    parser.add_argument(
        "--onto", type=Path, metavar="IMAGE.hv",
        help="with --images: deform the frames onto this image of a patient (Interfile, same tracer), on its grid",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace --out")


def run(arguments: argparse.Namespace) -> int:
    """Read, register, write."""
    from ..files.interfile import read_image
    from ..patient import read_source
    from ..personalise.groupwise import build_atlas, read_subjects

    if arguments.out.exists() and not arguments.overwrite:
        raise ValueError(f"{arguments.out} exists: --overwrite replaces it")
    if arguments.onto is not None and arguments.images is None:
        raise ValueError("--onto says where the images of --images go: give a folder for them")
    if arguments.out.suffix not in (".h5", ".hdf5"):
        raise ValueError(f"--out {arguments.out}: an atlas is an HDF5 file; give a name that ends in .h5")
    sizes = arguments.voxel_size * (3 if len(arguments.voxel_size) == 1 else 1)
    if len(sizes) != 3:
        raise ValueError(f"--voxel-size takes one number or three, found {len(sizes)}")
    dynamic = [[path] for path in arguments.subjects] if arguments.subjects else [arguments.frames]
    subjects = read_subjects(dynamic, sizes, mrs=arguments.mr, labels=arguments.labels)
    with bars() as progress:
        parts = len(subjects) * (1 + (arguments.rounds if len(subjects) > 1 else 0))
        atlas = build_atlas(subjects, sizes, rounds=arguments.rounds, progress=progress("subjects", parts))
    atlas.save(arguments.out, overwrite=arguments.overwrite, tracer=arguments.tracer)
    print(f"{arguments.out}: {len(atlas.frames)} frames of {len(subjects)} subjects")
    if arguments.images is not None:
        frames = geometry = None
        if arguments.onto is not None:
            frames, quality = atlas.onto(read_source(arguments.onto), geometry := read_image(arguments.onto)[1])
            print(f"onto {arguments.onto}: {quality.to_dict()}")
            if quality.jacobian <= 0:
                raise ValueError(f"--onto {arguments.onto}: the deformation folds; no images are written")
        print(f"{len(atlas.write_images(arguments.images, frames, geometry))} files in {arguments.images}")
    return 0
