"""``sirf-diffusion recon``: reconstruct STIR Interfile data, or those of a parameter file, by a named method."""

from __future__ import annotations

import argparse
import ast
import logging
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models.storage import DEFAULT_MODEL
from ..reconstructors.methods import METHODS, NUM_SAMPLES, Method
from ..study.guide import TARGETS, Guide
from .adapt import ABOUT, adaptation_of, add_options
from .command_line import add_precision

if TYPE_CHECKING:
    from sirf_diffusion.study.execution import Execution

    from ..study.reconstruction import Reconstruction

logger = logging.getLogger(__name__)


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


_SETTINGS = "\n".join(
    f"  {m.name:<10} {m.about}\n{'':13}{_listed(m.settings)}"
    + (f"\n{'':13}in volumes: {_listed(m.volumes)}" if m.volumes else "")
    for m in METHODS.values()
)

_DESCRIPTION = f"""\
Reconstruct STIR Interfile data. Writes reconstruction.hv, record.json and report.png, and for methods that draw
posterior samples samples.h5 and uncertainty.hv (their standard deviation).

methods, and their settings with defaults (change with --set NAME=VALUE):
{_SETTINGS}

adaptations of the network (--adapt), and their settings with defaults (change with --adapt-set NAME=VALUE):
{ABOUT}

The grid of the image is that of --initial, else of --attenuation, else the scanner's whole field of view with the
model's in-plane voxel size (the scanner's default bin size without a model).

With --par an existing parameter file of STIR's OSMAPOSL or OSSPS says what the data are. STIR itself reads it where its
Python module is installed; otherwise the embedded engine reads projection data, additive sinogram, normalisation from
projection data and attenuation image, ray tracing, image size and initial estimate, and refuses everything else by
name. The file's prior is replaced by the method's, or kept with --keep-prior (map-rdp: relative difference and
quadratic prior; map-score: Diffusion Score). osem takes subsets and subiterations from the file.

--workers and --cluster share the posterior samples out: the result is that of one process, to rounding. On a cluster,
all paths must mean the same files everywhere.
"""

