"""``sirf-diffusion doctor``: what was found, what works, what to install for the rest."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser = subparsers.add_parser(
        "doctor",
        parents=[common],
        help="say what was found and what works",
        description="Say what was found (PyTorch, CUDA, STIR, SIRF, models), what works here, and what to install "
        "for the rest.",
        epilog="example: sirf-diffusion doctor",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the findings."""
    from ..environment import examine

    findings = examine()
    width = max(len(f.name) for f in findings)
    for finding in findings:
        print(f"{'yes' if finding.ok else ' - '}  {finding.name.ljust(width)}  {finding.found}")
        if finding.advice and not finding.ok:
            print(f"     {' ' * width}  {finding.advice}")
    found = {f.name: f.ok for f in findings}
    print("\nWorks here:")
    for what, works in _capabilities(found):
        print(f"{'yes' if works else 'no '}  {what}")
    return 0


def _capabilities(found: dict[str, bool]) -> list[tuple[str, bool]]:
    core = all(found[name] for name in ("monai", "einops", "safetensors", "h5py", "matplotlib", "tqdm"))
    return [
        ("demo, recon: OSEM and MAP-EM with RDP, from Interfile", True),
        ("demo, recon: score priors and diffusion samplers", core and found["bundled models"]),
        ("train", core and found["nilearn"] and found["nibabel"]),
        ("a GPU for projector and network", found["CUDA"]),
        ("scripts that get sirf.STIR from sirf_diffusion.get_engine()", found["SIRF"]),
    ]
