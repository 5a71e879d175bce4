"""``sirf-diffusion doctor``: what was found, what works, what to install for the rest."""

from __future__ import annotations

import argparse
import importlib
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .command_line import add_command

_CORE = ("monai", "einops", "safetensors", "h5py", "matplotlib", "tqdm", "joblib")
_TRAINING = ("nilearn", "nibabel")


def add_parsers(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    summary = "say what was found and what works"
    about = "Say what was found (PyTorch, CUDA, STIR, SIRF, models), what works here, and what to install for the rest."
    add_command(commands, common, "doctor", run, summary=summary, about=about, example="sirf-diffusion doctor")


def run(arguments: argparse.Namespace) -> int:
    """Print the findings."""
    findings = list(examine())
    width = max(len(f.name) for f in findings)
    for finding in findings:
        print(f"{' - ' if finding.advice else 'yes'}  {finding.name.ljust(width)}  {finding.found}")
        if finding.advice:
            print(f"     {' ' * width}  {finding.advice}")
    found = {f.name: not f.advice for f in findings}
    core = found["bundled models"] and all(found[name] for name in _CORE)
    print("\nWorks here:")
    for what, works in (
        ("demo, recon: OSEM and MAP-EM with RDP, from Interfile", True),
        ("demo, recon: score priors and diffusion samplers", core),
        ("train", core and all(found[name] for name in _TRAINING)),
        ("a GPU for projector and network", found["CUDA"]),
        ("scripts that get sirf.STIR from sirf_diffusion.get_engine()", found["SIRF"]),
    ):
        print(f"{'yes' if works else 'no '}  {what}")
    return 0


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``advice`` says what to do where something is missing, and is empty otherwise."""

    name: str
    found: str
    advice: str = ""


def examine() -> Iterator[Finding]:
    """Look at the machine; imports STIR and SIRF if they are there."""
    import torch

    from .. import __version__
    from ..data import list_examples
    from ..environment import version_of
    from ..models import list_models

    yield Finding("sirf-diffusion", f"{__version__}, Python {platform.python_version()} ({sys.executable})")
    yield Finding("torch", f"{torch.__version__}, {torch.get_num_threads()} threads")
    yield _cuda()
    yield Finding("embedded engine", "reads STIR Interfile; cylindrical scanners, no TOF, no list mode")
    yield _toolkit("STIR", "stir", "conda install -c conda-forge stir")
    yield _toolkit("SIRF", "sirf.STIR", "docker image ghcr.io/synerbi/sirf:latest")
    advice = dict.fromkeys(_CORE, "pip install -c constraints.txt -e .")
    advice |= dict.fromkeys(_TRAINING, 'only for training: pip install -c constraints.txt -e ".[train]"')
    for name, to_do in advice.items():
        version = version_of(name)
        yield Finding(name, version or "not installed", "" if version else to_do)
    for kind, names in (("models", list_models()), ("examples", list_examples())):
        to_do = "" if names else "the installation is incomplete: install again from the repository"
        yield Finding(f"bundled {kind}", ", ".join(names) or "none", to_do)


def _cuda() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding("CUDA", f"{torch.version.cuda}: {names}")
    if torch.version.cuda is None:
        return Finding(
            "CUDA", "this build of PyTorch is for CPU only", "for a GPU: https://pytorch.org/get-started/locally"
        )
    return Finding("CUDA", "no device found", "check the driver with nvidia-smi; everything works on the CPU too")


def _toolkit(name: str, module: str, install: str) -> Finding:
    from ..environment import version_of

    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError:
        return Finding(name, "not installed", f"not needed, the embedded engine takes its place; to have it: {install}")
    except Exception as error:
        # A toolkit whose libraries do not load must not take the doctor down with it.
        found = f"does not import: {type(error).__name__}: {error}"
        return Finding(name, found, "check its libraries (LD_LIBRARY_PATH)")
    version = getattr(loaded, "__version__", None) or version_of(module.split(".")[0])
    version = version or "version not told by its Python module"
    return Finding(name, f"{version} ({getattr(loaded, '__file__', 'built in')})")
