"""A lock file that lets one process at a time use a folder; it names its holder and holds only while that runs."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

#: Name of the lock in a folder.
LOCK = ".lock"


@contextmanager
def locked(path: Path, error: type[Exception] = RuntimeError) -> Iterator[None]:
    """Hold the lock file ``path``: the kernel's lock on it, and in it host, boot and process.

    The file of a process that died on this host is taken over, which is said.

    Raises
    ------
    error
        If a living process, or one of another host, holds it.
    """
    descriptor = _acquired(path, error)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, " ".join((*_host(), str(os.getpid()))).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquired(path: Path, error: type[Exception]) -> int:
    import fcntl

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        holder = os.pread(descriptor, 400, 0).decode("utf-8", "replace").split()
        host, boot, process = holder if len(holder) == 3 else ("", "", "")
        here = not host or host == _host()[0] or boot == _host()[1]
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = not here
        except BlockingIOError:
            held = True
        except OSError:  # a file system without locks
            held = not here or lives(process)
        if held:
            os.close(descriptor)
            remedy = "wait for it" if here else f"if it has ended, remove {path}"
            raise error(
                f"{path.parent} is in use by process {process or '(just starting)'} on {host or 'this host'}: "
                f"{remedy}, or give another folder"
            )
        try:
            same = os.path.samestat(os.fstat(descriptor), path.stat())
        except FileNotFoundError:
            same = False
        if same:  # else its holder removed the file just now
            if holder:
                logger.warning("%s: process %s ended without finishing; the folder is free", path.parent, process)
            return descriptor
        os.close(descriptor)


def _host() -> tuple[str, str]:
    """Name of the host, and of its boot: containers have names of their own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = "-"
    return socket.gethostname() or "-", boot


def lives(process: str) -> bool:
    """Whether there is a process of this number on this host."""
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except OSError:
        pass
    return True
