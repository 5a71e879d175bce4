"""Worker processes of this machine: they save their work when asked to stop, and end with their parent."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from types import FrameType
from typing import Any

from ..environment import thread_variables
from .stopping import SIGNALS, Stopped

#: Seconds that a worker has to put its work away.
GRACE = 30.0


class _Worker:
    """What this process, if it is a worker, is doing."""

    parent = 0
    busy = False
    asked: int | None = None


def in_processes(number: int, function: Callable[[Any], Any], jobs: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
    """Keys of the jobs and what ``function`` makes of each, as they are done.

    Raises
    ------
    BrokenProcessPool
        If a worker dies.
    KeyboardInterrupt
        If this process or a worker is asked to stop; the others are then asked too, and waited for.
    """
    import torch
    from joblib.externals.loky import ProcessPoolExecutor, as_completed, wait

    variables = thread_variables(max(1, torch.get_num_threads() // number))
    executor = ProcessPoolExecutor(min(number, len(jobs)), env=variables, initializer=_begin, initargs=(os.getpid(),))
    futures = [executor.submit(_numbered, function, key, job) for key, job in jobs.items()]
    try:
        for future in as_completed(futures):
            yield future.result()
    except KeyboardInterrupt:
        running = [future for future in futures if not future.cancel()]
        for process in list(executor._processes or ()):
            os.kill(process, signal.SIGTERM)
        wait(running, GRACE)
        raise
    finally:
        executor.shutdown(kill_workers=True)


def end_with_parent() -> None:
    """For ``subprocess`` as ``preexec_fn``: the program ends with this process, even if that is killed (Linux)."""
    import ctypes

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _numbered(function: Callable[[Any], Any], key: int, job: Any) -> tuple[int, Any]:
    try:
        _Worker.busy = True
        if _Worker.asked is not None:
            raise Stopped(_Worker.asked)
        return key, function(job)
    finally:
        _Worker.busy = False
        if os.getppid() != _Worker.parent:
            os._exit(128 + (_Worker.asked or signal.SIGTERM))


def _begin(parent: int) -> None:
    """Make this process a worker."""
    _Worker.parent = parent
    for number in SIGNALS:
        signal.signal(number, _stop)
    threading.Thread(target=_watch, daemon=True).start()


def _stop(number: int, frame: FrameType | None) -> None:
    first, _Worker.asked = _Worker.asked is None, number
    if first and _Worker.busy:
        raise Stopped(number)


def _watch() -> None:
    """End with the parent, even if that was killed."""
    while os.getppid() == _Worker.parent:
        time.sleep(0.5)
    if _Worker.busy:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
    os._exit(128 + signal.SIGTERM)
