"""Results on disk: written whole or not at all, and never over another result.

A long computation must not end with a disk that cannot be written, and a folder must not mix two results.
`OutputFolder` checks both before the computation starts, and moves a complete result into place at its end.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

from .atomic import atomic_path, disk_errors, is_leftover, synchronise
from .lock import LOCK, locked
from .versions import KEY, read_record

logger = logging.getLogger(__name__)

#: In the folder of a result: what a run keeps to go on from, and a complete result that is being put into place.
UNFINISHED, COMPLETE = ".unfinished", ".complete"
_JOURNAL, _SETTINGS = "journal.json", "settings.json"


class OutputError(ValueError):
    """A folder or file cannot take the result."""


class OutputFolder:
    """A folder that holds one result, and says which.

    Compute inside ``with folder.held():``, and write the result inside ``with folder.staged(record) as staging``. A
    new result is first written whole to a folder of its own, and one renaming of that folder makes it the result: what
    is cut off before leaves the earlier result as it was, what is cut off later is completed by the next `held`. While
    files are moved into place there is no record: it goes first and comes last, and where there is none is no result.

    ``settings`` (JSON values) are what the result depends on. They are kept in the record, and compared with the record
    of a result that is already in the folder: the same settings may be run again, others are refused with ``advice``,
    unless ``overwrite``. `check` and `held` raise OutputError if the path is a file, cannot be written, holds another
    result, or another process has it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings: Mapping[str, Any],
        *,
        record_name: str = "record.json",
        overwrite: bool = False,
        advice: str = "give another folder, or --overwrite to replace its files",
    ) -> None:
        self.path = Path(path)
        self.settings = jsonable(settings)
        self.record_name = record_name
        self.overwrite, self.advice = overwrite, advice
        #: Whether `held` put a result of the same settings into place, whose writing had been cut off.
        self.completed = False
        self._held = self._keeps = False

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def record_path(self) -> Path:
        """The record of the result in this folder."""
        return self.path / self.record_name

    def holds_result(self) -> bool:
        """Whether the result of these settings is there already."""
        try:
            return self._difference() == ""
        except OutputError:
            return False

    def check(self) -> OutputFolder:
        """Refuse a path that cannot take this result; writes nothing."""
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"--out {self.path} is a file; give a folder")
        if self.path.is_dir() and any(not is_ours(p.name) for p in self.path.iterdir()) and not self.overwrite:
            self._refuse_another_result()
        _check_writable(self.path)
        return self

    @contextmanager
    def held(self) -> Iterator[OutputFolder]:
        """Have the folder for this process alone; tidies up after one that was killed, and checks as `check` does.

        A folder in which nothing was written is gone afterwards.
        """
        if not self.path.is_dir():
            self.check()
        _check_writable(self.path)
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self.path / LOCK, OutputError):
                self._tidy()
                self.check()
                self._held = True
                try:
                    yield self
                finally:
                    self._held = False
                    if self._states():
                        if self._keeps:
                            logger.warning("what was done so far is kept: the same command goes on from there")
                    else:
                        shutil.rmtree(self.path / UNFINISHED, ignore_errors=True)
        finally:
            with suppress(OSError):  # not empty
                for folder in made:
                    folder.rmdir()

    def unfinished(self, more: Mapping[str, Any], *, besides: Sequence[str] = (), restart: bool = False) -> Path:
        """Folder for the checkpoints (``*.safetensors``) of a run with these settings; to be called inside `held`.

        Parameters
        ----------
        more
            What the run depends on beside the result's settings.
        besides
            Settings that it does not depend on, but its writing does.
        restart
            Forget what is there.
        """
        settings = jsonable({k: v for k, v in {**self.settings, **more}.items() if k not in besides})
        folder = self.path / UNFINISHED
        if self._states() and not restart:
            advice = "give its command again to go on, --restart to begin anew, or another folder"
            try:
                other = difference(read_record(folder / _SETTINGS), settings)
            except (OSError, ValueError) as error:
                raise OutputError(f"--out {self.path} holds another unfinished run ({error}); {advice}") from error
            if other:
                raise OutputError(f"--out {self.path} holds an unfinished run that differs: {other}; {advice}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            write_json(folder / _SETTINGS, settings)
        self._keeps = True
        return folder

    @contextmanager
    def staged(self, record: Mapping[str, Any]) -> Iterator[Path]:
        """Give an empty folder to write the result's files to; move them into place on success, the record last.

        The files of an earlier result, and the checkpoints of the run, go only then; on failure they stay.

        Parameters
        ----------
        record
            What the record tells beside the settings and the names of the files.
        """
        with nullcontext() if self._held else self.held():
            staging = self.path / UNFINISHED / "result"
            staging.mkdir(parents=True)
            try:
                with disk_errors(self.path):
                    yield staging
                files = sorted(p.relative_to(staging).as_posix() for p in staging.rglob("*") if p.is_file())
                write_json(staging / self.record_name, {"settings": self.settings, **record, "files": files})
                for name in files:
                    synchronise(staging / name)
                write_json(staging / _JOURNAL, {"files": files, "earlier": self._earlier_files()})
                os.replace(staging, self.path / COMPLETE)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
            self._put_into_place()

    def check_space(self, needed: float) -> None:
        """Raise OutputError if fewer than ``needed`` bytes are free where the folder is."""
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise OutputError(
                f"--out {self.path}: the result needs about {needed / 1e6:.3g} MB, {free / 1e6:.3g} MB are free; make "
                "room, or give another folder"
            )

    def _states(self) -> list[Path]:
        return list((self.path / UNFINISHED).glob("*.safetensors"))

    def _tidy(self) -> None:
        """Complete a result whose writing was cut off after it was whole, and remove what was cut off before."""
        if (self.path / COMPLETE).is_dir():
            self._put_into_place()
            self.completed = self.holds_result()
        unfinished = self.path / UNFINISHED
        shutil.rmtree(unfinished / "result", ignore_errors=True)
        for partial in (*self.path.glob(".*"), *unfinished.glob(".*")):
            if partial.name.startswith(".partial-"):
                shutil.rmtree(partial)
            elif is_leftover(partial.name):
                partial.unlink()

    def _put_into_place(self) -> None:
        """Exchange the earlier result for the complete one; can be cut off anywhere and called again."""
        complete = self.path / COMPLETE
        if (complete / _JOURNAL).exists():
            earlier, files = (_below(_entry(complete / _JOURNAL, key, list)) for key in ("earlier", "files"))
            if (complete / self.record_name).exists():
                # The earlier record goes first: it must not stand beside new images.
                for name in earlier:
                    if name not in files and (self.path / name).is_file():
                        (self.path / name).unlink()
                for name in [*files, self.record_name]:
                    if (complete / name).is_file() and not (self.path / name).is_dir():
                        (self.path / name).parent.mkdir(exist_ok=True)
                        os.replace(complete / name, self.path / name)
            shutil.rmtree(self.path / UNFINISHED, ignore_errors=True)
            (complete / _JOURNAL).unlink()
        shutil.rmtree(complete)

    def _earlier_files(self) -> list[str]:
        """Files of the result that is in the folder, as its record names them: nothing else is ever removed."""
        try:
            names = _entry(self.record_path, "files", list)
        except OutputError:
            return []
        return [name for name in _below([self.record_name, *names]) if not (self.path / name).is_dir()]

    def _difference(self) -> str:
        """In what the result that is in the folder differs from these settings; older ones do not tell contents."""
        found = _entry(self.record_path, "settings", dict)
        known = self.settings if "contents" in found else {k: v for k, v in self.settings.items() if k != "contents"}
        return difference(found, known)

    def _refuse_another_result(self) -> None:
        if not self.record_path.is_file():
            raise OutputError(
                f"--out {self.path} is not empty and holds no {self.record_name} of this program; {self.advice}"
            )
        try:
            other = self._difference()
        except OutputError as error:
            raise OutputError(f"--out {self.path} holds another result ({error}); {self.advice}") from error
        if other:
            raise OutputError(f"--out {self.path} holds another result: {other}; {self.advice}")


def write_json(path: str | os.PathLike[str], value: Mapping[str, Any]) -> None:
    """Write ``value`` as JSON, through `jsonable`, with its schema version; `read_record` reads it."""
    text = json.dumps({KEY: 1, **jsonable(value)}, indent=2, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_csv(path: str | os.PathLike[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write rows, the names of the columns first, as CSV."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def jsonable(value: Any) -> Any:
    """``value`` in JSON's own types; tensors become lists, unknown objects their text, NaN and infinity ``None``.

    Examples
    --------
    >>> jsonable({"beta": float("nan"), "trace": torch.tensor([1.0, 2.0]), "out": Path("a")})
    {'beta': None, 'trace': [1.0, 2.0], 'out': 'a'}
    """
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(v) for v in value]
    if isinstance(value, torch.Tensor) or hasattr(value, "tolist"):
        return jsonable(value.tolist())
    if isinstance(value, float):
        return value if value - value == 0.0 else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


def _entry(path: Path, key: str, kind: type) -> Any:
    """An entry of a JSON file of this program; OutputError unless it is of this type."""
    try:
        value = read_record(path).get(key)
    except (OSError, ValueError) as error:
        raise OutputError(str(error)) from error
    if not isinstance(value, kind):
        raise OutputError(f"{path} cannot be read: its {key!r} is {value!r:.40}")
    return value


def difference(found: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The settings that differ, and both values of the first; empty if none does."""
    found, asked = _flat(found), _flat(asked)
    differing = sorted(k for k in {*found, *asked} if found.get(k) != asked.get(k))
    if not differing:
        return ""
    first = differing[0]
    there, here = f"{found.get(first)!r:.200}", f"{asked.get(first)!r:.200}"
    return f"{', '.join(differing)} differ ({first}: {there} there, {here} asked for)"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _below(names: Iterable[Any]) -> list[str]:
    """Those names that files of a result may have: below their folder, and none of what stands there for a run."""
    texts = [name for name in names if isinstance(name, str) and 0 < len(name.encode()) < 256 and "\0" not in name]
    return [name for name in texts if Path(name).parts and not any(p[0] in "./" for p in Path(name).parts)]


def is_ours(name: str) -> bool:
    """Whether a file is there for a run that goes on or was cut off, and not part of a result."""
    return name in (LOCK, UNFINISHED, COMPLETE) or name.startswith(".partial-") or is_leftover(name)


def _check_writable(folder: Path) -> None:
    """Try to write where ``folder`` is or will be, so that the failure comes before the computation."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise OutputError(f"--out {folder} cannot be written: {error.strerror or error} in {existing}") from error
