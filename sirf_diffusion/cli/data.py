"""``sirf-diffusion data``: make and look at training data."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..files.documents import read_text
from . import data_petsird
from .command_line import add_command, options_of, real, seed, whole
from .data_tables import print_inputs, print_outcomes, print_summary, print_table

_BUILD = """\
Take in images (Interfile .hv, NIfTI .nii and .nii.gz, folders with a DICOM series), write them as training volumes:
resampled to one voxel size, in STIR's axes (z to the feet, y to the back, x to the left: head first, supine), divided
by their intensity scale, cropped around the activity, split by subject. A folder stands for the emission images under
it: of BIDS names *_pet alone, of DICOM series those of modality PT, else every image whose name tells no other kind.

Images that cannot be used (damaged, not finite, constant, of unknown orientation, duplicates, ...) are left out and
listed with the reason, at the end and in the file. A build that was stopped goes on when the same command is given
again. Names, paths and patient identifiers are not written: subjects and sources are hashed with a random key that is
forgotten.

The manifest is CSV (or a JSON list of objects) with the columns subject, image, mr, ct, split; only image is needed.
A BIDS participants.tsv is a manifest, too.
Without one, a subject is what "sub-..." in the path says (BIDS), else the DICOM patient, else each file for itself.
"""

_BUILD_EXAMPLES = """\
  sirf-diffusion data build --out train.h5 --tracer "[18F]FDG" pet/
  sirf-diffusion data build --out train.h5 --manifest subjects.csv --voxel-size 2.03 2.09 2.09
  sirf-diffusion data build --out train.h5 a/pet.nii.gz b/pet.nii.gz --mr a/t1.nii.gz b/t1.nii.gz
"""

_PHANTOM = """\
Simulate subjects: heads (a deformed MNI152 brain in a synthetic head), or other heads and chests of parametric shapes
that share neither code nor template with the first, to evaluate a model on what it has never seen. With a tracer's
uptake, regional variation, hot and cold lesions that show in the MR or do not, the scanner's blur, a T1-weighted MR
(CT with head-ct and trunk), attenuation in 1/cm, tissue labels and a map of the lesions. Same seed, same data. A trunk
is a thorax with bowel and arms, of more builds, and blurred by breathing.

tracers:
  head             fdg fdg-typical amyloid amyloid-positive amyloid-negative florbetapir dpa714 tau dopamine
                   amino-acid any various
  head-parametric  fdg amyloid dpa714 any
  head-ct          fdg fdg-typical amyloid amyloid-positive amyloid-negative florbetapir dpa714 tau dopamine
                   amino-acid any various
  thorax           fdg psma any
  trunk            fdg psma any
  "any" draws the uptake of every tissue at random; "various" mixes all but amyloid and TSPO tracers (dpa714)
"""

_PHANTOM_EXAMPLES = """\
  sirf-diffusion data phantom --subjects 40 --tracer dpa714 --out dpa.h5
  sirf-diffusion data phantom --subjects 8 --tracer any --seed 9000 --held-out --out test.h5
  sirf-diffusion data phantom --subjects 20 --body thorax --tracer fdg --voxel-size 4 --out chest.h5
