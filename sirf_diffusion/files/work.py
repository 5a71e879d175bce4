"""The folder beside a result in which a long computation keeps its parts, so that a stopped one goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .lock import LOCK, locked
from .outputs import difference, jsonable, write_json
from .versions import read_record
from .weights import WeightsFileError, WeightsFormat

_SETTINGS = "settings.json"
_ARRAY = WeightsFormat("a part of an unfinished run", "sirf_diffusion_part", "give --restart")


@contextmanager
def work_folder(
    path: Path, settings: Mapping[str, Any], names: Sequence[str], *, result: Path, restart: bool,
    replace: bool = False, advice: str = "remove it, or give another --out",
) -> Iterator[None]:  # fmt: skip
    """Have a folder for the run with these settings, whether it begins or goes on.

    A folder in which nothing is kept at the end is gone afterwards.

    ``settings`` are what the result depends on, ``names`` patterns of what is kept: all that ``restart`` removes.
    ``result`` is the file that is made; unless ``replace``, a new run refuses one that exists, with this ``advice``,
    and so does ``restart`` one that was not made in this folder.
    """
    path.mkdir(parents=True, exist_ok=True)
    record = path / _SETTINGS
    replace = replace or (restart and record.exists())

    def kept() -> list[Path]:
        return [found for name in names for found in path.glob(name)]

    try:
        with locked(path / LOCK, ValueError):
            for old in [*kept(), *path.glob(_SETTINGS)] if restart else []:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
            if record.exists():
                try:
                    found = read_record(record)
                    other = difference({key: found.get(key) for key in settings}, jsonable(settings))
                except ValueError as error:
                    raise ValueError(f"{path} holds another run ({error}): --restart begins anew") from error
                if other:
                    raise ValueError(f"{path} holds another run: {other}; --restart begins anew, or give another --out")
            elif result.exists() and not replace:
                raise ValueError(f"{result} exists and was made by another run: {advice}")
            else:
                write_json(record, settings)
            try:
                yield
            finally:
                if not kept():
                    record.unlink(missing_ok=True)
    finally:
        with suppress(OSError):  # not empty
            path.rmdir()


@dataclass(frozen=True)
class KeptArrays:
    """Arrays that are made once: ``KeptArrays(folder)(name, make)`` reads what an earlier call of ``make`` gave."""

    folder: Path

    def __call__(self, name: str, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """The array of this name; raises WeightsFileError if what is kept is damaged."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            made = make()
            _ARRAY.write(path, {"values": torch.from_numpy(np.ascontiguousarray(made))}, {})
            return made
        _, tensors, _ = _ARRAY.read(path)
        if "values" not in tensors:
            raise WeightsFileError(f"{path} holds no such part: give --restart")
        return tensors["values"].numpy()
