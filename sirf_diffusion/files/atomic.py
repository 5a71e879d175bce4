"""Write one file completely or not at all; errors, as of a full disk, name the file."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .lock import lives
from .stopping import deferred

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to, and rename it on success; on failure remove it.

    What a process of this host left there when it was killed is removed.

    Raises
    ------
    OSError
        If the disk is full; it has the name of the file.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with atomic_path(folder / "note.txt") as temporary:
    ...     _ = temporary.write_text("whole or not at all")
    >>> [p.name for p in folder.iterdir()]
    ['note.txt']
    """
    target = Path(path)
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]
    # The suffix is kept: image writers choose their format by it.
    start, end = f".{target.stem}.{host}-", f".part{target.suffix}"
    if target.parent.is_dir():
        for name in os.listdir(target.parent):
            process = name[len(start) : -len(end)] if name.startswith(start) and name.endswith(end) else ""
            if process.isdigit() and not lives(process):
                target.with_name(name).unlink(missing_ok=True)
    temporary = target.with_name(f"{start}{os.getpid()}{end}")
    try:
        with disk_errors(target):
            yield temporary
            synchronise(temporary)
            os.replace(temporary, target)
    except OSError as error:
        if str(error.filename) == str(temporary):
            error.filename = str(target)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def save_figure(path: str | os.PathLike[str], figure: Any, dpi: int) -> None:
    """Write a ``matplotlib.figure.Figure``, in the format of the name's suffix; no window, no global state."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi)


def is_leftover(name: str) -> bool:
    """Whether a file has the name of one that `atomic_path` has not finished."""
    return re.fullmatch(r"\..+\.[0-9a-f]{6}-\d+\.part(\.\w+)?", name) is not None


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise an OSError with the name of the file and what to do where the disk, or the user's share of it, is full."""
    try:
        yield
    except Exception as error:
        number = _number(error)
        if number not in _FULL or getattr(error, "filename", None) is not None:
            raise
        reason = f"{os.strerror(number)}: free some space and give the same command again"
        raise OSError(number, reason, str(path)) from error


def synchronise(path: Path) -> None:
    """Have a file's content on the disk: a machine that fails must not leave an empty file under a final name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def new_hdf5(path: str | os.PathLike[str]) -> Iterator[Any]:
    """An HDF5 file to write, as `atomic_path` does; signals wait until it is whole."""
    import h5py

    # HDF5 closes a file without saying that a call of its into Python was cut off: half a file would pass for a whole.
    with deferred(), atomic_path(path) as temporary, _Disk(temporary, "w+") as disk:
        with h5py.File(disk, "w", libver="earliest") as file:
            yield file
        if disk.problem is not None:
            raise disk.problem


class _Disk(io.FileIO):
    """A file that remembers why it could not be written: HDF5 does not survive a write that fails."""

    problem: OSError | None = None

    def write(self, content: Any) -> int:
        """Write all of it; says so in any case."""
        rest = memoryview(content)
        while len(rest) and self.problem is None:
            try:
                rest = rest[super().write(rest) :]
            except OSError as error:
                self.problem = error
        return len(content)

    def truncate(self, size: int | None = None) -> int:
        """Set the size, if that works."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.problem = self.problem or error
            return size or 0


def _number(error: Exception) -> int:
    """The system's number of an error; 0 for none. NumPy and safetensors only have words for it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        return int(found[1])
    return errno.ENOSPC if re.fullmatch(r"\d+ requested and \d+ written", str(error)) else 0
