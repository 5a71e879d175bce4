"""Which image belongs to whom: a CSV or JSON table, or the names of files."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .volumes import SPLITS

COLUMNS = ("subject", "image", "mr", "ct", "split")


@dataclass(frozen=True)
class ImageInput:
    """One emission image to take in.

    Attributes
    ----------
    image
        Its file or folder.
    subject
        Whose it is; empty if the file itself or its name has to tell.
    anatomy
        The anatomical image of the same subject in the same space, if any.
    modality
        ``MR`` or ``CT`` if there is one.
    split
        Wanted split, or empty.
    """

    image: Path
    subject: str = ""
    anatomy: Path | None = None
    modality: str = ""
    split: str = ""


def read_manifest(path: Path) -> list[ImageInput]:
    """Read a table with a column ``image``, and any of ``subject``, ``mr``, ``ct``, ``split``.

    CSV with a line of names first, or a JSON list of objects. Names of files are relative to the table.

    Raises
    ------
    ValueError
        If the table cannot be read, a column is unknown or ``image`` missing, a split is unknown, a row has both MR and
        CT, or a subject has two splits.
    """
    rows = _rows(path)
    inputs = []
    for number, row in enumerate(rows, start=1):
        where = f"{path}, row {number}"
        unknown = sorted(set(row) - set(COLUMNS))
        if unknown:
            raise ValueError(f"{where}: unknown column {unknown[0]!r}; known are {', '.join(COLUMNS)}")
        row = {name: str(value).strip() for name, value in row.items() if value is not None}
        if not row.get("image"):
            raise ValueError(f"{where}: no 'image'")
        if row.get("mr") and row.get("ct"):
            raise ValueError(f"{where}: both 'mr' and 'ct'; one anatomical image per volume")
        split = row.get("split", "")
        if split and split not in SPLITS:
            raise ValueError(f"{where}: split must be one of {', '.join(SPLITS)}, or empty, found {split!r}")
        anatomy = row.get("mr") or row.get("ct")
        inputs.append(
            ImageInput(
                path.parent / row["image"],
                row.get("subject", ""),
                path.parent / anatomy if anatomy else None,
                ("MR" if row.get("mr") else "CT") if anatomy else "",
                split,
            )
        )
    _check_splits(inputs, path)
    return inputs


def paired(images: Sequence[Path], anatomies: Sequence[Path], modality: str) -> list[ImageInput]:
    """Images and, if any, as many anatomical images in the same order.

    Raises
    ------
    ValueError
        If their numbers differ.
    """
    if not anatomies:
        return [ImageInput(image) for image in images]
    if len(anatomies) != len(images):
        raise ValueError(
            f"{len(images)} images and {len(anatomies)} {modality} images: give one for each image, in the same order, "
            "or a --manifest"
        )
    return [ImageInput(i, anatomy=a, modality=modality) for i, a in zip(images, anatomies, strict=True)]


def subject_of(source: ImageInput, patient: str) -> str:
    """Whose it is: as given; else ``sub-...`` in its path (BIDS); else the patient identifier; else its path."""
    if source.subject:
        return source.subject
    found = re.search(r"(?:^|[/_\\])(sub-[0-9A-Za-z]+)", str(source.image))
    if found:
        return found[1]
    return f"patient {patient}" if patient else f"image {source.image.resolve()}"


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: export the table as CSV (UTF-8)") from error
    if path.suffix.lower() == ".json":
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path} is no JSON: {error}") from error
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{path} must be a list of objects, each with a key 'image'")
    else:
        first = text.splitlines()[0] if text.strip() else ""
        table = csv.DictReader(text.splitlines(), delimiter=";" if first.count(";") > first.count(",") else ",")
        rows = []
        for number, row in enumerate(table, start=1):
            if None in row:
                raise ValueError(f"{path}, row {number}: more values than columns")
            rows.append({name.strip().lower(): value for name, value in row.items()})
    if not rows:
        raise ValueError(f"{path} has no rows: expected the columns {', '.join(COLUMNS)}, of which 'image' is needed")
    return rows


def _check_splits(inputs: list[ImageInput], path: Path) -> None:
    splits: dict[str, str] = {}
    for source in inputs:
        if source.subject and source.split and splits.setdefault(source.subject, source.split) != source.split:
            raise ValueError(
                f"{path}: subject {source.subject!r} is in both {splits[source.subject]} and {source.split}; a model "
                "is not to be judged on subjects that it was trained on"
            )
