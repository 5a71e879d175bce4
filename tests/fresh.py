"""Processes that start fast, PyTorch being there already, and that come from one that never computed.

Neither OpenMP's threads nor those of automatic differentiation survive a fork: a child of the tests' own process hangs.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

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
