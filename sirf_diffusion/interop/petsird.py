"""List-mode data in PETSIRD, binned into sinograms of STIR."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ..files.documents import check_regular
from ..geometry.detector_pairs import DetectorPairs
from ..geometry.exam import ExamInfo, Radionuclide
from ..geometry.projdata import ProjDataGeometry
from .petsird_scanner import PetsirdError, alive_times, efficiencies_of, find_elements, num_windows

# SNOMED codes of DICOM's context groups 20 and 21
_ORIENTATIONS = {"102540008": "head_in", "102541007": "feet_in"}
_ROTATIONS = {"40199007": "supine", "1240000": "prone", "102535000": "right", "102536004": "left"}


@dataclass(frozen=True)
class BinnedEvents:
    """What a file holds, in the layout of a template.

    Parameters
    ----------
    prompts, delayeds
        Counts, ``[sinogram, view, tangential]``; ``delayeds`` is ``None`` where the file stores none.
    efficiencies
        Detection efficiency, the file's calibration factor and alive-time fractions included: the sum over the pairs of
        elements and of energy windows that a bin combines.
    geometry, exam
        The template's layout, with the view offset that the file has; the exam information of the file.
    outside
        Numbers of prompts and of delayeds outside the template's segments or tangential range.
    notes
        What is added up, approximated or left aside.
    """

    prompts: torch.Tensor
    delayeds: torch.Tensor | None
    efficiencies: torch.Tensor
    geometry: ProjDataGeometry
    exam: ExamInfo
    outside: tuple[int, int]
    notes: tuple[str, ...]


def bin_events(
    path: str | os.PathLike[str], template: ProjDataGeometry, progress: Callable[[float], None] = lambda share: None
) -> BinnedEvents:
    """Bin a binary PETSIRD file of a cylindrical scanner into a layout that is not arc-corrected, block by block.

    ``progress`` is called with the share of the work that is done, 0 to 1. Raises PetsirdError if the file cannot be
    read, its scanner is not cylindrical or not the template's, or bed or gantry move.
    """
    try:
        from petsird import CoincidencePolicy, TimeBlock
    except ImportError as error:
        raise ImportError('PETSIRD files need an extra: pip install "sirf-diffusion[petsird]"') from error

    stream, notes = _read(Path(path)), {}
    header, _ = next(stream)
    scanner = header.scanner
    for kind in ("single", "triple", "quadruple"):
        if getattr(scanner, f"{kind}_event_policy").value:
            notes[kind] = f"{kind} events are left aside"
    if scanner.gantry_alignment is not None:
        notes["alignment"] = "the gantry's alignment with CT or MR is not applied"
    detectors, rings, geometry = find_elements(scanner, template, notes)
    pairs, efficiency = DetectorPairs(geometry), efficiencies_of(scanner, len(rings), notes)
    stored = {"prompts": scanner.prompt_event_policy, "delayeds": scanner.delayed_event_policy}
    counts = {
        kind: np.zeros(geometry.num_bins, np.float32) for kind in stored if stored[kind] != CoincidencePolicy.NONE
    }
    if "prompts" not in counts:
        raise PetsirdError(f"{path} stores no prompts (its prompt event policy is NONE)")
    outside, span, bed = {"prompts": 0, "delayeds": 0}, None, None
    times: list[tuple[int, int]] = []
    dead: list[Any] = []
    for block, share in stream:
        value = block.value
        if isinstance(block, TimeBlock.EventTimeBlock):
            start, stop = value.time_interval.start, value.time_interval.stop
            if stop < start:
                raise PetsirdError(f"{path}: a time block of events ends at {stop} ms, before it starts ({start} ms)")
            span = (min(start, span[0]), max(stop, span[1])) if span else (start, stop)
            times.append((start, stop))
            for kind, array in counts.items():
                first, second = _elements(value, kind, scanner, len(rings))
                bins = pairs.bins(detectors[first], rings[first], detectors[second], rings[second])
                outside[kind] += int((bins < 0).sum())
                np.add.at(array, bins[bins >= 0], 1)
        elif isinstance(block, TimeBlock.BedMovementTimeBlock):
            if span and (bed is None or not np.allclose(bed, value.transform.matrix, atol=1e-3)):
                raise PetsirdError(f"{path}: the bed moves between events; split the file by bed position")
            bed = value.transform.matrix
            notes["bed"] = "the bed's position is not kept: images count from the middle of the scanner"
        elif isinstance(block, TimeBlock.GantryMovementTimeBlock):
            if not all(np.allclose(t.matrix, np.eye(3, 4), atol=1e-3) for t in value.transforms):
                raise PetsirdError(f"{path}: the gantry moves; only a scanner at rest can be binned")
        elif isinstance(block, TimeBlock.DeadTimeTimeBlock):
            dead.append(value)
        progress(share / 2)
    if not span:
        raise PetsirdError(f"{path} has no time block with events")
    if (covered := sum(stop - start for start, stop in times)) != span[1] - span[0]:
        notes["time"] = f"time blocks cover {covered / 1000:g} s of the {(span[1] - span[0]) / 1000:g} s they lie in"
    alive = alive_times(dead, times, scanner, len(rings), notes)
    efficiencies = np.zeros(geometry.num_bins, np.float32)
    for first in range(len(rings)):
        second = np.arange(first)
        bins = pairs.bins(detectors[first], rings[first], detectors[second], rings[second])
        np.add.at(efficiencies, bins[bins >= 0], efficiency(first, second[bins >= 0], alive))
        progress(0.5 + (first + 1) / len(rings) / 2)
    if not np.isfinite(efficiencies).all():
        raise PetsirdError(f"{path}: efficiencies overflow; the calibration factor must be too large")
    data = {kind: torch.from_numpy(array).reshape(geometry.shape) for kind, array in counts.items()}
    return BinnedEvents(
        data["prompts"], data.get("delayeds"), torch.from_numpy(efficiencies).reshape(geometry.shape),
        geometry, _exam(header, span, notes), (outside["prompts"], outside["delayeds"]), tuple(notes.values()),
    )  # fmt: skip


def _read(path: Path) -> Iterator[tuple[Any, float]]:
    """The header, then one time block after another, each with the share of the file that is read."""
    import petsird

    try:
        check_regular(path)
        with path.open("rb") as stream:
            _check_schema(stream, path.stat().st_size)
            reader = petsird.BinaryPETSIRDReader(stream)
            _bound(reader, path.stat().st_size)
            yield reader.read_header(), 0.0
            for block in reader.read_time_blocks():
                yield block, stream.tell() / path.stat().st_size
    except OSError:
        raise
    except Exception as error:  # the package raises whatever a damaged file leads it to
        found = str(error) or type(error).__name__
        raise PetsirdError(
            f"{path} cannot be read as binary PETSIRD by petsird {version('petsird')} ({found}): it is "
            "damaged, or was written by another version; install that one"
        ) from error


def _check_schema(stream: BinaryIO, size: int) -> None:
    """Refuse a description of the format that is longer than the file; the package would take memory for it first."""
    length = 0
    for place, byte in enumerate(stream.read(14)[9:]):  # after a word of five bytes and a version of four: base 128
        length |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            break
    if length > size:
        raise EOFError(f"a description of {length} bytes in a file of {size}")
    stream.seek(0)


def _bound(reader: Any, size: int) -> None:
    """Refuse to take memory for more bytes than the file has: the package believes every length that it reads."""

    def bounded(read: Callable[[int], Any]) -> Callable[[int], Any]:
        def read_some(count: int) -> Any:
            if count > size:
                raise EOFError(f"a part of {count} bytes in a file of {size}")
            return read(count)

        return read_some

    for name in ("read_view", "read_bytearray"):
        setattr(reader._stream, name, bounded(getattr(reader._stream, name)))


def _elements(block: Any, kind: str, scanner: Any, num_elements: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the elements of a block's coincidences."""
    lists = [events for row in getattr(block, f"{kind[:-1]}_events") for events in row]
    if len(lists) > 1:
        raise PetsirdError(f"a time block has {len(lists)} lists of {kind}, expected one for its one type of module")
    bins = np.array([event.detection_bins for events in lists for event in events], dtype=np.int64).reshape(-1, 2)
    numbers = bins // num_windows(scanner)
    if numbers.max(initial=0) >= num_elements:
        raise PetsirdError(f"{kind} name detecting element {numbers.max()}; the scanner has {num_elements}")
    return numbers[:, 0], numbers[:, 1]


