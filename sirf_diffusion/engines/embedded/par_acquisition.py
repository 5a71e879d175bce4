"""The embedded engine's reading of a STIR parameter file: the acquisition that its objective function describes."""

from __future__ import annotations

import logging
import math

from torch import Tensor

from ...files.interfile import read_image, read_projection_data
from ...files.parfile import ParBlock, ParFileError, fold
from ...files.parfile.run import ParRun
from ...geometry.images import ImageGeometry
from ...geometry.projdata import ProjDataGeometry
from ...interop.stir.par_prior import check_keys
from .acquisition import Acquisition
from .par_projector import read_projector_pair, read_ray_tracing

logger = logging.getLogger(__name__)

_REFUSAL = "the embedded engine has no counterpart of"
_ADVICE = "use --engine stir, with STIR's Python module installed"


def read_acquisition(run: ParRun) -> tuple[Acquisition, Tensor | None]:
    """Data and models of a parameter file, for the embedded engine.

    What is read: projection data, additive sinogram, normalisation from projection data (which STIR *divides* by: the
    multiplicative factors are their reciprocals), from an attenuation image, or chained, ray tracing projectors, the
    image's size and zoom, the initial estimate. File names are relative to the working folder, as STIR takes them.

    Returns
    -------
    tuple
        The acquisition, and the image of ``initial estimate``; None if there is none.

    Raises
    ------
    ParFileError
        For everything else that would change the image, by name and line.
    """
    block = run.par.objective()
    if block.name != "poissonloglikelihoodwithlinearmodelformeanandprojdata parameters":
        raise ParFileError(f"{block.path}:{block.line}: {_REFUSAL} '{block.name}'; {_ADVICE}")
    _check_objective(block, run.num_subsets)
    related_views = read_projector_pair(block)
    prompts = _required(block, "input file")
    counts, projdata = read_projection_data(prompts)
    _check_segments(block, projdata)
    sources = {"parameter file": run.par.path, "prompts": prompts}
    additive = block.text("additive sinogram", "0")
    terms = _Normalisation(prompts, projdata)
    terms.read(*block.object("bin normalisation type"), where=block)
    values = None
    if additive != "0":
        values = terms.matching(additive)
        sources["additive"] = additive
    initial, geometry = None, _image_grid(block, projdata)
    if run.initial_estimate is not None:
        # As in STIR, the first image's grid is that of the result.
        initial, geometry = read_image(run.initial_estimate)
    return (
        Acquisition(
            counts,
            projdata,
            geometry,
            multiplicative=terms.factors,
            additive=values,
            attenuation=terms.attenuation,
            attenuation_geometry=terms.attenuation_geometry,
            related_views=related_views,
            sources=sources | terms.sources,
        ),
        initial,
    )


class _Normalisation:
    """Multiplicative factors and attenuation image from the blocks of ``Bin Normalisation type``."""

    def __init__(self, prompts: str, projdata: ProjDataGeometry) -> None:
        self.prompts, self.projdata = prompts, projdata
        self.factors: Tensor | None = None
        self.attenuation: Tensor | None = None
        self.attenuation_geometry: ImageGeometry | None = None
        self.sources: dict[str, str] = {}

    def read(self, kind: str, block: ParBlock | None, where: ParBlock) -> None:
        if not kind or block is None:
            return
        if kind == "chained":
            names = ("bin normalisation to apply first", "bin normalisation to apply second")
            check_keys(block, set(names), _REFUSAL)
            for name in names:
                self.read(*block.object(name), where=block)
        elif kind == "from projdata":
            check_keys(block, {"normalisation projdata filename"}, _REFUSAL)
            self._divide_by(_required(block, "normalisation projdata filename"))
        elif kind == "from attenuation image":
            self._attenuate(block)
        else:
            raise ParFileError(f"{where.path}:{block.line}: {_REFUSAL} the normalisation '{kind}'; {_ADVICE}")

    def matching(self, path: str) -> Tensor:
        """Projection data with the layout of the prompts."""
        values, layout = read_projection_data(path)
        if differences := self.projdata.differences(layout):
            raise ParFileError(f"{path} does not match {self.prompts}: {'; '.join(differences)}")
        return values

    def _divide_by(self, path: str) -> None:
        norm = self.matching(path)
        if not bool((norm > 0).all()):
            number = int((~(norm > 0)).sum())
            raise ParFileError(
                f"{path} holds {number} normalisation factors that are not positive. STIR divides by them: 0 would be "
                "an infinite efficiency. A dead bin has a very large factor, such as 1e30"
            )
        efficiency = 1 / norm
        self.factors = efficiency if self.factors is None else self.factors * efficiency
        names = [self.sources["normalisation"]] if "normalisation" in self.sources else []
        self.sources["normalisation"] = ", ".join([*names, path])

    def _attenuate(self, block: ParBlock) -> None:
        check_keys(block, {"attenuation image filename", "forward projector type"}, _REFUSAL)
        if self.attenuation is not None:
            raise ParFileError(f"{block.path}:{block.line}: {_REFUSAL} a second attenuation image; add the two up")
        kind, projector = block.object("forward projector type")
        if kind == "matrix" and projector is not None:
            read_ray_tracing(projector)
        elif kind not in ("", "ray tracing"):
            raise block.error(
                "forward projector type", f"({kind}) has no counterpart in the embedded engine; {_ADVICE}"
            )
        path = _required(block, "attenuation image filename")
        self.attenuation, self.attenuation_geometry = read_image(path)
        self.sources["attenuation"] = path


