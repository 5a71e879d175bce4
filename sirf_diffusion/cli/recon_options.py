"""Options of ``sirf-diffusion recon``, and the study that they ask for."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engines import PROJECTORS
from ..geometry.checks import LARGEST_COUNT, check_real
from ..models.storage import DEFAULT_MODEL
from ..reconstructors.methods import ADAPTATIONS, METHODS, NUM_SAMPLES, adaptation_for, build_adaptation
from ..reconstructors.settings import DEFAULT_SPEED, SPEEDS
from ..study.guide import TARGETS
from ..study.reconstruction import CHECKPOINT_SECONDS
from .command_line import add_machine, add_precision, real, seed, whole

if TYPE_CHECKING:
    from ..reconstructors.adaptation.network_adaptation import NetworkAdaptation
    from ..study.reconstruction import Study

#: Options that name a file of the data.
FILES = ("prompts", "multiplicative", "additive", "attenuation", "initial", "par")


def _listed(kinds: Mapping[str, Any]) -> str:
    return "\n".join(f"  {name:<10} {kind.about}" for name, kind in kinds.items())


ABOUT = f"""\
Reconstruct STIR Interfile data. Writes the image (reconstruction.hv), record.json and report.png, and for methods that
draw posterior samples samples.h5 and their standard deviation (uncertainty.hv): calibrated, so that image +- 1.96 x
uncertainty covers 95 %, where that was measured with the model; record.json says with which factor, or why not. Patient
position, time frames and radionuclide of the prompts are kept.

methods (--method):
{_listed(METHODS)}

adaptations of the network (--adapt):
{_listed(ADAPTATIONS)}

--list-settings METHOD lists their settings with default, range and meaning.

NAME#2 is the second time frame of a file with several, wherever a file is named.

The grid of the image is that of --initial, else of --attenuation, else the scanner's whole field of view with the
model's in-plane voxel size (the scanner's default bin size without a model).

With --par an existing parameter file of STIR's OSMAPOSL or OSSPS says what the data are. STIR itself reads it where its
Python module is installed; otherwise the embedded engine reads projection data, additive sinogram, normalisation from
projection data and attenuation image, ray tracing, image size and initial estimate, and refuses everything else by
name. The file's prior is replaced by the method's, or kept with --keep-prior (map-rdp: relative difference and
quadratic prior; map-score: Diffusion Score). osem takes subsets and subiterations from the file.

A run that was stopped (Ctrl-C, the signals of batch systems, a kill) or whose result could not be written goes on when
the same command is given again, and gives the same image; --out holds what it needs until the result is there.

