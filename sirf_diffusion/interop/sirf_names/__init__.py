"""The embedded engine under the names of ``sirf.STIR``: one script runs on either.

Signatures, semantics and numbers follow SIRF, and the names that this package adds (`ScorePrior`, `AnchorPrior`,
`BowsherPrior`, `PythonPrior`, `ScoreImageProcessor`) are those of `sirf_diffusion.interop.sirf`. What is missing here
(scatter, list mode, TOF, other scanners' normalisation files) is missing as a name: a script stops where it asks for it
and is told what to use instead.

Examples
--------
>>> import sirf_diffusion
>>> pet = sirf_diffusion.get_engine("embedded")
>>> image = pet.ImageData()
>>> image.initialise((1, 4, 4), (2.0, 2.0, 2.0))
>>> (image.fill(2) * 3 + 1).max()
7.0
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from ...geometry.scanners import scanner_names
from .containers import ContiguousError, DataContainer, error
from .data import AcquisitionData, ImageData
from .models import AcquisitionModelUsingRayTracingMatrix, AcquisitionSensitivityModel
from .objective import PoissonLogLikelihoodWithLinearModelForMeanAndProjData, make_Poisson_loglikelihood
from .osmaposl import OSMAPOSLReconstructor
from .priors import (
    AnchorPrior,
    BowsherPrior,
    PLSPrior,
    Prior,
    PythonPrior,
    QuadraticPrior,
    RelativeDifferencePrior,
    ScoreImageProcessor,
    ScorePrior,
)
from .processors import ImageDataProcessor, SeparableGaussianImageFilter, TruncateToCylinderProcessor

__all__ = [
    "AcquisitionData",
    "AcquisitionModelUsingRayTracingMatrix",
    "AcquisitionSensitivityModel",
    "AnchorPrior",
    "BowsherPrior",
    "ContiguousError",
    "DataContainer",
    "ImageData",
    "ImageDataProcessor",
    "MessageRedirector",
    "OSMAPOSLReconstructor",
    "PLSPrior",
    "PoissonLogLikelihoodWithLinearModelForMeanAndProjData",
    "Prior",
    "PythonPrior",
    "QuadraticPrior",
    "RelativeDifferencePrior",
    "ScoreImageProcessor",
    "ScorePrior",
    "SeparableGaussianImageFilter",
    "TruncateToCylinderProcessor",
    "error",
    "get_engine_version_string",
    "get_verbosity",
    "make_Poisson_loglikelihood",
    "scanner_names",
    "set_verbosity",
]

_INSTEAD = {
    "sinograms in AcquisitionData; list mode data need SIRF": (
        "ListmodeData", "ListmodeToSinograms", "ScanData",
        "PoissonLogLikelihoodWithLinearModelForMeanAndListModeDataWithProjMatrixByBin",
    ),
    "an additive term that SIRF or STIR estimated": ("ScatterEstimator", "SingleScatterSimulator"),
    "OSMAPOSLReconstructor, or sirf_diffusion.OSEM and MAPEM": (
        "FBP2DReconstructor", "FBP3DRPReconstructor", "IterativeReconstructor", "KOSMAPOSLReconstructor",
        "OSSPSReconstructor", "Reconstructor",
    ),
    "AcquisitionModelUsingRayTracingMatrix, whose projector is this engine's": (
        "AcquisitionModel", "AcquisitionModelUsingMatrix", "AcquisitionModelUsingNiftyPET",
        "AcquisitionModelUsingParallelproj", "RayTracingMatrix",
    ),
    "SIRF: this engine has no SPECT": ("PinholeSPECTUBMatrix", "SPECTUBMatrix"),
    "RelativeDifferencePrior or QuadraticPrior": ("CudaRelativeDifferencePrior", "LogcoshPrior"),
    "make_Poisson_loglikelihood": ("ObjectiveFunction", "PoissonLogLikelihoodWithLinearModelForMean"),
    "arrays: image.fill(array)": ("Box3D", "Ellipsoid", "EllipticCylinder", "Shape"),
    "numpy.random.default_rng(seed).poisson(data.as_array())": ("PoissonNoiseGenerator",),
    "a path of your own; this package's data are sirf_diffusion.load_example(name).folder": (
        "examples_data_path", "existing_filepath", "get_STIR_doc_dir", "get_STIR_examples_dir", "get_engine_doc_dir",
        "get_engine_examples_dir",
    ),
    "get_engine_version_string": ("get_STIR_version_string",),
    "torch.set_num_threads": (
        "get_default_num_omp_threads", "get_max_omp_threads", "set_default_num_omp_threads", "set_max_omp_threads",
    ),
}  # fmt: skip

_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


class MessageRedirector:
    """Sends this package's messages to files or streams for as long as it lives: keep it in a variable.

    Parameters
    ----------
    info, warn, errr
        Where information, warnings and errors go: ``"stdout"``, ``"stderr"``, a file name, or None for nowhere.
    """

    def __init__(self, info: str | None = None, warn: str | None = "stdout", errr: str | None = "stderr") -> None:
        self._logger = logging.getLogger("sirf_diffusion")
        self._before = (self._logger.level, self._logger.propagate)
        self._handlers = [
            _handler(destination, lowest, highest)
            for destination, lowest, highest in (
                (info, logging.INFO, logging.WARNING),
                (warn, logging.WARNING, logging.ERROR),
                (errr, logging.ERROR, sys.maxsize),
            )
        ]
        for handler in self._handlers:
            self._logger.addHandler(handler)
        self._logger.propagate = False
        self._logger.setLevel(logging.INFO if info else logging.WARNING)

    def close(self) -> None:
        """Stop redirecting; also happens when the object is deleted."""
        for handler in self._handlers:
            self._logger.removeHandler(handler)
            handler.close()
        if self._handlers:
            self._logger.setLevel(self._before[0])
            self._logger.propagate = self._before[1]
        self._handlers = []

    def __del__(self) -> None:
        if getattr(self, "_handlers", None):
            self.close()


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    instead = next((use for use, names in _INSTEAD.items() if name in names), "SIRF, by get_engine('sirf')")
    raise AttributeError(f"the embedded engine has no {name}: use {instead}")


def get_engine_version_string() -> str:
    """Name and version of the engine."""
    from ... import __version__

    return f"sirf-diffusion embedded engine {__version__}"


def set_verbosity(verbosity: int) -> None:
    """How much this package's logger passes on: 0 warnings, 1 also information, 2 and more everything."""
    logging.getLogger("sirf_diffusion").setLevel(_LEVELS[min(max(int(verbosity), 0), len(_LEVELS) - 1)])


def get_verbosity() -> int:
    """The verbosity as :func:`set_verbosity` takes it."""
    level = logging.getLogger("sirf_diffusion").getEffectiveLevel()
    return max((number for number, value in enumerate(_LEVELS) if value >= level), default=0)


def _handler(destination: str | None, lowest: int, highest: int) -> logging.Handler:
    if not destination:
        handler: logging.Handler = logging.NullHandler()
    elif destination in ("stdout", "cout"):
        handler = logging.StreamHandler(sys.stdout)
    elif destination in ("stderr", "cerr"):
        handler = logging.StreamHandler(sys.stderr)
    else:
        handler = logging.FileHandler(destination)
    handler.addFilter(lambda record: lowest <= record.levelno < highest)
    return handler
