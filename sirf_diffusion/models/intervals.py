"""Factors that make the intervals of posterior samples right: measured with a model, and kept beside its file.

``NAME.intervals.json`` stands beside ``NAME.safetensors`` and says by SHA-256 which model it is of. The model's own
file stays as it is, so that what is bound to it by its hash stays valid.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..files.documents import digest
from ..files.outputs import difference, jsonable, write_json
from ..files.versions import read_record
from ..geometry.checks import check_choice, check_count, check_keys, check_real
from .storage import checked_voxel_size

#: Probability of the intervals.
NOMINAL = 0.95
#: Counts beyond the ends of a table by up to this factor count as the ends.
COUNTS_SLACK = 1.5
#: Largest relative difference of voxel sizes.
_VOXEL_SLACK = 0.1
_KINDS = ("slices", "volumes")
_MOST_ENTRIES, _MOST_LEVELS, _LARGEST_FACTOR = 200, 50, 1000.0


class NotCalibrated(LookupError):
    """There is no factor for a run; the message says why."""


@dataclass(frozen=True)
class Factors:
    """Factors of one method, by count level: ``mean +- factor SD`` of the samples held the truth in 95 % of cases.

    Parameters
    ----------
    method, kind, num_samples
        A sampler, ``"slices"`` or ``"volumes"``, and how many samples.
    voxel_size_mm
        Of the images ``(z, y, x)``; z counts for volumes only.
    values
        The settings, see `comparable`.
    trues_per_plane
        Count levels, rising: expected counts of the image alone, without background, per plane.
    voxels, vois
        The factors at these levels, of voxels inside the body, and of the means of VOIs.
    cases
        What they were measured on.
    """

    method: str
    kind: str
    num_samples: int
    voxel_size_mm: tuple[float, float, float]
    values: Mapping[str, Any]
    trues_per_plane: tuple[float, ...]
    voxels: tuple[float, ...]
    vois: tuple[float, ...]
    cases: tuple[str, ...]

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, _KINDS)
        check_count("num_samples", self.num_samples, 2)
        object.__setattr__(self, "voxel_size_mm", checked_voxel_size(self.voxel_size_mm))
        if not isinstance(self.method, str) or not isinstance(self.values, Mapping):
            raise ValueError("method must be a text and values a dictionary")
        if not isinstance(self.cases, (list, tuple)) or not all(isinstance(case, str) for case in self.cases):
            raise ValueError("cases must be a list of texts")
        object.__setattr__(self, "cases", tuple(self.cases))
        for name, largest in (("trues_per_plane", 1e15), ("voxels", _LARGEST_FACTOR), ("vois", _LARGEST_FACTOR)):
            numbers = getattr(self, name)
            if not isinstance(numbers, (list, tuple)) or not 1 <= len(numbers) <= _MOST_LEVELS:
                raise ValueError(f"{name} must be a list of 1 to {_MOST_LEVELS} numbers")
            checked = tuple(check_real(name, number, 0, largest, open_below=True) for number in numbers)
            object.__setattr__(self, name, checked)
        counts = self.trues_per_plane
        if not len(counts) == len(self.voxels) == len(self.vois) or list(counts) != sorted(set(counts)):
            raise ValueError("trues_per_plane must rise, and have as many numbers as voxels and vois")

    def at(self, trues_per_plane: float) -> tuple[float, float]:
        """Factors of voxels and of VOIs, linear in the logarithm of the counts; NotCalibrated outside the levels."""
        low, high = self.trues_per_plane[0], self.trues_per_plane[-1]
        if not low / COUNTS_SLACK <= trues_per_plane <= high * COUNTS_SLACK:
            raise NotCalibrated(
                f"it was measured from {low:.3g} to {high:.3g} trues per plane, and these data have "
                f"{trues_per_plane:.3g}"
            )
        x, levels = np.log(trues_per_plane), np.log(self.trues_per_plane)
        return float(np.interp(x, levels, self.voxels)), float(np.interp(x, levels, self.vois))


@dataclass(frozen=True)
class IntervalTable:
    """All factors that were measured with one model; ``sha256`` is that of the table's file."""

    file: str = ""
    sha256: str = ""
    entries: tuple[Factors, ...] = ()
    missing: str = "this model has no table of factors"

    @classmethod
    def of(cls, model: Any) -> IntervalTable:
        """That beside the file of a score model; one without entries if there is none, or it is of another model.

        Raises
        ------
        ValueError
            If it cannot be read.
        """
        file = getattr(model, "path", None)
        if file is None or not (path := table_path(file)).exists():
            return cls()
        content = read_record(path)
        try:
            check_keys("the table", content, ("model_sha256", "probability", "entries"))
            if content["probability"] != NOMINAL:
                raise ValueError(f"probability must be {NOMINAL}, found {content['probability']!r:.40}")
            entries = content["entries"]
            if not isinstance(entries, list) or len(entries) > _MOST_ENTRIES:
                raise ValueError(f"entries must be a list of at most {_MOST_ENTRIES}")
            found = []
            for number, entry in enumerate(entries):
                check_keys(f"entry {number}", entry, Factors.__dataclass_fields__)
                found.append(Factors(**entry))
        except ValueError as error:
            raise ValueError(f"{path} cannot be used: {error}. Remove it, or write it again") from error
        if content["model_sha256"] != model.hash:
            return cls(missing=f"{path.name} is of another model than the file beside it")
        return cls(path.name, digest(path), tuple(found))

    def factors(
        self, method: str, kind: str, num_samples: int, voxel_size: Sequence[float], values: Mapping[str, Any]
    ) -> Factors:
        """Those of a run; NotCalibrated, which says why, if there are none."""
        if not self.entries:
            raise NotCalibrated(self.missing)
        found = [entry for entry in self.entries if (entry.method, entry.kind) == (method, kind)]
        if not found:
            raise NotCalibrated(f"nothing was measured of {method} in {kind} with this model")
        numbers = sorted({entry.num_samples for entry in found})
        found = [entry for entry in found if entry.num_samples == num_samples]
        if not found:
            known = " or ".join(map(str, numbers))
            raise NotCalibrated(f"it was measured with {known} samples, and there are {num_samples}")
        reasons = []
        for entry in found:
            axes = range(0 if kind == "volumes" else 1, 3)
            own = entry.voxel_size_mm
            if any(abs(voxel_size[axis] / own[axis] - 1) > _VOXEL_SLACK for axis in axes):
                sizes = [" x ".join(f"{size:.3g}" for size in one) for one in (own, voxel_size)]
                reasons.append(f"it was measured with voxels of {sizes[0]} mm, and these are {sizes[1]} mm")
            elif differing := difference(comparable(entry.values), comparable(values)):
                reasons.append(f"it was measured with other settings: {differing}")
            else:
                return entry
        raise NotCalibrated(reasons[0])


def comparable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without what does not change the spread: a box. None was not there when older tables were made."""
    return jsonable({name: value for name, value in values.items() if value is not None and name != "crop"})


def table_path(model_file: str | os.PathLike[str]) -> Path:
    """Where the table of a model's file is."""
    return Path(model_file).with_suffix(".intervals.json")


def write_table(model: Any, entries: Sequence[Factors]) -> Path:
    """Write the table beside the file that a score model was loaded from; what it has of other runs or settings stays.

    Returns its path.
    """

    def kind(entry: Factors) -> tuple[Any, ...]:
        return entry.method, entry.kind, entry.num_samples, entry.voxel_size_mm, repr(sorted(entry.values.items()))

    path, replaced = table_path(model.path), {kind(entry) for entry in entries}
    kept = [entry for entry in IntervalTable.of(model).entries if kind(entry) not in replaced]
    rows = [vars(entry) for entry in (*kept, *entries)]
    write_json(path, {"model_sha256": model.hash, "probability": NOMINAL, "entries": rows})
    return path
