"""Changes of headers and parameter files that must be refused, with the words of the refusal (several: ``a & b``)."""

import csv
from pathlib import Path


def escaped_rows(name: str) -> list[dict[str, str]]:
    """Rows of ``reference/<name>.csv``, whose cells are written with Python's escapes."""
    with (Path(__file__).parent / "reference" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return [{key: v.encode().decode("unicode_escape") for key, v in row.items()} for row in csv.DictReader(file)]


def refused(table: str) -> list[tuple[str, str, str, str, list[str]]]:
    """Name, old text, new text, kind of the error, words that it must hold."""
    rows = [row for row in escaped_rows("refused_changes") if row["table"] == table]
    return [(*(row[key] for key in ("name", "old", "new", "kind")), row["words"].split(" & ")) for row in rows]
