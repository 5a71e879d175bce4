"""The scanner in a projection-data header: by name, by parameters, or by both."""

from __future__ import annotations

import logging
import math
from dataclasses import fields
from typing import Any

from ...geometry.scanners import BlockStructure, Scanner, find_scanner
from .header import Header

_logger = logging.getLogger(__name__)

# Field of Scanner, key, and for lengths what one unit of the key is in the field's mm.
_SIZES = (
    ("num_rings", "number of rings"),
    ("num_detectors_per_ring", "number of detectors per ring"),
    ("max_num_non_arccorrected_bins", "maximum number of non-arc-corrected bins"),
    ("default_num_arccorrected_bins", "default number of arc-corrected bins"),
)
_LENGTHS = (
    ("inner_ring_radius", "inner ring diameter (cm)", 5.0),
    ("average_depth_of_interaction", "average depth of interaction (cm)", 10.0),
    ("ring_spacing", "distance between rings (cm)", 10.0),
    ("default_bin_size", "default bin size (cm)", 10.0),
)
_OPTIONAL = ("max_num_non_arccorrected_bins", "default_num_arccorrected_bins", "default_bin_size")
_COUNTS = tuple(field for field, _ in _SIZES)
_BLOCKS = {
    "num_axial_blocks_per_bucket": "number of blocks per bucket in axial direction",
    "num_transaxial_blocks_per_bucket": "number of blocks per bucket in transaxial direction",
    "num_axial_crystals_per_block": "number of crystals per block in axial direction",
    "num_transaxial_crystals_per_block": "number of crystals per block in transaxial direction",
    "num_axial_crystals_per_singles_unit": "number of crystals per singles unit in axial direction",
    "num_transaxial_crystals_per_singles_unit": "number of crystals per singles unit in transaxial direction",
    "num_detector_layers": "number of detector layers",
}


def read_scanner(header: Header) -> Scanner:
    """Scanner of a header.

    'originating system' names it; parameters in the header replace those of the named
    scanner, with one warning if they differ, and 'View offset (degrees)' is 0 where the header does not give it: both
    as in STIR.

    Raises
    ------
    InterfileError
        If a parameter is neither in the header nor known from the name.
    ValueError
        If a parameter is outside its range.
    """
    name = header.text("originating system", "unknown")
    known = find_scanner(name)
    found: dict[str, Any] = {}
    unusual: list[str] = []
    for field, key in _SIZES:
        _collect(header, field, key, header.integer(key, 0), known, found, unusual)
    for field, key, mm in _LENGTHS:
        # STIR writes -1 for what it does not know; a depth of interaction may be 0.
        value = header.number(key, -1.0) * mm
        _collect(header, field, key, value, known, found, unusual)
    blocks = {field: header.integer(key, 0) for field, key in _BLOCKS.items()}
    if known is not None:
        defaults = {field.name: getattr(known.blocks, field.name) for field in fields(BlockStructure)}
        for field, default in defaults.items():
            if blocks[field] <= 0:
                blocks[field] = default
            elif default > 0 and blocks[field] != default:
                unusual.append(f"{_BLOCKS[field]} {blocks[field]} (usually {default})")
    for axis in ("axial", "transaxial"):
        if blocks[f"num_{axis}_blocks_per_bucket"] > 0 >= blocks[f"num_{axis}_crystals_per_block"]:
            key = _BLOCKS[f"num_{axis}_crystals_per_block"]
            raise header.error(f"key '{key}' is missing, which STIR needs where it is told the blocks per bucket")
    if unusual:
        _logger.warning(
            "%s: values differ from what is known of scanner '%s', those of the header are used: %s",
            header.path,
            known.name if known else name,
            "; ".join(unusual),
        )
    return Scanner(
        name=known.name if known else name,
        **found,
        view_offset=math.radians(_view_offset(header, known)),
        blocks=BlockStructure(**blocks),
    )


def _collect(
    header: Header,
    field: str,
    key: str,
    value: float,
    known: Scanner | None,
    found: dict[str, Any],
    unusual: list[str],
) -> None:
    missing = value < 0 if field not in _COUNTS else value <= 0
    if not missing:
        found[field] = value
        if known is not None and not math.isclose(value, getattr(known, field), abs_tol=0.01, rel_tol=0):
            unusual.append(f"'{key}' gives {field} {value:g} (usually {getattr(known, field):g})")
    elif known is not None:
        found[field] = getattr(known, field)
    elif field in _OPTIONAL:
        found[field] = 0
    else:
        raise header.error(
            f"key '{key}' is missing or has no meaning, and 'originating system := "
            f"{header.text('originating system', '')}' names no known scanner"
        )


def _view_offset(header: Header, known: Scanner | None) -> float:
    """In degrees."""
    if "view offset (degrees)" not in header and known is not None and known.view_offset:
        _logger.warning(
            "%s: no key 'view offset (degrees)'; taken as 0, as STIR does, although scanner '%s' has %.4g degrees",
            header.path,
            known.name,
            math.degrees(known.view_offset),
        )
    return header.number("view offset (degrees)", 0.0)


def scanner_lines(scanner: Scanner, num_tangential_positions: int) -> list[str]:
    """Header lines for a scanner. Sizes that are not known are written so that STIR accepts the data."""
    sizes = {
        "num_rings": scanner.num_rings,
        "num_detectors_per_ring": scanner.num_detectors_per_ring,
        "max_num_non_arccorrected_bins": scanner.max_num_non_arccorrected_bins or num_tangential_positions,
        "default_num_arccorrected_bins": scanner.default_num_arccorrected_bins or num_tangential_positions,
    }
    lines = ["Scanner parameters :=", f"  Scanner type := {scanner.name}"]
    lines += [f"  {key} := {sizes[field]}" for field, key in _SIZES]
    for field, key, mm in _LENGTHS:
        value = getattr(scanner, field)
        lines.append(f"  {key} := {value / mm:.9g}" if value > 0 or field not in _OPTIONAL else f"  {key} := -1")
    lines.append(f"  view offset (degrees) := {math.degrees(scanner.view_offset):.9g}")
    lines += [f"  {key} := {getattr(scanner.blocks, field)}" for field, key in _BLOCKS.items()]
    return [*lines, "End scanner parameters :="]
