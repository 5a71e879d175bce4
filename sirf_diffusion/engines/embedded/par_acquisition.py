"""The embedded engine's reading of a STIR parameter file: the acquisition that its objective function describes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...files.interfile import read_image, read_projection_data
from ...files.parfile import ParBlock, ParFileError, check_keys, fold
from ...files.parfile.keys import BLOCKS, PROJECTION_DATA
from ...files.parfile.run import ParRun
from ...geometry.images import ImageGeometry
from ...geometry.projdata import ProjDataGeometry
from .acquisition import Acquisition, exam_of_files

logger = logging.getLogger(__name__)

_REFUSAL = "the embedded engine has no counterpart of"
#: Ends messages about what STIR can read.
ADVICE = "; use --engine stir, with STIR's Python module installed"
_ENOUGH_RAYS = 10
_RAYS = "number of rays in tangential direction to trace for each bin"


def read_acquisition(run: ParRun) -> tuple[Acquisition, Tensor | None]:
    """Data and models of a parameter file, and the image of ``initial estimate`` (None if there is none).

    What is read: projection data, additive sinogram, normalisation from projection data (which STIR *divides* by: the
    multiplicative factors are their reciprocals), from an attenuation image, or chained, ray tracing projectors, the
    image's size and zoom, the initial estimate. File names are relative to the working folder, as STIR takes them.
    Raises ParFileError for everything else that would change the image, by name and line.
    """
    block = run.par.objective()
    if block.name != f"{PROJECTION_DATA} parameters":
        raise ParFileError(f"{block.path}:{block.line}: {_REFUSAL} '{block.name}'{ADVICE}")
    _check_objective(block, run.num_subsets)
    related_views = _read_projector_pair(block)
    prompts = _required(block, "input file")
    counts, projdata = read_projection_data(prompts)
    _check_segments(block, projdata)
    terms: dict[str, Any] = {"sources": {"parameter file": run.par.path, "prompts": prompts}}

    def matching(path: str) -> Tensor:
        """Projection data with the layout of the prompts."""
        values, layout = read_projection_data(path)
        if differences := projdata.differences(layout):
            raise ParFileError(f"{path} does not match {prompts}: {'; '.join(differences)}")
        return values

    _read_normalisation(*block.object("bin normalisation type"), where=block, matching=matching, terms=terms)
    additive = block.text("additive sinogram", "0")
    if additive != "0":
        terms["additive"] = matching(additive)
        terms["sources"]["additive"] = additive
    initial, geometry = None, _image_grid(block, projdata)
    if run.initial_estimate is not None:
        # As in STIR, the first image's grid is that of the result.
        initial, geometry = read_image(run.initial_estimate)
    exam = exam_of_files(terms["sources"])
    return Acquisition(counts, projdata, geometry, related_views=related_views, exam=exam, **terms), initial


def _read_normalisation(
    kind: str, block: ParBlock | None, where: ParBlock, matching: Callable[[str], Tensor], terms: dict[str, Any]
) -> None:
    """Factors, attenuation image and their sources, from the blocks of ``Bin Normalisation type``."""
    if not kind or block is None:
        return
    if kind == "chained":
        names = ("bin normalisation to apply first", "bin normalisation to apply second")
        check_keys(block, names, _REFUSAL)
        for name in names:
            _read_normalisation(*block.object(name), where=block, matching=matching, terms=terms)
    elif kind == "from projdata":
        check_keys(block, {"normalisation projdata filename"}, _REFUSAL)
        path = _required(block, "normalisation projdata filename")
        norm = matching(path)
        if not bool((norm > 0).all()):
            number = int((~(norm > 0)).sum())
            raise ParFileError(
                f"{path} holds {number} normalisation factors that are not positive. STIR divides by them: 0 would be "
                "an infinite efficiency. A dead bin has a very large factor, such as 1e30"
            )
        terms["multiplicative"] = terms.get("multiplicative", 1.0) * (1 / norm)
        earlier = terms["sources"].get("normalisation")
        terms["sources"]["normalisation"] = f"{earlier}, {path}" if earlier else path
    elif kind == "from attenuation image":
        _read_attenuation(block, terms)
    else:
        raise ParFileError(f"{where.path}:{block.line}: {_REFUSAL} the normalisation '{kind}'{ADVICE}")


def _read_attenuation(block: ParBlock, terms: dict[str, Any]) -> None:
    check_keys(block, {"attenuation image filename", "forward projector type"}, _REFUSAL)
    if "attenuation" in terms:
        raise ParFileError(f"{block.path}:{block.line}: {_REFUSAL} a second attenuation image; add the two up")
    kind, projector = block.object("forward projector type")
    if kind == "matrix" and projector is not None:
        _read_ray_tracing(projector)
    elif kind not in ("", "ray tracing"):
        raise block.error("forward projector type", f"({kind}) has no counterpart in the embedded engine{ADVICE}")
    path = _required(block, "attenuation image filename")
    terms["attenuation"], terms["attenuation_geometry"] = read_image(path)
    terms["sources"]["attenuation"] = path


def _check_objective(block: ParBlock, num_subsets: int) -> None:
    check_keys(block, {*BLOCKS[PROJECTION_DATA]} - {"time frame definition filename"}, _REFUSAL)
    for name in ("zero end planes of segment 0", "use time-of-flight sensitivities"):
        if block.boolean(name):
            raise block.error(name, f"has no counterpart in the embedded engine{ADVICE}")
    if block.integer("time frame number", 1) != 1:
        raise block.error("time frame number", f"must be 1 for the embedded engine{ADVICE}")
    if not block.boolean("use subset sensitivities", True) and num_subsets > 1:
        raise block.error(
            "use subset sensitivities", "must be 1: the embedded engine has the sensitivity of each subset"
        )
    stored = [name for name in ("sensitivity filename", "subset sensitivity filenames") if name in block]
    if stored and not block.boolean("recompute sensitivity"):
        raise block.error(
            stored[0], "is not read, the embedded engine computes its own: set 'recompute sensitivity := 1'"
        )


def _read_projector_pair(block: ParBlock) -> int:
    """How many views share a subset by the symmetries of the file's projector."""
    kind, pair = block.object("projector pair type")
    if kind != "matrix" or pair is None:
        found = kind or "not given: STIR then takes a forward projector that is no adjoint of the back projector"
        raise block.error("projector pair type", f"must be Matrix, found {found}{ADVICE}")
    return _read_ray_tracing(pair)