def _check_objective(block: ParBlock, num_subsets: int) -> None:
    check_keys(block, _KNOWN, _REFUSAL)
    for name in ("zero end planes of segment 0", "use time-of-flight sensitivities"):
        if block.boolean(name):
            raise block.error(name, f"has no counterpart in the embedded engine; {_ADVICE}")
    if block.integer("time frame number", 1) != 1:
        raise block.error("time frame number", f"must be 1 for the embedded engine; {_ADVICE}")
    if not block.boolean("use subset sensitivities", True) and num_subsets > 1:
        raise block.error(
            "use subset sensitivities", "must be 1: the embedded engine has the sensitivity of each subset"
        )
    stored = [name for name in ("sensitivity filename", "subset sensitivity filenames") if name in block]
    if stored and not block.boolean("recompute sensitivity"):
        raise block.error(
            stored[0], "is not read, the embedded engine computes its own: set 'recompute sensitivity := 1'"
        )


def _check_segments(block: ParBlock, projdata: ProjDataGeometry) -> None:
    highest = block.integer("maximum absolute segment number to process", -1)
    there = max(abs(segment.num) for segment in projdata.segments)
    if highest not in (-1, there):
        raise block.error(
            "maximum absolute segment number to process",
            f"({highest}) leaves out segments of {block.text('input file')}, which has them up to {there}: the "
            f"embedded engine uses all. Extract the segments with STIR's SSRB or stir_subsinograms; or {_ADVICE}",
        )


def _image_grid(block: ParBlock, projdata: ProjDataGeometry) -> ImageGeometry:
    """Grid that STIR makes of the data, ``zoom`` and sizes: odd, and covering the tangential positions."""
    scanner, direct = projdata.scanner, next(s for s in projdata.segments if s.num == 0)
    zoom, zoom_z = block.real("zoom", 1.0), block.real("Z zoom", 1.0)
    for name, value in (("zoom", zoom), ("Z zoom", zoom_z)):
        if not value > 0:
            raise block.error(name, f"must be positive, found {value}")
    voxel = scanner.default_bin_size / zoom
    size, num_planes = (
        block.integer("XY output image size (in pixels)", -1),
        block.integer("Z output image size (in pixels)", -1),
    )
    if size == -1:
        size = 2 * math.ceil(float(projdata.tangential_positions().abs().max()) / voxel) + 1
    if num_planes == -1:
        spans = direct.max_ring_difference > direct.min_ring_difference
        num_planes = direct.num_axial_positions if spans else 2 * direct.num_axial_positions - 1
    return ImageGeometry(
        (num_planes, size, size),
        (scanner.ring_spacing / 2 / zoom_z, voxel, voxel),
        (block.real("Z offset (in mm)", 0.0), 0.0, 0.0),
    )


def _required(block: ParBlock, name: str) -> str:
    value = block.text(name)
    if not value:
        raise ParFileError(f"{block.path}:{block.line}: '{fold(name)}' is missing")
    return value


_KNOWN = {
    fold(name)
    for name in (
        "input file", "additive sinogram", "Bin Normalisation type", "Projector pair type", "prior type",
        "maximum absolute segment number to process", "zero end planes of segment 0", "zoom", "Z zoom",
        "XY output image size (in pixels)", "Z output image size (in pixels)", "Z offset (in mm)",
        "sensitivity filename", "subset sensitivity filenames", "recompute sensitivity", "use subset sensitivities",
        "use time-of-flight sensitivities", "time frame number",
        # Of STIR's distribution over several computers: they change no number.
        "enable distributed caching", "enable distributed tests", "enable message timings",
        "message timings threshold", "enable rpc timings",
    )
}  # fmt: skip
