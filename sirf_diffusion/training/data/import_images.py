"""Which images names of files and folders mean."""

from __future__ import annotations

from pathlib import Path

from ...patient.readers import INTERFILE, NIFTI


def find_images(paths: list[Path]) -> list[Path]:
    """Files and DICOM folders that are meant by names of files and folders.

    A folder stands for all ``.hv``, ``.nii`` and ``.nii.gz`` files under it; if there are none, for itself or each
    folder under it that has files in it: a DICOM series each. What does not exist is kept, to be reported.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        images = [p for p in inside if p.name.lower().endswith(NIFTI + INTERFILE)]
        found += images or sorted({p.parent for p in inside}) or [path]
    return found