def _read_ray_tracing(block: ParBlock) -> int:
    """Accept a block with ``Matrix type := Ray Tracing``; gives the number of views that share a subset."""
    check_keys(block, {"matrix type"}, _REFUSAL)
    return related_views(block)


def warn_of_few_rays(run: ParRun) -> None:
    """Say that STIR's images differ from those of the embedded engine if the file asks for fewer than 10 rays.

    The embedded engine integrates over the width of each bin, which is STIR's limit for many rays. On a slice with
    pixels as wide as the bins, two epochs of OSEM with STIR differed from the embedded engine by 14 % with one ray
    (STIR's default), 8 % with 2, 3 % with 5 and 0.4 % with 10.
    """
    for block, key in run.par.root.walk():
        matrix = block.object(key.name)[1] if key.name == "matrix type" else None
        if matrix is not None and (num_rays := matrix.integer(_RAYS, 1)) < _ENOUGH_RAYS:
            logger.warning(
                "%s:%d: the embedded engine integrates over the whole width of a bin, as STIR does with 10 rays and "
                "more; with the %d of the file STIR's OSEM images differ by several per cent",
                *(matrix.path, matrix.line, num_rays),
            )


def related_views(block: ParBlock) -> int:
    """The number of views that share a subset by the matrix of a block; ParFileError for another than the engine's."""
    kind, matrix = block.object("matrix type")
    if kind != "ray tracing" or matrix is None:
        raise block.error("matrix type", f"must be Ray Tracing, found {kind or 'none'}{ADVICE}")
    check_keys(matrix, _OF_NO_EFFECT | {_RAYS, *_MUST_BE, *_RELATED_VIEWS}, _REFUSAL)
    for name, expected in _MUST_BE.items():
        if matrix.boolean(name, expected) != expected:
            raise matrix.error(name, f"must be {int(expected)}{ADVICE}")
    return next((number for name, number in _RELATED_VIEWS.items() if matrix.boolean(name, True)), 1)


def _check_segments(block: ParBlock, projdata: ProjDataGeometry) -> None:
    highest = block.integer("maximum absolute segment number to process", -1)
    there = max(abs(segment.num) for segment in projdata.segments)
    if highest not in (-1, there):
        raise block.error(
            "maximum absolute segment number to process",
            f"({highest}) leaves out segments of {block.text('input file')}, which has them up to {there}: the "
            f"embedded engine uses all. Extract the segments with STIR's SSRB or stir_subsinograms{ADVICE}",
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
    sizes, origin = (scanner.ring_spacing / 2 / zoom_z, voxel, voxel), (block.real("Z offset (in mm)", 0.0), 0.0, 0.0)
    try:
        return ImageGeometry((num_planes, size, size), sizes, origin)
    except ValueError as problem:
        raise ParFileError(f"{block.path}:{block.line}: the image that it asks for: {problem}") from problem


def _required(block: ParBlock, name: str) -> str:
    value = block.text(name)
    if not value:
        raise ParFileError(f"{block.path}:{block.line}: '{fold(name)}' is missing")
    return value


_MUST_BE = {"restrict to cylindrical fov": True, "use actual detector boundaries": False}
_RELATED_VIEWS = {"do symmetry 90degrees min phi": 4, "do symmetry 180degrees min phi": 2}
_OF_NO_EFFECT = {
    "do symmetry swap segment", "do symmetry swap s", "do symmetry shift z", "disable caching",
    "store only basic bins in cache",
}  # fmt: skip
