"""What this machine offers: versions, devices, engines, models; and which device ``auto`` means."""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import platform
import sys
from dataclasses import dataclass
from typing import Any

import torch

from . import __version__

logger = logging.getLogger(__name__)

_PACKAGES = (
    "torch",
    "numpy",
    "monai",
    "einops",
    "safetensors",
    "h5py",
    "matplotlib",
    "tqdm",
    "nilearn",
    "nibabel",
    "scipy",
)


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report; ``advice`` says what to do where something is missing."""

    name: str
    found: str
    ok: bool = True
    advice: str = ""


def select_device(name: str = "auto") -> torch.device:
    """The device for ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Raises
    ------
    ValueError
        If the name is unknown, or CUDA is asked for and not there.
    """
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


def warn_if_slow(device: torch.device) -> None:
    """Log a warning if a device has no instructions for ``bfloat16``, which is slower than ``float32`` there.

    Of a CPU only newer releases of PyTorch tell.
    """
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        tell = getattr(torch.cpu, "get_capabilities", None)
        supported = tell is None or any(tell().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    if not supported:
        logger.warning("%s has no instructions for bfloat16: expect it to be slower than float32", device)


def software_versions() -> dict[str, str]:
    """Versions that are stored with every result."""
    versions = {"sirf-diffusion": __version__, "python": platform.python_version()}
    return versions | {name: v for name in _PACKAGES if (v := _version(name)) is not None}


def examine() -> list[Finding]:
    """Look at the machine; imports STIR and SIRF if they are there."""
    threads = f"{torch.get_num_threads()} threads"
    findings = [
        Finding("sirf-diffusion", f"{__version__}, Python {platform.python_version()} ({sys.executable})"),
        Finding("torch", f"{torch.__version__}, {threads}"),
        _cuda(),
        Finding("embedded engine", "reads STIR Interfile; cylindrical scanners, no TOF, no list mode"),
        _toolkit("STIR", "stir", "conda install -c conda-forge stir"),
        _toolkit("SIRF", "sirf.STIR", "docker image ghcr.io/synerbi/sirf:latest"),
    ]
    findings += [_package(name, "") for name in ("monai", "einops", "safetensors", "h5py", "matplotlib", "tqdm")]
    findings += [
        _package(name, 'only for training: pip install -c constraints.txt -e ".[train]"')
        for name in ("nilearn", "nibabel")
    ]
    return [*findings, _bundled("models"), _bundled("examples")]


def _cuda() -> Finding:
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding("CUDA", f"{torch.version.cuda}: {names}")
    if torch.version.cuda is None:
        return Finding(
            "CUDA", "this build of PyTorch is for CPU only", False, "for a GPU: https://pytorch.org/get-started/locally"
        )
    return Finding(
        "CUDA", "no device found", False, "check the driver with nvidia-smi; everything works on the CPU too"
    )


def _toolkit(name: str, module: str, install: str) -> Finding:
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError:
        return Finding(
            name, "not installed", False, f"not needed, the embedded engine takes its place; to have it: {install}"
        )
    except Exception as error:
        # A toolkit whose libraries do not load must not take the doctor down with it.
        return Finding(
            name, f"does not import: {type(error).__name__}: {error}", False, "check its libraries (LD_LIBRARY_PATH)"
        )
    return Finding(name, f"{_toolkit_version(loaded)} ({getattr(loaded, '__file__', 'built in')})")


def _toolkit_version(module: Any) -> str:
    version = getattr(module, "__version__", None) or _version(module.__name__.split(".")[0])
    return str(version) if version else "version not told by its Python module"


def _package(name: str, advice: str) -> Finding:
    version = _version(name)
    if version is None:
        return Finding(name, "not installed", False, advice or f"pip install -c constraints.txt {name}")
    return Finding(name, version)


def _bundled(kind: str) -> Finding:
    from .data import list_examples
    from .models import list_models

    names = list_models() if kind == "models" else list_examples()
    if names:
        return Finding(f"bundled {kind}", ", ".join(names))
    return Finding(
        f"bundled {kind}", "none", False, "the installation is incomplete: install again from the repository"
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
