"""Tables of ``sirf-diffusion data``: what is taken in, what became of it, what a file holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: Instead of a subject that only reading the series tells.
_BY_DICOM = "by PatientID"


def print_inputs(inputs: Sequence[Any], each: bool) -> None:
    """What is taken as what, before a build that may take long: every image, or their numbers."""
    from ..training.data.manifest import subject_of

    rows: list[dict[str, str]] = []
    groups: dict[tuple[str, str], list[str]] = {}
    for source in inputs:
        taken = f"emission, with {source.modality}" if source.modality else "emission"
        kind = "left out" if source.left_out else taken
        subject = subject_of(source)
        if subject.startswith("image ") and source.image.is_dir():
            subject = _BY_DICOM
        rows.append(
            {"taken as": kind, "image": str(source.image), "anatomy": str(source.anatomy or ""), "subject": subject,
             "reason": source.left_out}
        )  # fmt: skip
        groups.setdefault((kind, source.left_out), []).append(subject)
    if not each:
        rows = [
            {"taken as": kind, "images": str(len(owners)),
             "subjects": _BY_DICOM if _BY_DICOM in owners else str(len(set(owners))), "reason": reason}
            for (kind, reason), owners in groups.items()
        ]  # fmt: skip
    print_table(rows)
    print(flush=True)


def print_outcomes(outcomes: Sequence[Any]) -> None:
    """Inputs that were left out, or used in part, with the reason."""
    told = [o for o in outcomes if o.reason]
    if told:
        print_table([{"input": str(o.number), "": o.status, "image": o.name, "reason": o.reason} for o in told])
        print()


def print_summary(path: Path) -> None:
    """Volumes and subjects of a file by split."""
    from ..training.data.volume_file import VolumeFile
    from ..training.data.volumes import SPLITS

    file = VolumeFile(path)
    parts = []
    for split in SPLITS:
        members = [info for info in file.infos if info.split == split]
        if members:
            subjects = len({info.subject for info in members})
            parts.append(f"{split} {len(members)} (of {subjects} subject{'s' if subjects > 1 else ''})")
    sizes = " x ".join(f"{v:.4g}" for v in file.voxel_size)
    print(f"{path}: {len(file)} volumes of {sizes} mm: {', '.join(parts)}; {path.stat().st_size / 1e6:.1f} MB")


def print_table(rows: Sequence[dict[str, str]]) -> None:
    """Columns that are not empty."""
    from ..study.report import format_table

    if rows:
        print(format_table(rows, {name: "s" for name in rows[0] if any(row[name] for row in rows)}))
