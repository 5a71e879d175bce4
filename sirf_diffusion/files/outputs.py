"""Results on disk: written whole or not at all, and never over another result.

A long computation must not end with a disk that cannot be written, and a folder must not mix two results.
`OutputFolder` checks both before the computation starts, and moves a complete result into place at its end;
`atomic_path` does the same for a single file.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


class OutputError(ValueError):
    """A folder or file cannot take the result."""


class OutputFolder:
    """A folder that holds one result, and says which.

    Call `check` before the computation, and write the result inside ``with folder.staged(record) as staging``.

    Parameters
    ----------
    path
        The folder; made when the result is written, with its parents.
    settings
        What the result depends on, as JSON values. Kept in the record, and compared with the record of a result that is
        already in the folder: the same settings may be run again, others are refused.
    record_name
        The file that marks a folder as holding a result; it is written last.
    overwrite
        Replace another result.
    advice
        What to do about another result in the folder.

    Raises
    ------
    OutputError
        By `check`: the path is a file, cannot be written, or holds another result.
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

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def record_path(self) -> Path:
        """The record of the result in this folder."""
        return self.path / self.record_name

    def check(self) -> OutputFolder:
        """Refuse a path that cannot take this result; writes nothing."""
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"--out {self.path} is a file; give a folder")
        if self.path.is_dir() and any(self.path.iterdir()) and not self.overwrite:
            self._refuse_another_result()
        _check_writable(self.path)
        return self

    @contextmanager
    def staged(self, record: Mapping[str, Any]) -> Iterator[Path]:
        """Give an empty folder to write the result's files to; move them into place on success, the record last.

        The files of an earlier result go only then; on failure they stay as they were.

        Parameters
        ----------
        record
            What the record tells beside the settings and the names of the files.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".partial-", dir=self.path))
        try:
            yield staging
            files = sorted(p.relative_to(staging).as_posix() for p in staging.rglob("*") if p.is_file())
            write_json(staging / self.record_name, {"settings": self.settings, **record, "files": files})
            for earlier in self._earlier_files():
                earlier.unlink(missing_ok=True)
            for name in [*files, self.record_name]:
                (self.path / name).parent.mkdir(exist_ok=True)
                os.replace(staging / name, self.path / name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _earlier_files(self) -> list[Path]:
        """Files of the result that is in the folder, as its record names them: nothing else is ever removed."""
        try:
            names = json.loads(self.record_path.read_text(encoding="utf-8"))["files"]
        except (OSError, ValueError, KeyError, TypeError):
            return []
        paths = [Path(name) for name in (self.record_name, *names) if isinstance(name, str)]
        below = [p for p in paths if not p.is_absolute() and ".." not in p.parts]
        return [self.path / p for p in below if not (self.path / p).is_dir()]

    def _refuse_another_result(self) -> None:
        if not self.record_path.is_file():
            raise OutputError(
                f"--out {self.path} is not empty and holds no {self.record_name} of this program; {self.advice}"
            )
        try:
            found = json.loads(self.record_path.read_text(encoding="utf-8"))["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{self.record_path} is not a record of this program ({error}); {self.advice}") from error
        differing = sorted(k for k in {*found, *self.settings} if found.get(k) != self.settings.get(k))
        if differing:
            name = differing[0]
            raise OutputError(
                f"--out {self.path} holds another result: {', '.join(differing)} differ "
                f"({name}: {found.get(name)!r} there, {self.settings.get(name)!r} asked for); {self.advice}"
            )


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to, and rename it on success; on failure remove it.

    Examples
    --------
    >>> folder = Path(tempfile.mkdtemp())
    >>> with atomic_path(folder / "note.txt") as temporary:
    ...     _ = temporary.write_text("whole or not at all")
    >>> [p.name for p in folder.iterdir()]
    ['note.txt']
    """
    target = Path(path)
    # The suffix is kept: image writers choose their format by it.
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.part{target.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as JSON, through `jsonable`."""
    text = json.dumps(jsonable(value), indent=2, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


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
