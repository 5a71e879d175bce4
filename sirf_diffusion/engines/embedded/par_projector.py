"""Projectors of a STIR parameter file that the embedded engine's own stands for."""

from __future__ import annotations

import logging

from ...files.parfile import ParBlock
from ...interop.stir.par_prior import check_keys

logger = logging.getLogger(__name__)

_ADVICE = "the embedded engine traces rays; use --engine stir, with STIR's Python module installed"
_ENOUGH_RAYS = 10
_RAYS = "number of rays in tangential direction to trace for each bin"


def read_projector_pair(block: ParBlock) -> int:
    """How many views share a subset by the symmetries of the file's projector.

    Accepts ``Projector pair type := Matrix`` with ``Matrix type := Ray Tracing``.

    The embedded engine integrates over the width of each bin, which is STIR's limit for many rays. A file that asks for
    fewer than 10 gets a warning: on a slice with pixels as wide as the bins, two epochs of OSEM with STIR differed from
    the embedded engine by 14 % with one ray (STIR's default), 8 % with 2, 3 % with 5 and 0.4 % with 10.

    Raises
    ------
    ParFileError
        For another projector, or a key of it that would change its numbers.
    """
    kind, pair = block.object("projector pair type")
    if kind != "matrix" or pair is None:
        found = kind or "not given: STIR then takes a forward projector that is no adjoint of the back projector"
        raise block.error("projector pair type", f"must be Matrix, found {found}; {_ADVICE}")
    return read_ray_tracing(pair)


def read_ray_tracing(block: ParBlock) -> int:
    """Accept a block with ``Matrix type := Ray Tracing``; see :func:`read_projector_pair`."""
    check_keys(block, {"matrix type"}, "the embedded engine has no counterpart of")
    kind, matrix = block.object("matrix type")
    if kind != "ray tracing" or matrix is None:
        raise block.error("matrix type", f"must be Ray Tracing, found {kind or 'none'}; {_ADVICE}")
    check_keys(matrix, _OF_NO_EFFECT | {_RAYS, *_MUST_BE, *_RELATED_VIEWS}, "the embedded engine has no counterpart of")
    for name, expected in _MUST_BE.items():
        if matrix.boolean(name, expected) != expected:
            raise matrix.error(name, f"must be {int(expected)}; {_ADVICE}")
    if (num_rays := matrix.integer(_RAYS, 1)) < _ENOUGH_RAYS:
        logger.warning(
            "%s:%d: the embedded engine integrates over the whole width of a bin, as STIR does with 10 rays and more; "
            "with the %d of the file STIR's OSEM images differ by several per cent",
            matrix.path,
            matrix.line,
            num_rays,
        )
    return next((number for name, number in _RELATED_VIEWS.items() if matrix.boolean(name, True)), 1)


_MUST_BE = {"restrict to cylindrical fov": True, "use actual detector boundaries": False}
_RELATED_VIEWS = {"do symmetry 90degrees min phi": 4, "do symmetry 180degrees min phi": 2}
_OF_NO_EFFECT = {
    "do symmetry swap segment", "do symmetry swap s", "do symmetry shift z", "disable caching",
    "store only basic bins in cache",
}  # fmt: skip
