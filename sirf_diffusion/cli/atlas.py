"""``sirf-diffusion atlas``: the mean shape and time course of the dynamic PET of several subjects."""

from __future__ import annotations

import argparse
from dataclasses import replace
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
A run that was stopped goes on after its last whole registration when the same command is given again: until the end
A.h5.atlas beside --out keeps the deformations.
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
    parser.add_argument("--overwrite", action="store_true", help="replace --out, and another result in --images")
    parser.add_argument("--restart", action="store_true", help="begin anew, whatever a stopped run kept")


def run(arguments: argparse.Namespace) -> int:
    """Read, register, write; a run that was stopped goes on after its last whole registration."""
    from ..files.documents import digest
    from ..files.outputs import OutputFolder
    from ..files.work import KeptArrays, work_folder
    from ..patient import read_source
    from ..patient.deformable import LEAST_VOXELS
    from ..patient.resampling import grid_over
    from ..personalise.groupwise import build_atlas, read_subjects

    out, overwrite = arguments.out, arguments.overwrite
    if arguments.onto is not None and arguments.images is None:
        raise ValueError("--onto says where the images of --images go: give a folder for them")
    if out.suffix not in (".h5", ".hdf5") or out.is_dir():
        raise ValueError(f"--out {out}: an atlas is an HDF5 file; give a name that ends in .h5")
    if not out.parent.is_dir():
        raise FileNotFoundError(2, "the folder of the atlas does not exist: make it first", str(out))
    sizes = arguments.voxel_size * (3 if len(arguments.voxel_size) == 1 else 1)
    if len(sizes) != 3:
        raise ValueError(f"--voxel-size takes one number or three, found {len(sizes)}")
    work = out.with_name(out.name + ".atlas")
    dynamic = [[path] for path in arguments.subjects] if arguments.subjects else [arguments.frames]
    files = {"subjects": arguments.subjects or arguments.frames, "mr": arguments.mr, "labels": arguments.labels}
    settings = {name: [digest(path) for path in paths] for name, paths in files.items()}
    settings |= {"voxel_size": sizes, "rounds": arguments.rounds}
    images = None
    if arguments.images is not None:
        onto = {} if arguments.onto is None else {"onto": digest(arguments.onto)}
        images = OutputFolder(arguments.images, settings | onto, overwrite=overwrite).check()
        if onto and min(shape := grid_over(read_source(arguments.onto), tuple(sizes)).shape) < LEAST_VOXELS:
            raise ValueError(
                f"--onto {arguments.onto}: {' x '.join(map(str, shape))} voxels of --voxel-size are too few to be "
                f"registered, {LEAST_VOXELS} along each axis are needed: give a smaller --voxel-size"
            )
    with (
        work_folder(
            work, settings, ["*.safetensors"], result=out, restart=arguments.restart, replace=overwrite,
            advice="--overwrite replaces it",
        ),
        bars() as progress,
    ):  # fmt: skip
        subjects = read_subjects(dynamic, sizes, mrs=arguments.mr, labels=arguments.labels)
        parts = len(subjects) * (1 + (arguments.rounds if len(subjects) > 1 else 0))
        tick = progress("subjects", parts)
        atlas = build_atlas(subjects, sizes, rounds=arguments.rounds, progress=tick, kept=KeptArrays(work))
        atlas.save(out, overwrite=True, tracer=arguments.tracer)
        print(f"{out}: {len(atlas.frames)} frames of {len(subjects)} subjects")
        if images is not None:
            _write_images(atlas, images, arguments.onto)
        for path in work.glob("*.safetensors"):
            path.unlink()
    return 0


def _write_images(atlas: Any, folder: Any, onto: Path | None) -> None:
    from ..files.interfile import read_exam_info, read_image
    from ..patient import read_source

    frames = geometry = exam = None
    record: dict[str, Any] = {"title": "4D atlas"}
    if onto is not None:
        exam = replace(read_exam_info(onto), time_frames=())  # the atlas does not know the times of its frames
        frames, quality = atlas.onto(read_source(onto), geometry := read_image(onto)[1])
        record["onto"] = {"image": str(onto), "registration": quality.to_dict()}
        print(f"onto {onto}: {quality.to_dict()}. No curves: they are of the atlas, in its own units")
        if quality.jacobian <= 0:
            raise ValueError(f"--onto {onto}: the deformation folds: no images are written, the atlas is")
    with folder.staged(record) as staging:
        written = atlas.write_images(staging, frames, geometry, exam)
    print(f"{len(written)} files in {folder.path}")
