"""Processes that start fast, PyTorch being there already, and that come from one that never computed.

Neither OpenMP's threads nor those of automatic differentiation survive a fork: a child of the tests' own process hangs.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FRESH = multiprocessing.get_context("forkserver")
# Modules of this folder are not found by all versions of Python's server.
FRESH.set_forkserver_preload(
    [
        "sirf_diffusion.cli.recon", "sirf_diffusion.study.reconstruction", "sirf_diffusion.reconstructors.methods",
        "sirf_diffusion.training.trainer", "sirf_diffusion.training.data.volume_file", "h5py", "pytest",
        "matplotlib.backends.backend_agg", "monai.networks.nets.diffusion_model_unet", "safetensors.torch",
        "torch._dynamo", "torch.distributed", "torch.nn.parallel",
    ]
)  # fmt: skip


def exit_code(work: Callable[[], Any], begin: Callable[[], Any] | None = None) -> int:
    """That of a function (0 for None) in a process of its own, ``begin`` being called first; negative for a signal."""
    process = FRESH.Process(target=_run, args=(work, begin))
    process.start()
    process.join(120)
    alive = process.is_alive()
    process.kill()
    process.join()
    assert not alive, f"{work} did not end"
    return process.exitcode


def _run(work: Callable[[], Any], begin: Callable[[], Any] | None) -> None:
    if begin is not None:
        begin()
    sys.exit(work())


@dataclass
class DieAt:
    """For `exit_code`: SIGKILL before the file operation of this number in a folder."""

    number: int
    events: tuple[str, ...]
    folder: Path

    def __call__(self) -> None:
        left, folder = [self.number], str(self.folder)

        def hook(event: str, arguments: tuple) -> None:
            if event in events and any(folder in str(argument) for argument in arguments):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        events = self.events
        sys.addaudithook(hook)


def run(function: Callable, *arguments: object, cwd: Path, timeout: float = 300) -> tuple[int, str]:
    """Exit code of ``function(*arguments)`` in such a process, and what it wrote to both of its streams."""
    with tempfile.NamedTemporaryFile() as output:
        child = FRESH.Process(target=_begin, args=(output.name, cwd, function, arguments))
        child.start()
        child.join(timeout)
        child.kill()
        child.join()
        return child.exitcode, Path(output.name).read_text(errors="replace")


def run_script(path: Path, *arguments: object, cwd: Path) -> tuple[int, str]:
    """As ``python path arguments`` would."""
    return run(_script, str(path), *map(str, arguments), cwd=cwd)


def _begin(output: str, cwd: Path, function: Callable, arguments: tuple) -> None:
    with open(output, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.chdir(cwd)
    function(*arguments)


def _script(*words: str) -> None:
    sys.argv = list(words)
    sys.path.insert(0, str(Path(words[0]).parent))
    runpy.run_path(words[0], run_name="__main__")