_EPILOG = """\
example:
  sirf-diffusion recon --prompts prompts.hs --multiplicative norm.hs --additive scatter_and_randoms.hs \\
      --attenuation mu.hv --model brain-fdg --method lisch --out results/lisch
  sirf-diffusion recon --par OSMAPOSL.par --model brain-fdg --method lisch --out results/lisch
"""


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser = subparsers.add_parser(
        "recon",
        parents=[common],
        help="reconstruct your own data",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data = parser.add_argument_group("data (STIR Interfile)")
    what = data.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompts", type=Path, metavar="P.hs", help="measured counts, uncorrected")
    what.add_argument("--par", type=Path, metavar="FILE.par", help="parameter file of OSMAPOSL or OSSPS instead")
    data.add_argument(
        "--multiplicative", type=Path, metavar="M.hs", help="factors: detection efficiency (1 / normalisation)"
    )
    data.add_argument(
        "--additive",
        type=Path,
        metavar="A.hs",
        help="expected scatter and randoms, divided by the multiplicative factors",
    )
    data.add_argument(
        "--attenuation",
        type=Path,
        metavar="MU.hv",
        help="attenuation image in 1/cm; leave out if --multiplicative has attenuation in it",
    )
    data.add_argument(
        "--initial", type=Path, metavar="X.hv", help="image to start from; its grid is that of the result"
    )
    data.add_argument(
        "--engine",
        choices=("auto", "stir", "embedded"),
        help="with --par: who reads it; default: auto, STIR if its Python module is installed",
    )
    data.add_argument("--keep-prior", action="store_true", help="with --par: run the file's own prior")
    anatomy = parser.add_argument_group("anatomical image, for models that were trained with one")
    anatomy.add_argument(
        "--anatomical",
        type=Path,
        metavar="FILE",
        help="MR or CT on any grid, which is resampled: Interfile, NIfTI, or a folder with one DICOM series",
    )
    anatomy.add_argument(
        "--guidance",
        type=float,
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
    method.add_argument("--samples", type=int, metavar="K", help=f"posterior samples; default: {NUM_SAMPLES}")
    method.add_argument("--seed", type=int, default=0, metavar="S", help="default: 0")
    method.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="NAME=VALUE",
        help="a setting of the method, see above; may be repeated",
    )
    add_options(parser)
    run_group = parser.add_argument_group("run")
    run_group.add_argument("--device", default="auto", metavar="auto|cpu|cuda", help="default: auto")
    add_precision(run_group)
    run_group.add_argument("--threads", type=int, metavar="N", help="CPU threads; default: PyTorch's choice")
    run_group.add_argument(
        "--workers", type=int, default=1, metavar="N", help="share the samples among N processes; default: 1"
    )
    run_group.add_argument("--cluster", metavar="ADDRESS", help="or among the workers of a Dask scheduler")
    run_group.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the result")
    run_group.add_argument("--overwrite", action="store_true", help="replace another result in --out")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Reconstruct and write."""
    from sirf_diffusion.study.execution import make_execution

    from ..files.outputs import OutputFolder
    from ..reconstructors.records import LogCallback, ProgressBar

    study = _Study.of(arguments)
    method, adaptation, guide, request = study.method, study.adaptation, study.guide, study.request
    shared = arguments.workers != 1 or arguments.cluster is not None
    if shared:
        _check_shared(method, adaptation)
    folder = OutputFolder(
        arguments.out,
        {
            "method": method.name,
            "files": {name: getattr(arguments, name) for name in _FILES if getattr(arguments, name) is not None},
            "model": None if study.model is None else study.model.hash,
            "precision": arguments.precision,
            "samples": arguments.samples,
            "seed": arguments.seed,
            "values": study.values,
            **({} if adaptation is None else {"adaptation": adaptation.settings, "adapter": arguments.adapter}),
            **({} if guide == Guide() else {"anatomical": asdict(guide)}),
            **({} if request is None else {"engine": request.engine, "keep_prior": request.keep_prior}),
        },
        overwrite=arguments.overwrite,
    )
    folder.check()
    if shared:
        result = study.reconstruct_shared(make_execution(arguments.workers, arguments.cluster))
    else:
        result = study.reconstruct(callbacks=[ProgressBar()] if sys.stderr.isatty() else [LogCallback()])
    record = result.record
    if request is not None:
        record.update(request.record())
    result.save(folder)
    if arguments.save_adapter is not None:
        adaptation.save(arguments.save_adapter)
        print(f"{arguments.save_adapter}: adapter for the next scan (--adapter)")
    projections = record["projections"]
    print(f"{arguments.out}: {record['title']}")
    print(
        f"{projections['forward']:.4g} forward and {projections['back']:.4g} back projections, "
        f"{record['network_evaluations']} network evaluations, {record['seconds']['total']:.1f} s"
        + (f" in {len(record['shares'])} shares" if shared else "")
    )
    if method.samples and result.uncertainty is None:
        print("one sample has no standard deviation: no uncertainty.hv (--samples 5 gives one)")
    return 0


@dataclass(frozen=True)
class _Study:
    """What the options ask for, read and checked but not computed."""

    arguments: argparse.Namespace
    method: Method
    settings: dict[str, Any]
    values: dict[str, Any]
    model: Any
    guide: Guide
    adaptation: Any
    request: Any

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> _Study:
        from ..environment import select_device
        from ..study.reconstruction import load_model_for

        method = METHODS[arguments.method]
        settings = parse_settings(arguments.settings)
        model_name, request = arguments.model, None
        if arguments.par is not None:
            request = _par_request(arguments, settings)
            settings, model_name = request.settings, request.model
        elif arguments.engine is not None or arguments.keep_prior:
            raise ValueError("--engine and --keep-prior are for --par")
        values = method.with_settings(settings)
        model = load_model_for(method, model_name, select_device(arguments.device), arguments.precision)
        guide = Guide(arguments.anatomical, arguments.guidance or 0.0, arguments.register)
        if request is not None:
            guide = request.guide(guide)
        guide.check(method.name, model)
        adapt_settings = parse_settings(arguments.adapt_settings, "--adapt-set")
        adaptation = adaptation_of(arguments, method, adapt_settings)
        return cls(arguments, method, settings, values, model, guide, adaptation, request)

    def source(self) -> tuple[Any, dict[str, Any]]:
        """The data, and what they add to the arguments of ``reconstruct_from``."""
        if self.request is None:
            return _from_files(self.arguments, self.model)
        return self.request.source(), self.request.options

    def reconstruct(self, **more: Any) -> Reconstruction:
        from ..study.reconstruction import reconstruct_from

        source, options = self.source()
        return reconstruct_from(
            source,
            self.method.name,
            model=self.model,
            num_samples=self.arguments.samples,
            seed=self.arguments.seed,
            device=self.arguments.device,
            settings=self.settings,
            anatomical=self.guide.anatomical,
            guidance=self.guide.guidance,
            register_to=self.guide.register_to,
            adaptation=self.adaptation,
            **options,
            **more,
        )

    def reconstruct_shared(self, execution: Execution) -> Reconstruction:
        from ..study.sharing import merge, share_out

        number = NUM_SAMPLES if self.arguments.samples is None else self.arguments.samples
        jobs = [(self.arguments, members) for members in share_out(number, execution.num_workers)]
        shares = []
        for share in execution.results(reconstruct_share, jobs):
            logger.info("samples %s of %d are done", share.record["members"], number)
            shares.append(share)
        device, guidance = self.arguments.device, self.guide.guidance
        return merge(shares, self.source()[0], self.model, guidance=guidance, device=device)


def reconstruct_share(job: tuple[argparse.Namespace, range]) -> Reconstruction:
    """Some of the samples that the options ask for; what a worker is given, with the options as they were."""
    arguments, members = job
    return _Study.of(arguments).reconstruct(members=members)


def _check_shared(method: Method, adaptation: Any) -> None:
    if not method.samples:
        raise ValueError(f"--workers and --cluster share posterior samples out; {method.name} gives one image")
    if adaptation is not None:
        raise ValueError(
            "--workers and --cluster: all samples adapt one network together, so that they cannot be shared out; leave "
            "the options out"
        )


def _par_request(arguments: argparse.Namespace, settings: dict[str, Any]) -> Any:
    from .recon_par import ParRequest

    for name in _FILES[1:-1]:
        if getattr(arguments, name) is not None:
            raise ValueError(f"--{name}: with --par the parameter file names the data; leave it out")
    return ParRequest(
        str(arguments.par),
        arguments.method,
        settings,
        arguments.model,
        arguments.keep_prior,
        arguments.engine or "auto",
    )


def _from_files(arguments: argparse.Namespace, model: Any) -> tuple[Any, dict[str, Any]]:
    from ..engines.embedded.acquisition import Acquisition
    from ..files.interfile import read_image
    from ..study.sources import AcquisitionSource

    initial, geometry = (None, None) if arguments.initial is None else read_image(arguments.initial)
    acquisition = Acquisition.from_files(
        arguments.prompts,
        multiplicative=arguments.multiplicative,
        additive=arguments.additive,
        attenuation=arguments.attenuation,
        geometry=geometry,
        voxel_size=None if model is None else tuple(model.voxel_size[1:]),
    )
    return AcquisitionSource(acquisition), {"initial": initial}


_FILES = ("prompts", "multiplicative", "additive", "attenuation", "initial", "par")


def parse_settings(texts: list[str], option: str = "--set") -> dict[str, Any]:
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