--workers and --cluster share the posterior samples out: the result is that of one process, to rounding. On a cluster,
all paths must mean the same files everywhere.
"""

EXAMPLES = """\
  sirf-diffusion recon --prompts prompts.hs --multiplicative norm.hs --additive scatter_and_randoms.hs \\
      --attenuation mu.hv --model brain-fdg --method lisch --out results/lisch
  sirf-diffusion recon --par OSMAPOSL.par --model brain-fdg --method lisch --out results/par
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    data = parser.add_argument_group("data (STIR Interfile)")
    what = data.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompts", type=Path, metavar="P.hs", help="measured counts, uncorrected")
    what.add_argument("--par", type=Path, metavar="FILE.par", help="parameter file of OSMAPOSL or OSSPS instead")
    for option, metavar, text in (
        ("--multiplicative", "M.hs", "factors: detection efficiency (1 / normalisation)"),
        ("--additive", "A.hs", "expected scatter and randoms, divided by the multiplicative factors"),
        ("--attenuation", "MU.hv", "attenuation image in 1/cm; leave out if --multiplicative has attenuation in it"),
        ("--initial", "X.hv", "image to start from; its grid is that of the result"),
    ):
        data.add_argument(option, type=Path, metavar=metavar, help=text)
    data.add_argument(
        "--attenuation-in-factors",
        choices=("yes", "no"),
        help="whether the factors hold attenuation already (yes: that of --attenuation is not applied again); if not "
        "said, data that seem to have it twice are refused",
    )
    data.add_argument(
        "--engine",
        choices=("auto", "stir", "embedded"),
        help="with --par: who reads it; default: auto, STIR if its Python module is installed",
    )
    data.add_argument(
        "--projector",
        choices=PROJECTORS,
        default=PROJECTORS[0],
        help="of what STIR reads: its own (toolkit, default), or the embedded engine's (embedded), many times faster; "
        "cylindrical scanners, no TOF, no list mode",
    )
    data.add_argument("--keep-prior", action="store_true", help="with --par: run the file's own prior")
    anatomy = parser.add_argument_group("anatomical image, for models that were trained with one")
    anatomy.add_argument(
        "--anatomical",
        type=Path,
        metavar="FILE",
        help="MR or CT on any grid, which is resampled: Interfile, NIfTI, or a folder with one DICOM series; a "
        "personalised model only makes sure that it is its patient's",
    )
    anatomy.add_argument(
        "--guidance",
        type=real(-1e3, 1e3),
        default=0.0,
        metavar="W",
        help="weight of the anatomical image: 0 as trained (default), more exaggerates it, -1 none of it",
    )
    anatomy.add_argument(
        "--register",
        nargs="?",
        const="emission",
        choices=TARGETS,
        help="move it rigidly onto an early OSEM image (emission, default) or onto --attenuation first",
    )
    method = parser.add_argument_group("method")
    method.add_argument("--method", default="lisch", choices=METHODS, help="default: lisch")
    method.add_argument(
        "--model",
        metavar="NAME|FILE",
        help=f"score model, for all methods but osem and map-rdp; default: {DEFAULT_MODEL}",
    )
    method.add_argument(
        "--list-settings",
        action=_ListSettings,
        nargs="?",
        choices=METHODS,
        metavar="METHOD",
        help="list the settings of a method, or of all, with default, range and meaning, and end",
    )
    about = f"of samplers: fewer noise levels, and less to look at; default: {DEFAULT_SPEED}, {SPEEDS[0]} with --adapt"
    method.add_argument("--speed", choices=SPEEDS, help=about)
    about = "ordered subsets of the data; default: the method's own number, or the file's (--par, osem)"
    method.add_argument("--subsets", type=whole(1, LARGEST_COUNT), metavar="N", help=about)
    iteration = "of iso-likelihood: an MLEM iteration"
    method.add_argument("--target-iteration", type=real(0, LARGEST_COUNT), metavar="N", help=iteration)
    method.add_argument("--samples", type=whole(), metavar="K", help=f"posterior samples; default: {NUM_SAMPLES}")
    method.add_argument("--seed", type=seed, default=0, metavar="S", help="default: 0")
    _add_settings(method, "--set", "settings", "method")
    adaptation = parser.add_argument_group("adaptation of the network to the data, for methods that draw samples")
    adaptation.add_argument(
        "--adapt",
        choices=("none", *ADAPTATIONS),
        help="default: none, but for the methods ddip and steerable, which have their own",
    )
    _add_settings(adaptation, "--adapt-set", "adapt_settings", "adaptation")
    adaptation.add_argument(
        "--adapter", type=Path, metavar="FILE", help="start from a kept adapter; with --adapt none it is used as it is"
    )
    adaptation.add_argument(
        "--save-adapter", type=Path, metavar="FILE", help="keep what was learnt, for the next patient"
    )
    group = parser.add_argument_group("run")
    add_machine(group)
    add_precision(group)
    group.add_argument(
        "--workers", type=whole(1, 4096), default=1, metavar="N", help="share the samples among N processes; default: 1"
    )
    group.add_argument("--cluster", metavar="ADDRESS", help="or among the workers of a Dask scheduler")
    result = parser.add_argument_group("result")
    result.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the result")
    result.add_argument("--overwrite", action="store_true", help="replace another result in --out, and --save-adapter")
    result.add_argument(
        "--checkpoint-every",
        type=real(0, 1e9),
        default=CHECKPOINT_SECONDS,
        metavar="SECONDS",
        help="how often the state of the run is kept, in --out; default: %(default)g",
    )
    result.add_argument("--restart", action="store_true", help="begin anew, whatever an earlier run kept in --out")
    result.add_argument(
        "--format", choices=("hv", "nifti", "both"), default="hv", help="of images: Interfile (default), NIfTI or both"
    )
    result.add_argument(
        "--bids-json", action="store_true", help="write the JSON file of a BIDS PET derivative beside NIfTI images"
    )
    result.add_argument(
        "--like", type=Path, metavar="DICOM", help="write a DICOM PET series too, of the study of this series"
    )
    result.add_argument(
        "--vois",
        type=Path,
        metavar="LABELS",
        help="label image on any grid (0: none): writes vois.csv with the mean of each VOI and its interval of 95 %%",
    )
    result.add_argument(
        "--calibration",
        metavar="FACTOR|header",
        help="write images in Bq/ml: multiplied by FACTOR, or by the calibration factor in the header of the prompts",
    )


