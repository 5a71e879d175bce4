"""Ending a training when a signal asks for it: between two steps, and with a checkpoint."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Note the first SIGINT or SIGTERM instead of dying of it in the middle of a step; a second one works as ever."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        signal.signal(number, old[number])
        logger.warning("asked to stop: finishing the step and writing a checkpoint")

    for number in old:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
