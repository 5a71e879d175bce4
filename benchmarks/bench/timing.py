"""Seconds of calls and peak memory, on the CPU or a GPU."""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Callable
from typing import Any

import torch

logger = logging.getLogger(__name__)


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(function: Callable[[], Any], repeat: int, device: torch.device) -> tuple[float, float]:
    """Seconds of the first call and of the fastest of ``repeat`` later ones."""
    seconds = []
    for _ in range(repeat + 1):
        wait(device)
        began = time.perf_counter()
        function()
        wait(device)
        seconds.append(time.perf_counter() - began)
    return seconds[0], min(seconds[1:])


def reset_peak_memory(device: torch.device) -> None:
    """Count it anew from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        logger.debug("peak memory cannot be reset here: it is that of the whole process")


def peak_memory(device: torch.device) -> float:
    """Bytes: of the device, or resident memory of this process since the reset."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
