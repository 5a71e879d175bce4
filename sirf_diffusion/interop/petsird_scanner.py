"""The scanner of a PETSIRD file: where its elements are among the detectors of a template, and their efficiencies.

PETSIRD's gantry is taken as DICOM's: seen from the front, x to the right, y down, z into the gantry. STIR's z points
the other way, so an element centred at ``(x, y, z)`` is, with ``n`` detectors in a ring,

``detector = (atan2(x, -y) - view_offset) n / (2 pi)`` and ``ring = (z0 - z) / ring_spacing + (num_rings - 1) / 2``

where ``z0`` is the axial middle of all elements. Elements are found from these places, never from their numbers. They
must lie within `_TOLERANCE` of a detector's distance from the next, and equally far from the axis within `_ROUNDNESS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..geometry.projdata import ProjDataGeometry

_TOLERANCE = 0.3  # of the distance between neighbouring detectors, around the ring and along the axis
_ROUNDNESS = 0.02  # of the mean distance from the axis
_SAME_PLACE = 0.1  # of a detector: smaller rotations and shifts against the template do not count


class PetsirdError(ValueError):
    """A PETSIRD file that cannot be read, or whose data do not fit the template."""


def find_elements(
    scanner: Any, template: ProjDataGeometry, notes: dict[str, str]
) -> tuple[np.ndarray, np.ndarray, ProjDataGeometry]:
    """Detector and ring of each detecting element, and the layout with the rotation of the elements."""
    types, ring_size = scanner.scanner_geometry.replicated_modules, template.scanner.num_detectors_per_ring
    num_rings, spacing = template.scanner.num_rings, template.scanner.ring_spacing
    modules = [(len(kind.transforms), len(kind.object.detecting_elements.transforms)) for kind in types]
    name = f"scanner '{scanner.model_name}'"
    if len(types) != 1:
        found = ", ".join(f"{number} modules of {elements} elements" for number, elements in modules)
        raise PetsirdError(f"{name} has {len(types)} types of detector module ({found}); only one type is supported")
    most = num_rings * ring_size
    if not 0 < math.prod(modules[0]) <= most:
        raise PetsirdError(
            f"{name} has {math.prod(modules[0])} detecting elements, the template's '{template.scanner.name}' "
            f"{num_rings} rings of {ring_size}: it is another scanner, or its crystals are in layers"
        )
    box = types[0].object.detecting_elements
    corners = np.array([corner.c for corner in box.object.shape.corners], dtype=float).T
    for transforms in (box.transforms, types[0].transforms):
        matrices = np.array([transform.matrix for transform in transforms], dtype=float)
        # [..., 3, 8] to [transforms, ..., 3, 8]
        corners = np.stack([matrix[:, :3] @ corners + matrix[:, 3:] for matrix in matrices])
    x, y, z = np.moveaxis(corners.reshape(-1, 3, 8).mean(2), 1, 0)
    radius, reach = np.hypot(x, y), np.hypot(corners[..., 0, :], corners[..., 1, :])
    if not np.isfinite(corners).all() or np.ptp(radius) > 2 * _ROUNDNESS * radius.mean():
        raise PetsirdError(
            f"{name} is no cylinder around z: its elements are {radius.min():.1f} to {radius.max():.1f} mm from the "
            f"axis, more than {_ROUNDNESS:.0%} off the mean; panels, polygons and layers of crystals are not read"
        )
    expected, slack = template.scanner.effective_ring_radius, _ROUNDNESS * radius.mean()
    if not reach.min() - slack <= expected <= reach.max() + slack:
        raise PetsirdError(
            f"{name} has elements from {reach.min():.1f} to {reach.max():.1f} mm from the axis, which do not hold the "
            f"template's ring radius of {expected:.1f} mm (with the depth of interaction)"
        )
    # Fractions of detectors that all elements share are a rotation of the ring; what is left must be small.
    exact = (np.arctan2(x, -y) - template.scanner.view_offset) * ring_size / (2 * math.pi)
    rotation = float(np.angle(np.exp(2j * math.pi * exact).mean())) / (2 * math.pi)
    middle = (z.max() + z.min()) / 2
    places = np.stack([exact - rotation, (middle - z) / spacing + (num_rings - 1) / 2])
    detectors, rings = numbers = np.rint(places).astype(int)
    off = np.abs(places - numbers).max(axis=1)
    if (off > _TOLERANCE).any() or rings.min() < 0 or rings.max() >= num_rings:
        raise PetsirdError(
            f"{name} does not fit the template's {num_rings} rings of {ring_size} detectors, {spacing:g} mm apart: "
            f"elements lie up to {off[0]:.2f} of a detector and {off[1]:.2f} of a ring beside the places expected "
            f"({_TOLERANCE:g} is allowed), from z = {z.min():.1f} to {z.max():.1f} mm"
        )
    detectors %= ring_size
    if np.unique(detectors * num_rings + rings).size < z.size:
        raise PetsirdError(f"{name} has several elements at the same detector of the template: layers are not read")
    if z.size < most:
        notes["gaps"] = f"{most - z.size} of the template's {most} detectors have no element in the file"
    if abs(middle) > _SAME_PLACE * spacing:
        notes["middle"] = f"the elements' axial middle, z = {middle:.2f} mm in the file, is the middle of the sinograms"
    if abs(rotation) > _SAME_PLACE:
        tilt = template.scanner.view_offset + rotation * 2 * math.pi / ring_size
        template = replace(template, scanner=replace(template.scanner, view_offset=tilt))
        notes["rotation"] = f"the view offset is the file's, {math.degrees(tilt):.4g} degrees, not the template's"
    return detectors, rings, template


def num_windows(scanner: Any) -> int:
    """Number of energy windows of coincidences."""
    edges = [windows.number_of_bins() for windows in scanner.event_energy_bin_edges]
    if len(edges) != 1 or edges[0] < 1:
        raise PetsirdError(f"event_energy_bin_edges must hold one list of two or more edges, found {edges} windows")
    return edges[0]


def efficiencies_of(
    scanner: Any, num_elements: int, notes: dict[str, str]
) -> Callable[[int, np.ndarray, AliveTimes], np.ndarray]:
    """A function that gives the efficiency of one element with others of lower numbers, energy windows added up.

    It is the calibration factor times the efficiencies of the two elements times that of their places in the two
    modules, times the mean of the alive-time fractions; parts that the file leaves out count as 1, pairs of modules
    that are not in coincidence 0.
    """
    stored, windows = scanner.detection_efficiencies, num_windows(scanner)
    num_modules = len(scanner.scanner_geometry.replicated_modules[0].transforms)
    per_module = num_elements // num_modules
    factor = stored.calibration_factor
    if not (math.isfinite(factor) and factor >= 0):
        raise PetsirdError(f"the calibration factor must be finite and not negative, found {factor}")
    if factor == 0:
        factor, notes["calibration"] = 1.0, "the file's calibration factor is 0, which counts as not set (1)"
    if not any(stored.detection_bin_efficiencies or ()):
        single = np.ones((num_elements, windows), np.float32)
        notes["efficiencies"] = "the file has no efficiencies of single elements: they count as 1"
    else:
        single = _array(stored.detection_bin_efficiencies[0], (num_elements, windows), "detection_bin_efficiencies")
    groups = _rows(stored.module_pair_sgidlut, num_modules)
    pairs = None
    if any(any(row) for row in stored.module_pair_efficiencies_vectors or ()):
        vector = stored.module_pair_efficiencies_vectors[0][0]
        shape = (len(vector), per_module, windows, per_module, windows)
        pairs = _array([pair.values for pair in vector], shape, "module_pair_efficiencies_vectors").swapaxes(2, 3)
        if [pair.sgid for pair in vector] != list(range(len(vector))):
            raise PetsirdError("module_pair_efficiencies_vectors must be ordered by sgid")
        if groups is None or max(row.max(initial=-1) for row in groups) >= len(vector):
            raise PetsirdError("module_pair_sgidlut names groups that module_pair_efficiencies_vectors does not hold")

    def efficiency(first: int, second: np.ndarray, alive: AliveTimes) -> np.ndarray:
        (module, element), (modules, elements) = divmod(first, per_module), np.divmod(second, per_module)
        group = np.zeros_like(second) if groups is None else groups[module][modules]
        values = np.zeros(second.size)
        for weight, of_elements, of_modules in alive:
            a, b = single[first] * of_elements[first], single[second] * of_elements[second]
            if pairs is None:
                product = a.sum() * b.sum(axis=1)
            else:
                product = np.einsum("a,jab,jb->j", a, pairs[group, element, elements], b)
            values += weight * of_modules[module, modules] * product
        return np.where(group >= 0, factor * values, 0)

    return efficiency


#: Shares of the time, each with the alive-time fractions of elements ``[element, window]`` and of pairs of modules.
AliveTimes = list[tuple[float, np.ndarray, np.ndarray]]


def alive_times(
    blocks: list[Any], events: list[tuple[int, int]], scanner: Any, num_elements: int, notes: dict[str, str]
) -> AliveTimes:
    """Alive-time fractions of dead-time blocks, weighted by the time of the events ``[(start, stop)]`` in them."""
    windows, num_modules = num_windows(scanner), len(scanner.scanner_geometry.replicated_modules[0].transforms)
    ones = np.ones((num_elements, windows), np.float32), np.ones((num_modules, num_modules), np.float32)
    if not blocks:
        return [(1.0, *ones)]
    total, alive = sum(stop - start for start, stop in events), []
    for block in blocks:
        begin, end, fractions = block.time_interval.start, block.time_interval.stop, block.alive_time_fractions
        covered = sum(max(0, min(stop, end) - max(start, begin)) for start, stop in events)
        of_elements, of_modules = ones
        if fractions.singles_alive_time_fractions:
            given = fractions.singles_alive_time_fractions[0]
            of_elements = _array(given, of_elements.shape, "singles_alive_time_fractions")
        if any(fractions.module_pair_alive_time_fractions):
            given = np.ravel(fractions.module_pair_alive_time_fractions[0][0])
            rows = list(given[0]) if given.size == 1 else []
            if [len(row) for row in rows] != list(range(1, num_modules + 1)):
                raise PetsirdError(f"module_pair_alive_time_fractions must be a lower triangle of {num_modules} rows")
            of_modules = np.zeros((num_modules, num_modules), np.float32)
            lower = np.tril_indices(num_modules)
            of_modules[lower] = _array(np.concatenate(rows), (len(lower[0]),), "module_pair_alive_time_fractions")
            of_modules = np.maximum(of_modules, of_modules.T)
        if max(of_elements.max(), of_modules.max()) > 1:
            raise PetsirdError("alive-time fractions must be at most 1")
        alive.append((covered / max(total, 1), of_elements, of_modules))
    if abs((share := sum(part[0] for part in alive)) - 1) > 1e-3:
        raise PetsirdError(f"dead-time blocks cover {share:.1%} of the time of the events, 100% is needed")
    notes["dead time"] = "efficiencies hold the alive-time fractions, averaged over the events' time"
    return [part for part in alive if part[0] > 0]


def _array(values: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    try:
        array = np.array(values, dtype=np.float32).reshape(shape)
    except ValueError as error:
        raise PetsirdError(f"{name} must have {' x '.join(map(str, shape))} values: {error}") from error
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise PetsirdError(f"{name} must be finite and not negative")
    return array


def _rows(table: Any, num_modules: int) -> list[np.ndarray] | None:
    """The symmetry group of each module with itself and those before it; ``None`` where the file has no table."""
    if not any(any(row) for row in table or ()):
        return None
    try:
        rows = [np.array(row, dtype=np.int64) for row in table[0][0]]
    except OverflowError as error:
        raise PetsirdError(f"module_pair_sgidlut holds numbers of no group: {error}") from error
    if [row.size for row in rows] != list(range(1, num_modules + 1)):
        raise PetsirdError(f"module_pair_sgidlut must be a lower triangle of {num_modules} rows")
    if min(row.min() for row in rows) < -1:
        raise PetsirdError("module_pair_sgidlut holds numbers below -1, which is a pair that is not in coincidence")
    return rows
