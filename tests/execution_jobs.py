"""What workers are asked to do in the tests; imports next to nothing, so that they start fast."""

import os
import signal
from pathlib import Path


def square(number: int) -> int:
    return number * number


def die_once(job: tuple[int, str]) -> int:
    """Kills its process the first time that it is asked about 2."""
    number, folder = job
    mark = Path(folder) / "died"
    if number == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def always_die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def threads(_: int) -> list[int]:
    """What PyTorch has, and what its and other libraries' pools have."""
    import torch
    from threadpoolctl import threadpool_info

    return [torch.get_num_threads(), *(pool["num_threads"] for pool in threadpool_info())]


def fail(number: int) -> int:
    raise ValueError(f"no {number}")