class _ListSettings(argparse.Action):
    """Prints the settings and ends the program, as ``--help`` does: other options are not needed."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None) -> None:
        from ..reconstructors.listing import settings_list

        print("\n\n".join(settings_list(name) for name in ([values] if values else METHODS)))
        parser.exit()


def _add_settings(group: argparse._ArgumentGroup, option: str, name: str, of: str) -> None:
    about = f"a setting of the {of}, see --list-settings; may be repeated"
    group.add_argument(option, action="append", default=[], dest=name, metavar="NAME=VALUE", help=about)


def study_of(arguments: argparse.Namespace, callbacks: Sequence[Any] = ()) -> Study:
    """What the options ask for, checked but not computed."""
    from ..study.data import InterfileData
    from ..study.reconstruction import Study

    iteration = {} if arguments.target_iteration is None else {"num_em_iterations": arguments.target_iteration}
    settings = parse_settings(arguments.settings)
    if iteration and (arguments.method != "iso-likelihood" or "num_em_iterations" in settings):
        raise ValueError(
            "--target-iteration is for --method iso-likelihood, without --set num_em_iterations; lisch takes that"
        )
    in_factors = {"yes": True, "no": False}.get(arguments.attenuation_in_factors)
    if arguments.par is None:
        files = {name: getattr(arguments, name) for name in FILES if name != "par"}
        data, in_factors = InterfileData(**files, attenuation_in_factors=in_factors), None
    else:
        data = str(arguments.par)
        for name in FILES[1:-1]:
            if getattr(arguments, name) is not None:
                raise ValueError(f"--{name}: with --par the parameter file names the data; leave it out")
    return Study(
        data,
        arguments.method,
        model=arguments.model,
        num_samples=arguments.samples,
        seed=arguments.seed,
        device=arguments.device,
        precision=arguments.precision,
        settings=settings | iteration,
        speed=arguments.speed,
        anatomical=arguments.anatomical,
        guidance=arguments.guidance,
        register_to=arguments.register,
        adaptation=_adaptation_of(arguments),
        projector=arguments.projector,
        engine=arguments.engine,
        keep_prior=arguments.keep_prior,
        num_subsets=arguments.subsets,
        attenuation_in_factors=in_factors,
        vois=arguments.vois,
        callbacks=callbacks,
        checkpoint_every=arguments.checkpoint_every,
    )


def calibration_of(text: str | None, study: Study) -> float | None:
    """The factor that was given; None for none, and for that of the header."""
    if text is None:
        return None
    if text == "header":
        from ..files.interfile import InterfileError, UnsupportedError, read_exam_info

        prompts = study.data.prompts if study.par is None else study.par.run.files().get("input file", "")
        with suppress(InterfileError, UnsupportedError, OSError):  # list mode; faults are said when it is read
            if read_exam_info(prompts).calibration_factor is None:
                raise ValueError(f"--calibration header: {prompts} has no calibration factor; give it as a number")
        return None
    try:
        return check_real("--calibration", float(text), open_below=True)
    except ValueError as error:
        raise ValueError(f"--calibration {text}: expected a positive number, or the word header") from error


def parse_settings(texts: Sequence[str], option: str = "--set") -> dict[str, Any]:
    """``NAME=VALUE`` texts as a dictionary; values are numbers, ``None`` or words.

    Examples
    --------
    >>> parse_settings(["eta=0.5", "num_steps=20", "planes=three"])
    {'eta': 0.5, 'num_steps': 20, 'planes': 'three'}
    """
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ValueError(f"{option} {text}: expected NAME=VALUE, for example --set num_steps=40")
        try:
            settings[name.strip().replace("-", "_")] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[name.strip().replace("-", "_")] = value
    return settings


def _adaptation_of(arguments: argparse.Namespace) -> NetworkAdaptation | None:
    method, settings = METHODS[arguments.method], parse_settings(arguments.adapt_settings, "--adapt-set")
    name = arguments.adapt or getattr(method.own_adaptation, "name", "none")
    if name == "none":
        if method.own_adaptation is not None:
            raise ValueError(f"--adapt none: {method.method} is nothing without adaptation; use lisch, dds or hqs")
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
