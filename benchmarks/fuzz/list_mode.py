"""The reader of list mode: PETSIRD."""

from __future__ import annotations

import io
import math
from enum import Enum
from random import Random
from typing import Any

import numpy as np

from sirf_diffusion.geometry.projdata import ProjDataGeometry, Scanner
from sirf_diffusion.interop.petsird_scanner import PetsirdError

from .mutations import NUMBERS, WORDS, changed_bytes
from .reader import Reader, promise

_NUM_ELEMENTS = 32


class Petsird(Reader):
    """PETSIRD list mode."""

    name, file, errors = "PETSIRD", "scan.petsird", (PetsirdError,)

    def prepare(self) -> list[bytes]:
        """A scan of a small scanner."""
        ring = Scanner("ring", 2, 16, 90.0, 5.0, 7.0, 4.0, max_num_non_arccorrected_bins=15)
        self.template = ProjDataGeometry.from_scanner(ring, span=1, max_ring_difference=1)
        return [_written(*_scan(Random(1)))]

    def content(self, rng: Random) -> bytes:
        """Another scan, some of whose values are changed; or changed bytes."""
        if rng.random() < 0.3:
            return changed_bytes(rng, self.samples[0])
        header, blocks = _scan(rng)
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            _change(rng, rng.choice((header.scanner, header.exam, blocks)))
        try:
            return _written(header, blocks)
        except Exception:  # what the package does not write
            return changed_bytes(rng, self.samples[0])

    def read(self) -> None:
        """The sinograms."""
        from sirf_diffusion.interop.petsird import bin_events

        found = bin_events(self.path, self.template)
        delayeds = [] if found.delayeds is None else [found.delayeds]
        for values in (found.prompts, found.efficiencies, *delayeds):
            promise(tuple(values.shape) == self.template.shape, "another shape than the template's")
            promise(bool((values >= 0).all() & values.isfinite().all()), "counts or efficiencies out of range")
        for values, outside in zip((found.prompts, *delayeds), found.outside, strict=False):
            events = float(values.double().sum()) + outside
            promise(outside >= 0 and events == int(events) < self.path.stat().st_size, "counts that are no events")
        promise(all(0 <= s < 1e12 and 0 <= d < 1e12 for s, d in found.exam.time_frames), "a time that is none")


def _scan(rng: Random) -> tuple[Any, list[Any]]:
    """Header and time blocks of a scan that is read, by the package's own generator of scanners."""
    import petsird
    from petsird.helpers.generator import CylindricalBlocksInfo, get_scanner_info

    windows = rng.choice((1, 2))
    scanner = get_scanner_info([CylindricalBlocksInfo(
        crystal_length=(20.0, 35.0, 7.0), num_crystals_per_module=(1, 1, 2), num_modules_along_ring=16,
        num_modules_along_axis=1, radius=90.0, arc=2 * math.pi, start_angle=rng.choice((0.0, 0.1)),
        module_spacing_along_axis=15.0, number_of_tof_bins=rng.choice((1, 2)), tof_resolution=9.0, LLD=450.0,
        ULD=650.0, number_of_event_energy_bins=windows, energy_resolution=0.1, material_id=1,
    )])  # fmt: skip
    both, dead_time = rng.random() < 0.5, rng.random() < 0.3
    scanner.delayed_event_policy = petsird.CoincidencePolicy(1 if both else 0)

    def events() -> list[Any]:
        pairs = [sorted(rng.sample(range(_NUM_ELEMENTS * windows), 2)) for _ in range(rng.choice((0, 1, 5, 20)))]
        return [petsird.CoincidenceEvent(detection_bins=pair, tof_idx=0) for pair in pairs]

    kinds, blocks, start = petsird.TimeBlock, [], 0
    for _ in range(rng.choice((1, 1, 2, 3))):
        stop = start + rng.choice((1, 1000, 60_000))
        interval = petsird.TimeInterval(start=start, stop=stop)
        blocks.append(kinds.EventTimeBlock(petsird.EventTimeBlock(
            time_interval=interval, prompt_events=[[events()]], delayed_events=[[events()]] if both else [],
        )))  # fmt: skip
        if dead_time:
            alive = [np.full(_NUM_ELEMENTS * windows, rng.random(), np.float32)]
            fractions = petsird.AliveTimeFractions(singles_alive_time_fractions=alive)
            dead = petsird.DeadTimeTimeBlock(time_interval=interval, alive_time_fractions=fractions)
            blocks.append(kinds.DeadTimeTimeBlock(dead))
        if blocks and rng.random() < 0.2:
            blocks.insert(0, kinds.BedMovementTimeBlock(petsird.BedMovementTimeBlock(transform=_identity())))
        if rng.random() < 0.1:
            at_rest = petsird.GantryMovementTimeBlock(transforms=[_identity()])
            blocks.append(kinds.GantryMovementTimeBlock(at_rest))
        start = stop
    exam = petsird.ExamInformation(modality="PT", patient_orientation=petsird.DICOMPatientOrientationInformation())
    exam.radiopharmaceuticals = [petsird.DICOMRadiopharmaceuticalInformation() for _ in range(rng.choice((0, 1, 2)))]
    return petsird.Header(scanner=scanner, exam=rng.choice((exam, None))), blocks


def _identity() -> Any:
    import petsird

    return petsird.RigidTransformation(matrix=np.eye(3, 4, dtype=np.float32))


def _written(header: Any, blocks: list[Any]) -> bytes:
    import petsird

    stream = io.BytesIO()
    with petsird.BinaryPETSIRDWriter(stream) as writer:
        writer.write_header(header)
        writer.write_time_blocks(blocks)
    return stream.getvalue()


def _change(rng: Random, value: Any) -> Any:
    """Another value of the same kind: a number, a word, or an object or list with one part changed, in place."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, Enum):
        return rng.choice(list(type(value)))
    if isinstance(value, (int, np.integer)):
        near = (value + 1, value * 2, max(value - 1, 0), 0)
        return rng.choice((*near, int(rng.choice([n for n in NUMBERS if isinstance(n, int)]))))
    if isinstance(value, (float, np.floating)):
        return rng.choice((value * 1.001, value * 2, 0.5, 1.0, -value, float(rng.choice(NUMBERS))))
    if isinstance(value, str):
        return rng.choice(WORDS)
    if isinstance(value, np.ndarray):
        value = value.copy()
        if value.size and rng.random() < 0.8:
            at = rng.randrange(value.size)
            value.flat[at] = _change(rng, value.flat[at])
            return value
        return rng.choice((value[:-1], np.concatenate([value, value]), value * 0))
    if isinstance(value, list):
        kind = rng.randrange(6)
        if kind < 4 and value:
            at = rng.randrange(len(value))
            value[at] = _change(rng, value[at])
        elif kind == 4 and value:
            del value[rng.randrange(len(value)) :]
        elif value:
            value.append(rng.choice(value))
    elif names := [name for name in getattr(value, "__dict__", {}) if not name.startswith("_")]:
        name = rng.choice(names)
        setattr(value, name, _change(rng, getattr(value, name)))
    return value