def _exam(header: Any, span: tuple[int, int], notes: dict[str, str]) -> ExamInfo:
    scanner, edges = header.scanner, header.scanner.event_energy_bin_edges[0].edges
    if num_windows(scanner) > 1:
        notes["energy"] = f"{num_windows(scanner)} energy windows are added up"
    tof = [pair.number_of_bins() for row in scanner.tof_bin_edges for pair in row]
    if max(tof, default=1) > 1:
        notes["time of flight"] = f"{tof[0]} time-of-flight bins are added up"
    info = ExamInfo(
        time_frames=((span[0] / 1000, (span[1] - span[0]) / 1000),), energy_window=(float(edges[0]), float(edges[-1]))
    )
    if header.exam is None:
        return info
    names = {source.radionuclide_code_sequence.code_meaning for source in header.exam.radiopharmaceuticals} - {""}
    if len(names) > 1:
        notes["radionuclide"] = f"several radionuclides ({', '.join(sorted(names))}): none is named in the headers"
    words, position = [], header.exam.patient_orientation
    for table, code in (
        (_ORIENTATIONS, position.patient_gantry_relationship_code_sequence),
        (_ROTATIONS, position.patient_orientation_modifier_code_sequence),
    ):
        words.append(table.get(code.code_value, "unknown"))
        if words[-1] == "unknown" and code.code_value:
            notes[code.code_value] = f"patient position '{code.code_meaning}' ({code.code_value}) is not kept"
    began = header.exam.start_of_acquisition
    return replace(
        info,
        orientation=words[0],
        rotation=words[1],
        start_time=None if began is None else began.to_datetime(),
        radionuclide=Radionuclide(name=names.pop() if len(names) == 1 else "unknown"),
    )
