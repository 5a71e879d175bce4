"""The scanner in a projection-data header: by name, by parameters, or by both."""

from __future__ import annotations

import math
from typing import Any

from ...geometry.scanners import BlockStructure, Scanner, find_scanner
from .header import Header
from .keys import SCANNER_BLOCKS, SCANNER_FIELDS, SCANNER_OPTIONAL


def read_scanner(header: Header) -> Scanner:
    """Scanner of a header.

    'originating system' names it; parameters in the header replace those of the named scanner, with one warning if they
    differ, and 'View offset (degrees)' is 0 where the header does not give it: both as in STIR.
    """
    name = header.text("originating system", "unknown")
    known = find_scanner(name)
    found: dict[str, Any] = {}
    unusual: list[str] = []
    for field, key, mm in SCANNER_FIELDS:
        value = header.integer(key, 0) if mm is None else header.number(key, -1.0) * mm
        usual = getattr(known, field, None)
        if value > 0 or (value == 0 and mm is not None):  # STIR writes -1 for what it does not know
            if usual is not None and abs(value - usual) > 0.01:
                unusual.append(f"'{key}' gives {field} {value:g} (usually {usual:g})")
        elif usual is not None:
            value = usual
        elif field in SCANNER_OPTIONAL:
            value = 0
        else:
            raise header.error(
                f"key '{key}' is missing or has no meaning, and 'originating system := {name}' names no known scanner"
            )
        found[field] = value
    blocks = {field: header.integer(key, 0) for field, key in SCANNER_BLOCKS.items()}
    for field, key in SCANNER_BLOCKS.items():
        usual = 0 if known is None else getattr(known.blocks, field)
        if blocks[field] <= 0:
            blocks[field] = usual
        elif 0 < usual != blocks[field]:
            unusual.append(f"{key} {blocks[field]} (usually {usual})")
    for axis in ("axial", "transaxial"):
        if blocks[f"num_{axis}_blocks_per_bucket"] > 0 >= blocks[f"num_{axis}_crystals_per_block"]:
            key = SCANNER_BLOCKS[f"num_{axis}_crystals_per_block"]
            raise header.error(f"key '{key}' is missing, which STIR needs where it is told the blocks per bucket")
    if unusual:
        header.warn(
            f"values differ from what is known of scanner '{known.name if known else name}', those of the header are "
            f"used: {'; '.join(unusual)}"
        )
    if "view offset (degrees)" not in header and known is not None and known.view_offset:
        header.warn(
            f"no key 'view offset (degrees)'; taken as 0, as STIR does, although scanner '{known.name}' has "
            f"{math.degrees(known.view_offset):.4g} degrees"
        )
    return Scanner(
        name=known.name if known else name,
        **found,
        view_offset=math.radians(header.number("view offset (degrees)", 0.0)),
        blocks=BlockStructure(**blocks),
    )


def scanner_lines(scanner: Scanner, num_tangential_positions: int) -> list[str]:
    """Header lines for a scanner. Sizes that are not known are written so that STIR accepts the data."""
    lines = ["Scanner parameters :=", f"  Scanner type := {scanner.name}"]
    for field, key, mm in SCANNER_FIELDS:
        value = getattr(scanner, field)
        if mm is None:
            lines.append(f"  {key} := {value or num_tangential_positions}")
        else:
            lines.append(
                f"  {key} := {value / mm:.9g}" if value > 0 or field not in SCANNER_OPTIONAL else f"  {key} := -1"
            )
    lines.append(f"  view offset (degrees) := {math.degrees(scanner.view_offset):.9g}")
    lines += [f"  {key} := {getattr(scanner.blocks, field)}" for field, key in SCANNER_BLOCKS.items()]
    return [*lines, "End scanner parameters :="]
