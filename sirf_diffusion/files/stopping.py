"""Signals that ask a process to end, turned into an exception, so that its state can be saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"

    @property
    def exit_code(self) -> int:
        """What a shell shows of a process that ended so."""
        return 128 + self.number


@contextmanager
def heeded(respond: Callable[[int, dict[int, Any]], None]) -> Iterator[None]:
    """Here, in the main thread, interrupts and the signals of batch systems are answered so; not ignored ones (nohup).

    ``respond`` is given the signal and what answered each of them before.
    """
    earlier: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        earlier = {number: was for number, was in handlers.items() if was not in (signal.SIG_IGN, None)}
    for number in earlier:
        signal.signal(number, lambda number, frame: respond(number, earlier))
    try:
        yield
    finally:
        for number, was in earlier.items():
            signal.signal(number, was)


def stoppable() -> AbstractContextManager[None]:
    """Here, signals that ask to end raise `Stopped`."""

    def stop(number: int, earlier: dict[int, Any]) -> None:
        for other in earlier:
            if other != signal.SIGINT:  # a second Ctrl-C drops what the first one saves
                signal.signal(other, signal.SIG_IGN)
        raise Stopped(number)

    return heeded(stop)


@contextmanager
def deferred() -> Iterator[None]:
    """Here, signals wait: for calls of libraries that lose what is raised while they call back."""
    asked: list[int] = []
    try:
        with heeded(lambda number, earlier: asked.append(number)):
            yield
    finally:
        if asked:
            signal.raise_signal(asked[0])
