"""The names that the compiled executables know, or a table of STIR's where nothing is compiled yet."""

from __future__ import annotations

import functools
import logging
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stir_priors.build import Build, ShimError, find_builds

from .blocks import BLOCKS

logger = logging.getLogger(__name__)

#: Names that STIR 6 registers by kind of object, those that depend on how it was built included.
NAMES = {
    "objective function": (
        "PoissonLogLikelihoodWithLinearModelForMeanAndProjData",
        "PoissonLogLikelihoodWithLinearModelForMeanAndListModeDataWithProjMatrixByBin",
        "PoissonLogLikelihoodWithLinearModelForMeanAndGatedProjDataWithMotion",
    ),
    "prior": (
        "FilterRootPrior", "Quadratic", "Relative Difference Prior", "Logcosh", "PLS", "Gibbs Quadratic",
        "Gibbs Relative Difference", "Cuda Gibbs Quadratic", "Cuda Gibbs Relative Difference",
        "Cuda Relative Difference Prior",
    ),
    "projector pair": ("Matrix", "Separate Projectors", "Parallelproj", "NiftyPET"),
    "forward projector": ("Matrix", "Pre Smoothing", "Post Smoothing", "Ray Tracing", "Parallelproj", "NiftyPET"),
    "back projector": ("Interpolation", "Matrix", "Post Smoothing", "Parallelproj", "NiftyPET"),
    "matrix": ("From File", "Interpolation", "Ray Tracing", "SPECT UB", "Pinhole SPECT UB"),
    "bin normalisation": (
        "Chained", "From Attenuation Image", "From ECAT7", "From ECAT8", "From GE HDF5", "From PETSIRD",
        "From ProjData", "PETComponents", "SPECT",
    ),
    "data processor": (
        "Chained Data Processor", "Gamma", "HUToMu", "Maximal", "Median", "Minimal",
        "Nonseparable Convolution Using Real DFT Image Filter", "Separable Cartesian Metz", "Separable Convolution",
        "Separable Gaussian", "Threshold Min To Small Positive Value", "Truncate To Cylindrical FOV", "Wiener",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Names:
    """Registered names by kind of object, where they come from (for messages), and whether from compiled programs."""

    by_kind: Mapping[str, Sequence[str]]
    source: str
    compiled: bool


def built_in_names() -> Names:
    """STIR 6's own names and ours, without asking any executable.

    Examples
    --------
    >>> "Diffusion Score" in built_in_names().by_kind["prior"]
    True
    """
    by_kind = {kind: list(names) for kind, names in NAMES.items()}
    for block in BLOCKS:
        by_kind[block.kind].append(block.name)
    source = "a built-in table of STIR 6 names (nothing is compiled here: stir-diffusion build)"
    return Names(by_kind, source, compiled=False)


def known_names() -> Names:
    """Names that the compiled OSMAPOSL knows; those of a table if nothing is compiled here.

    Kinds that the program does not list are taken from the table.
    """
    table = built_in_names()
    builds = find_builds()
    if not builds:
        return table
    build = builds[0]
    listed = _listed(build)
    if not listed:
        logger.warning("%s does not list its names; they are compared with a table of STIR 6's", build.folder)
        return table
    return Names(
        {**table.by_kind, **listed}, f"STIR {build.stir_version} with our priors ({build.folder})", compiled=True
    )


@functools.lru_cache
def _listed(build: Build) -> dict[str, list[str]]:
    """What ``OSMAPOSL --registered`` says: lines of kind, tab and name."""
    try:
        answer = subprocess.run(
            [build.program("OSMAPOSL"), "--registered"], capture_output=True, text=True, timeout=60, check=True
        )
    except (ShimError, OSError, subprocess.SubprocessError):
        logger.debug("OSMAPOSL --registered failed", exc_info=True)
        return {}
    by_kind: dict[str, list[str]] = {}
    for line in answer.stdout.splitlines():
        kind, tab, name = line.partition("\t")
        if tab and name != "None":
            by_kind.setdefault(kind, []).append(name)
    return by_kind