"""


def add_parsers(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser = add_command(
        commands,
        common,
        "data",
        None,
        summary="make training data from images or phantoms, or look at them",
        about="Make training data from images or phantoms, or look at them. "
        'Needs the extra: pip install "sirf-diffusion[train]"; for DICOM also [dicom].',
        example="sirf-diffusion data phantom --subjects 40 --out train.h5 && sirf-diffusion data show train.h5",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    summary = "from images: Interfile, NIfTI, DICOM"
    _add_build(add_command(actions, common, "build", run_build, summary=summary, about=_BUILD, example=_BUILD_EXAMPLES))
    data_petsird.add_parser(actions, common)
    summary = "simulated heads or chests"
    _add_phantom(
        add_command(actions, common, "phantom", run_phantom, summary=summary, about=_PHANTOM, example=_PHANTOM_EXAMPLES)
    )
    summary = "what a file holds: a table and a figure"
    about = "Print what a file of training volumes holds, and draw slices of some of them."
    example = "sirf-diffusion data show train.h5"
    show = add_command(actions, common, "show", run_show, summary=summary, about=about, example=example)
    show.add_argument("file", type=Path, metavar="F.h5")
    show.add_argument("--figure", type=Path, metavar="PNG", help="default: F.png beside the file")


def _add_build(build: argparse.ArgumentParser) -> None:
    build.add_argument("images", nargs="*", type=Path, metavar="IMAGES", help="emission images, or folders of them")
    build.add_argument("--out", required=True, type=Path, metavar="F.h5", help="file to write")
    source = build.add_argument_group("images")
    source.add_argument("--manifest", type=Path, metavar="CSV|JSON", help="table of images instead of IMAGES")
    anatomical = source.add_mutually_exclusive_group()
    anatomical.add_argument(
        "--mr", nargs="+", type=Path, default=[], metavar="FILE",
        help="MR images in the space of the IMAGES, one for each, same order",
    )  # fmt: skip
    anatomical.add_argument("--ct", nargs="+", type=Path, default=[], metavar="FILE", help="the same for CT")
    source.add_argument("--tracer", default="", help="written into the file, for example '[18F]FDG'")
    source.add_argument(
        "--assume", dest="assumed", metavar="RAS",
        help="axes of images that do not tell theirs (NIfTI without qform and sform)",
    )  # fmt: skip
    grid = build.add_argument_group("grid")
    grid.add_argument(
        "--voxel-size", nargs="+", type=real(0.5, 20), default=[2.0], metavar="MM",
        help="one number, or three for z, y, x; default: 2. Equal to the images' own: nothing is interpolated",
    )  # fmt: skip
    grid.add_argument(
        "--margin", type=real(0, 1e4), default=16.0, metavar="MM",
        help="air kept around the activity; default: %(default)g",
    )  # fmt: skip
    grid.add_argument("--no-crop", dest="margin", action="store_const", const=None, help="keep the whole field of view")
    _add_splits(build)
    build.add_argument("--add", action="store_true", help="add to a file that --out names (with its --key)")
    build.add_argument(
        "--key", type=Path, metavar="FILE",
        help="keep the key of the hashes in this private file (made if it does not exist): images that are added later "
        "are then known to be of the same subjects",
    )  # fmt: skip
    _add_anew(build)
    build.add_argument("--dry-run", action="store_true", help="list what would be taken as what, and end")


def _add_phantom(phantom: argparse.ArgumentParser) -> None:
    phantom.add_argument("--out", required=True, type=Path, metavar="F.h5", help="file to write")
    phantom.add_argument("--subjects", type=whole(), default=16, metavar="N", help="default: %(default)d")
    phantom.add_argument("--tracer", default="fdg", metavar="NAME", help="see above; default: %(default)s")
    kinds = ("head", "head-parametric", "head-ct", "thorax", "trunk")
    phantom.add_argument("--body", default="head", choices=kinds, help="default: %(default)s")
    phantom.add_argument("--draws", type=whole(1, 1000), default=1, metavar="K", help="uptakes per subject; default: 1")
    phantom.add_argument(
        "--seed", dest="first", type=whole(0), default=0, metavar="S", help="number of the first subject; default: 0"
    )
    phantom.add_argument(
        "--held-out", action="store_true", help="a test set of subjects that no bundled model has seen (seed >= 9000)"
    )
    phantom.add_argument("--voxel-size", type=real(1, 10), default=2.0, metavar="MM", help="default: %(default)g")
    phantom.add_argument(
        "--psf", dest="psf_fwhm", type=real(0, 100), metavar="MM", help="FWHM of the blur; default: drawn at random"
    )
    phantom.add_argument(
        "--lesions-in-mr", dest="in_mr", type=real(0, 1), default=0.5, metavar="SHARE",
        help="how many show in the MR; default: 0.5",
    )  # fmt: skip
    phantom.add_argument(
        "--perturb", metavar="stripes|spikes", help="wrong in a known way, to study what a model makes of it"
    )
    _add_splits(phantom, "split-seed")
    phantom.add_argument("--workers", type=whole(1, 4096), metavar="N", help="processes; default: one per processor")
    _add_anew(phantom)


def _add_anew(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace --out")
    parser.add_argument("--restart", action="store_true", help="begin anew, whatever a stopped run kept")


def _add_splits(parser: argparse.ArgumentParser, name: str = "seed") -> None:
    group = parser.add_argument_group("splits, by subject")
    group.add_argument(
        "--split", dest="fractions", nargs=3, type=real(0, 1e9), default=[0.8, 0.1, 0.1],
        metavar=("TRAIN", "VALIDATION", "TEST"), help="shares of the subjects; default: 0.8 0.1 0.1",
    )  # fmt: skip
    group.add_argument(f"--{name}", type=seed, default=0, metavar="S", help="which subject goes where; default: 0")


def run_build(arguments: argparse.Namespace) -> int:
    """Take in images."""
    from ..training.data.image_data import ImageOptions, build_from_images
    from ..training.data.manifest import find_images, images_under, paired, read_manifest
    from ..training.data.volume_parts import NothingUsable

    if bool(arguments.images) == bool(arguments.manifest):
        raise ValueError("give either IMAGES or --manifest")
    if arguments.manifest:
        if arguments.mr or arguments.ct:
            raise ValueError("--mr and --ct go with IMAGES; in a manifest they are columns")
        inputs = read_manifest(arguments.manifest)
    else:
        anatomies = [_only_image(path, images_under(path)) for path in arguments.mr or arguments.ct]
        inputs = paired(find_images(arguments.images), anatomies, "CT" if arguments.ct else "MR")
    arguments.voxel_size *= 3 if len(arguments.voxel_size) == 1 else 1
    options = options_of(ImageOptions, arguments)
    print_inputs(inputs, each=arguments.dry_run or bool(arguments.mr or arguments.ct))
    if arguments.dry_run:
        return 0
    key = None if arguments.key is None else _key_file(arguments.key, new=not arguments.add)
    try:
        with _progress(len(inputs), "images", arguments.out) as bar:
            outcomes = build_from_images(
                inputs, arguments.out, options, add=arguments.add, overwrite=arguments.overwrite,
                restart=arguments.restart, key=key, progress=bar.update,
            )  # fmt: skip
    except NothingUsable as error:
        print_outcomes(error.outcomes)
        raise
    print_outcomes(outcomes)
    print_summary(arguments.out)
    return 0


def run_phantom(arguments: argparse.Namespace) -> int:
    """Simulate."""
    from ..training.data.phantom_data import PhantomOptions, build_phantoms

    options = options_of(PhantomOptions, arguments)
    with _progress(options.subjects * options.draws, "volumes", arguments.out) as bar:
        build_phantoms(
            arguments.out, options, held_out=arguments.held_out, workers=arguments.workers,
            overwrite=arguments.overwrite, restart=arguments.restart, progress=bar.update,
        )  # fmt: skip
    print_summary(arguments.out)
    return 0


def run_show(arguments: argparse.Namespace) -> int:
    """Print and draw."""
    import json

    from ..training.data.volume_file import VolumeFile, rejected_inputs
    from ..training.volume_sheet import volume_sheet

    file = VolumeFile(arguments.file)
    for name in ("kind", "created_by", "axes", "intensity_rule"):
        print(f"{name.replace('_', ' ')}: {file.attributes[name]}")
    print(f"settings: {json.dumps(json.loads(file.attributes['settings']), sort_keys=True)}")
    rows = [
        {
            "volume": info.name, "subject": info.subject, "split": info.split, "tracer": info.tracer,
            "voxels": " x ".join(map(str, info.shape)), "scale": f"{info.intensity_scale:.4g}",
            "anatomy": info.modality, "MB": f"{info.bytes_on_disk / 1e6:.1f}", "notes": info.notes,
        }
        for info in file.infos
    ]  # fmt: skip
    print()
    print_table(rows)
    rejected = rejected_inputs(arguments.file)
    if rejected:
        print(f"\n{len(rejected)} inputs were left out:")
        print_table([{"input": str(n), "source": source, "reason": reason} for n, source, reason in rejected])
    figure = arguments.figure or arguments.file.with_suffix(".png")
    volume_sheet(figure, file)
    print()
    print_summary(arguments.file)
    print(f"figure: {figure}")
    return 0


def _only_image(folder: Path, inside: list[Path]) -> Path:
    """The image of a folder that holds one: of several, nothing would say whose each is."""
    if len(inside) > 1:
        raise ValueError(
            f"{folder} holds {len(inside)} images, and nothing says whose each is: give one MR or CT image for each of "
            "the IMAGES, in their order, or a --manifest"
        )
    return inside[0]


def _key_file(path: Path, new: bool) -> bytes:
    """The key in a private file, which is made if it does not exist and may be ``new``."""
    import secrets

    from ..files.atomic import atomic_path

    if not path.exists():
        if not new:
            raise FileNotFoundError(f"--key {path} does not exist: --add needs the key that the file was built with")
        with atomic_path(path) as temporary:
            temporary.touch(0o600)
            temporary.write_text(secrets.token_hex(32) + "\n", encoding="ascii")
    try:
        key = bytes.fromhex(read_text(path, 4096).strip())
    except ValueError:
        key = b""
    if len(key) < 16:
        raise ValueError(f"--key {path} holds no key of this program: name a file that does not exist")
    return key


@contextmanager
def _progress(total: int, unit: str, out: Path) -> Iterator[Any]:
    from ..files.progress import progress_bar

    try:
        with progress_bar(total, unit, unit) as bar:
            yield bar
    except KeyboardInterrupt:
        print(f"\nstopped: give the same command again to go on where it was ({out}.parts)", file=sys.stderr)
        raise
