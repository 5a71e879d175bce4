"""The device that a name such as ``auto`` means, threads, and the versions that are stored with every result."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
from functools import lru_cache
from typing import TYPE_CHECKING

from . import __version__

if TYPE_CHECKING:  # workers that compute without PyTorch start in a tenth of the time
    import torch

logger = logging.getLogger(__name__)

_PACKAGES = (
    "torch", "numpy", "monai", "einops", "safetensors", "h5py", "matplotlib", "tqdm", "joblib",
    "nilearn", "nibabel", "scipy",
)  # fmt: skip


def select_device(name: str = "auto") -> torch.device:
    """The device for ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}: expected auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is not supported: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} was asked for, but PyTorch {torch.__version__} sees no CUDA device; use cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} was asked for, but there are only {torch.cuda.device_count()} CUDA devices")
    return device


def limit_threads(number: int) -> None:
    """Compute in at most so many threads: PyTorch, OpenMP and BLAS, loaded or not yet, and child processes."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(number)
    threadpool_limits(number)
    os.environ.update(thread_variables(number))


def thread_variables(number: int) -> dict[str, str]:
    """What limits the threads of a process that starts with these in its environment."""
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(number))


def fast_in_bfloat16(device: torch.device) -> bool | None:
    """Whether a device has instructions for ``bfloat16``, which is slower than ``float32`` where it has not.

    None if that cannot be told: of a CPU only newer releases of PyTorch do.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    tell = getattr(torch.cpu, "get_capabilities", None)
    return None if tell is None else any(tell().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def warn_of_slow_precision(precision: str, device: torch.device) -> None:
    """Warn if a device would be faster in the other precision."""
    if precision == "bfloat16" and fast_in_bfloat16(device) is False:
        logger.warning("%s has no instructions for bfloat16: expect it to be slower than float32", device)


def faster_precision(device: torch.device) -> str:
    """``"bfloat16"`` where a device has instructions for it, which is logged once, and ``"float32"`` elsewhere."""
    if not fast_in_bfloat16(device):
        return "float32"
    _tell_once(device.type)
    return "bfloat16"


@lru_cache
def _tell_once(device: str) -> None:
    logger.info("the network computes in bfloat16 on this %s; precision float32 for the other", device)


def software_versions() -> dict[str, str]:
    """Versions that are stored with every result."""
    versions = {"sirf-diffusion": __version__, "python": platform.python_version()}
    return versions | {name: v for name in _PACKAGES if (v := version_of(name)) is not None}


@lru_cache
def version_of(package: str) -> str | None:
    """Version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
