"""Preparing the next batches while the network works on this one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def prefetched(function: Callable[[int], T], steps: Iterable[int], depth: int = 2) -> Iterator[T]:
    """Yield ``function(step)`` for every step, in order, computed ahead by a thread.

    Parameters
    ----------
    function
        Makes a batch from its step; runs in one other thread.
    steps
        The steps.
    depth
        How many results may wait; they are in memory.

    Yields
    ------
    The results. An exception in ``function`` is raised at its step. Closing the iterator ends the thread.

    Examples
    --------
    >>> list(prefetched(lambda step: step**2, range(4)))
    [0, 1, 4, 9]
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, found {depth!r}")
    results: queue.Queue[tuple[str, object]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: tuple[str, object]) -> None:
        while not stopped.is_set():
            try:
                return results.put(item, timeout=0.05)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for step in steps:
                if stopped.is_set():
                    return
                put(("result", function(step)))
        except BaseException as error:
            put(("error", error))
        else:
            put(("end", None))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = results.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stopped.set()
        thread.join()
