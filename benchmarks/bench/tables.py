"""The tables of a report, as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column: heading, and the text of a row's value."""

    heading: str
    text: Callable[[Row], str]


def number(name: str, form: str = ".3f", factor: float = 1.0) -> Callable[[Row], str]:
    """A number of a row in a format, a dash where there is none."""

    def text(row: Row) -> str:
        value = row.get(name)
        return "–" if value is None or not math.isfinite(value) else format(factor * value, form)

    return text


def _nrmse(row: Row) -> str:
    text, sd = number("nrmse")(row), row.get("nrmse_sd")
    return text if sd is None else f"{text} ± {sd:.3f}"


def _projections(row: Row) -> str:
    return number("forward", ".0f")(row) + " + " + number("back", ".0f")(row)


QUALITY = (
    Column("method", lambda row: str(row["title"])),
    Column("NRMSE", _nrmse),
    Column("PSNR [dB]", number("psnr", ".2f")),
    Column("SSIM", number("ssim")),
    Column("bias", number("bias")),
    Column("SD", number("sd")),
    Column("grey [%]", number("mean grey", "+.1f", 100)),
    Column("white [%]", number("mean white", "+.1f", 100)),
    Column("likelihood z", number("likelihood_z", "+.1f")),
)
PETRIC = (
    Column("method", lambda row: str(row["title"])),
    Column("whole object RMSE", number("petric_whole")),
    Column("background RMSE", number("petric_background")),
    Column("largest VOI error", number("petric_voi")),
)
COST = (
    Column("method", lambda row: str(row["title"])),
    Column("forward + back", _projections),
    Column("network evaluations", number("network_evaluations", ".0f")),
    Column("seconds", number("seconds", ".1f")),
    Column("projector [%]", lambda row: _share(row, "seconds_projector")),
    Column("network [%]", lambda row: _share(row, "seconds_network")),
    Column("peak memory [MiB]", number("peak_memory_mib", ".0f")),
)
CALIBRATION = (
    Column("method", lambda row: str(row["title"])),
    Column("coverage of 95 % [%]", number("coverage", ".1f", 100)),
    Column("of mean ± 1.96 SD [%]", number("coverage_sd", ".1f", 100)),
    Column("SD / error", number("spread", ".2f")),
    Column("fitness check warns [% of runs]", number("warned", ".0f", 100)),
    Column("NRMSE of one sample", number("samples_nrmse")),
    Column("NRMSE of their mean", number("nrmse")),
)


def lesion_columns(rows: Sequence[Row]) -> tuple[Column, ...]:
    """Contrast recovery and contrast to noise of the lesions, and variability of the background, that there are."""
    kinds = list(dict.fromkeys(name[4:] for row in rows for name in row if name.startswith("crc ")))
    columns = [Column("method", lambda row: str(row["title"]))]
    for prefix, title, form in (("crc", "recovery", ".2f"), ("cnr", "CNR", ".1f")):
        columns += [Column(f"{title}: {kind}", number(f"{prefix} {kind}", form)) for kind in kinds]
    sizes = dict.fromkeys(name[12:] for row in rows for name in row if name.startswith("variability "))
    columns += [Column(f"variability: {size} [%]", number(f"variability {size}", ".1f", 100)) for size in sizes]
    return tuple(columns)


def changes(old: Sequence[Row], new: Sequence[Row]) -> list[dict[str, Any]]:
    """What changed since an earlier summary: rows that both have, the numbers of both, and the difference."""
    earlier = {_key(row): row for row in old}
    found = []
    for row in new:
        before = earlier.get(_key(row))
        if before is None:
            continue
        for name in ("nrmse", "psnr", "ssim", "bias", "sd", "coverage", "forward", "network_evaluations", "seconds"):
            a, b = before.get(name), row.get(name)
            if a is not None and b is not None and a != b:
                found.append(
                    {"case": row["case"], "prompts": row["prompts"], "title": row["title"], "number": name,
                     "before": a, "now": b, "change": 100 * (b / a - 1) if a else math.nan}
                )  # fmt: skip
    return found


CHANGES = (
    Column("case", lambda row: f"{row['case']}, {row['prompts']:g}"),
    Column("method", lambda row: str(row["title"])),
    Column("number", lambda row: str(row["number"])),
    Column("before", number("before", ".4g")),
    Column("now", number("now", ".4g")),
    Column("change [%]", number("change", "+.1f")),
)


def as_text(columns: Sequence[Column], rows: Sequence[Row]) -> pandas.DataFrame:
    """A table of text."""
    import pandas

    return pandas.DataFrame([[c.text(row) for c in columns] for row in rows], columns=[c.heading for c in columns])


def print_head(*names: str) -> None:
    """The first lines of a Markdown table: an empty one, and its heading."""
    print()
    print_row(*names)
    print_row(*["---"] * len(names))


def print_row(*cells: object) -> None:
    """A line of a Markdown table, shown at once; real numbers with three decimals."""
    print("| " + " | ".join(f"{c:.3f}" if isinstance(c, float) else str(c) for c in cells) + " |", flush=True)


def markdown(table: pandas.DataFrame) -> str:
    """A table for Markdown."""
    lines = [list(table), ["---"] * table.shape[1], *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines)


def _key(row: Row) -> tuple[Any, ...]:
    return row["case"], row["prompts"], row["method"], row["variant"]


def _share(row: Row, name: str) -> str:
    total, part = row.get("seconds"), row.get(name)
    return "–" if not total or part is None else f"{100 * part / total:.0f}"
