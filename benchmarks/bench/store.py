"""Results on disk: one file per run, written whole or not at all, and found again by what the run depends on."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bench.cases import Case, CaseSpec
from benchmarks.bench.runs import RunResult, RunSpec
from sirf_diffusion.files.atomic import atomic_path, new_hdf5
from sirf_diffusion.files.documents import check_regular
from sirf_diffusion.files.outputs import is_ours, jsonable, write_json
from sirf_diffusion.files.versions import KEY, check_version, read_record

logger = logging.getLogger(__name__)
_LARGEST = 2**28


class Store:
    """A folder of runs that can be added to at any time.

    ``bench.json`` says what the folder is of; ``runs/`` holds a file per run. A run is complete if its file is there:
    who stops the program in the middle of one loses that one.

    Parameters
    ----------
    folder
        Made if it does not exist.
    identity
        What all runs have in common.

    Raises
    ------
    ValueError
        If the folder holds runs of something else.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder, identity = Path(folder), jsonable(identity)
        about = self.folder / "bench.json"
        if about.is_file():
            found = read_record(about)
            # What only one of them knows, such as a further model, is no contradiction.
            differing = sorted(k for k in found.keys() & identity.keys() if found[k] != identity[k])
            if differing:
                raise ValueError(
                    f"--out {folder} holds another benchmark: {', '.join(differing)} differ ({differing[0]}: "
                    f"{found[differing[0]]!r} there, {identity[differing[0]]!r} asked for); give another folder"
                )
            identity = {**found, **identity}
        elif self.folder.is_dir() and not all(is_ours(p.name) for p in self.folder.iterdir()):
            raise ValueError(
                f"--out {folder} is not empty and holds no bench.json of this program; give another folder"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(about, identity)
        (self.folder / "runs").mkdir(exist_ok=True)

    def get(self, spec: RunSpec) -> RunResult | None:
        """The result of a run, None if it has not been made."""
        path = self._path(spec)
        if not path.is_file():
            return None
        try:
            return read_run(path)
        except (OSError, KeyError, TypeError, ValueError) as error:
            logger.warning("%s is damaged (%s): its run is made again", path, error)
            return None

    def put(self, result: RunResult) -> None:
        """Keep a result."""
        write_run(self._path(result.spec), result)

    def _path(self, spec: RunSpec) -> Path:
        return self.folder / "runs" / f"{spec.name}.h5"


def write_run(path: Path, result: RunResult) -> None:
    """One run as HDF5: its numbers as JSON, its images as data sets."""
    about = {
        "spec": result.spec.to_dict(),
        "measures": result.measures,
        "ranks": result.ranks,
        "failure": result.failure,
        "where": result.where,
    }
    with new_hdf5(path) as file:
        file.attrs.update({KEY: 1, "run": json.dumps(jsonable(about), allow_nan=False)})
        for name in ("image", "sd"):
            values = getattr(result, name)
            if values is not None:
                file.create_dataset(name, data=values.numpy(), compression="gzip")


def read_run(path: Path) -> RunResult:
    """What `write_run` wrote; a number that JSON cannot hold comes back as infinity."""
    import h5py

    with h5py.File(path, "r") as file:
        try:
            check_version(file.attrs.get(KEY, 1))
        except ValueError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        about = json.loads(file.attrs["run"])
        images = {name: torch.from_numpy(file[name][:]) if name in file else None for name in ("image", "sd")}
    spec = RunSpec(**{**about["spec"], "case": CaseSpec(**about["spec"]["case"])})
    measures = {name: float("inf") if value is None else value for name, value in about["measures"].items()}
    return RunResult(spec, measures, images["image"], images["sd"], about["ranks"], about["failure"], about["where"])


def write_table(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows as CSV; the columns are all keys in the order of their first appearance."""
    import pandas

    with atomic_path(path) as temporary:
        pandas.DataFrame(list(rows)).to_csv(temporary, index=False)


def run_rows(results: Iterable[RunResult]) -> list[dict[str, Any]]:
    """A row of the table for each run."""
    return [
        {
            "case": r.spec.case.kind,
            "subject": r.spec.case.subject,
            "prompts": r.spec.case.prompts,
            "method": r.spec.line,
            "variant": r.spec.variant,
            "realisation": r.spec.realisation,
            "samples": r.spec.num_samples,
            "settings": json.dumps(jsonable(r.spec.settings)),
            "failure": r.failure,
            **r.measures,
        }
        for r in results
    ]


def write_results(path: Path, about: Mapping[str, Any], summary: list[dict[str, Any]], rows: list[dict[str, Any]],
                  cases: Iterable[Case], maps: Mapping[str, Mapping[str, torch.Tensor]]) -> None:  # fmt: skip
    """All results in one HDF5 file: what was done, the tables as JSON, and the images that the report shows."""
    with new_hdf5(path) as file:
        file.attrs[KEY] = 1
        for name, value in (("about", about), ("summary", summary), ("runs", rows)):
            # A data set, because an attribute holds no more than 64 kB.
            text = json.dumps(jsonable(value), allow_nan=False)
            file.create_dataset(name, data=np.frombuffer(text.encode(), np.uint8), compression="gzip")
        for case in cases:
            group = file.create_group(f"cases/{case.spec.name}")
            group.create_dataset("truth", data=case.truth.numpy(), compression="gzip")
            group.create_dataset("mr", data=case.mr.numpy(), compression="gzip")
        for name, images in maps.items():
            for kind, image in images.items():
                file.create_dataset(f"maps/{name}/{kind}", data=image.float().numpy(), compression="gzip")


def read_results(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What was done and the summary of an earlier ``results.h5``.

    Raises
    ------
    ValueError
        If the file is not one.
    """
    import h5py

    try:
        check_regular(path)
        with h5py.File(path, "r") as file:
            check_version(file.attrs.get(KEY, 1))
            about, summary = (json.loads(bytes(file[name][:_LARGEST]).decode()) for name in ("about", "summary"))
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: not a results.h5 of this program ({error})") from error
    return about, summary
