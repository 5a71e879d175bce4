"""Signals that ask a process to end, turned into an exception, so that its state can be saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

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
def stoppable() -> Iterator[None]:
    """Here, interrupts and the signals of batch systems raise `Stopped`; ignored ones (nohup) stay ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {number: signal.getsignal(number) for number in SIGNALS}
    heeded = [number for number, handler in earlier.items() if handler not in (signal.SIG_IGN, None)]

    def stop(number: int, frame: FrameType | None) -> None:
        for other in heeded:
            if other != signal.SIGINT:  # a second Ctrl-C drops what the first one saves
                signal.signal(other, signal.SIG_IGN)
        raise Stopped(number)

    for number in heeded:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, earlier[number])


@contextmanager
def deferred() -> Iterator[None]:
    """Here, signals wait: for calls of libraries that lose what is raised while they call back."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))}
    for number in earlier:
        signal.signal(number, lambda number, frame: asked.append(number))
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
        if asked:
            signal.raise_signal(asked[0])
