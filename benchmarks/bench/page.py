"""The report: one page that opens from disk without a network, and the same tables as Markdown."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench import figures
from benchmarks.bench.campaign import Outcome
from benchmarks.bench.tables import (
    CALIBRATION,
    CHANGES,
    COST,
    PETRIC,
    QUALITY,
    Column,
    changes,
    html_table,
    lesion_columns,
    markdown,
)
from sirf_diffusion.files.outputs import atomic_path

Row = Mapping[str, Any]

_STYLE = """
body { font-family: sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; font-size: 85%; margin: 1em 0; }
th, td { padding: 0.25em 0.7em; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child, .words { text-align: left; }
td:first-child { white-space: nowrap; }
img { max-width: 100%; }
pre { background: #f4f4f4; padding: 0.7em; white-space: pre-wrap; overflow-wrap: anywhere; }
"""


def write_report(outcome: Outcome, folder: Path, earlier: Sequence[Row] | None = None) -> None:
    """Write ``report.html`` and ``report.md``.

    Parameters
    ----------
    outcome
        What the benchmark found.
    folder
        Where to write.
    earlier
        Summary of an earlier run, to show what changed.
    """
    sections = _sections(outcome, earlier)
    about = outcome.about
    title = f"benchmarks run, suite {about['suite']}"
    body = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(about['about'])}</p>"]
    lines = [f"# {title}", "", about["about"] + ".", ""]
    for section in sections:
        body.append(section.html())
        lines.append(section.markdown())
    text = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )
    for name, content in (("report.html", text), ("report.md", "\n".join(lines))):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")


class Section:
    """A heading with text, tables, figures (on the page only) and preformatted text."""

    def __init__(self, level: int, heading: str, text: str = "") -> None:
        self.level, self.heading, self.text = level, heading, text
        self._tables: list[tuple[Sequence[Column], Sequence[Row]]] = []
        self._figures: list[tuple[str, bytes]] = []
        self._verbatim: list[str] = []

    def table(self, columns: Sequence[Column], rows: Sequence[Row]) -> Section:
        """Add a table."""
        self._tables.append((columns, rows))
        return self

    def figure(self, about: str, png: bytes) -> Section:
        """Add a figure."""
        self._figures.append((about, png))
        return self

    def verbatim(self, text: str) -> Section:
        """Add text as it is."""
        self._verbatim.append(text)
        return self

    def html(self) -> str:
        """As part of a page."""
        parts = [f"<h{self.level}>{html.escape(self.heading)}</h{self.level}>"]
        parts += [f"<p>{html.escape(self.text)}</p>"] if self.text else []
        parts += [html_table(columns, rows) for columns, rows in self._tables]
        for about, png in self._figures:
            data = base64.b64encode(png).decode()
            parts.append(f'<p><img alt="{html.escape(about)}" src="data:image/png;base64,{data}"></p>')
        parts += [f"<pre>{html.escape(text)}</pre>" for text in self._verbatim]
        return "\n".join(parts)

    def markdown(self) -> str:
        """As part of a document, without figures."""
        parts = ["#" * self.level + " " + self.heading, self.text]
        parts += [markdown(columns, rows) for columns, rows in self._tables]
        parts += [f"```\n{text}\n```" for text in self._verbatim]
        return "\n\n".join(part for part in parts if part) + "\n"


def _sections(outcome: Outcome, earlier: Sequence[Row] | None) -> list[Section]:
    about, rows = outcome.about, outcome.summary
    sections = [Section(2, "How it was made").verbatim(_command(about))]
    if earlier is not None:
        found = changes(earlier, rows)
        text = "Numbers that differ from the earlier run's." if found else "No number differs from the earlier run's."
        section = Section(2, "Changes", text)
        sections.append(section.table(CHANGES, found) if found else section)
    groups = list(dict.fromkeys((r["case"], r["prompts"]) for r in rows))
    for kind, prompts in groups:
        members = [r for r in rows if (r["case"], r["prompts"]) == (kind, prompts)]
        sections += _group(f"{kind}, {prompts:.3g} prompts per plane", members)
    if len(about["sizes"]["prompts"]) > 1:
        for kind in dict.fromkeys(r["case"] for r in rows):
            members = [r for r in rows if r["case"] == kind]
            section = Section(2, f"Error by counts: {kind}")
            sections.append(section.figure("NRMSE against counts", figures.error_by_counts(members)))
    titles = {r["method"]: r["title"] for r in rows}
    for case in outcome.cases.values():
        section = Section(2, f"Images: {case.spec.name}", "One window for all images, one for biases, one for SDs.")
        sections.append(section.figure("images", figures.image_grid(case, outcome.maps, titles)))
    if outcome.unavailable:
        columns = (Column("method", lambda r: r["name"]), Column("why not", lambda r: r["reason"], words=True))
        missing = [{"name": name, "reason": reason} for name, reason in outcome.unavailable.items()]
        sections.append(Section(2, "Not run").table(columns, missing))
    failed = [{"run": r.spec.name, "failure": r.failure} for r in outcome.results if r.failure]
    if failed:
        columns = (Column("run", lambda r: r["run"]), Column("failure", lambda r: r["failure"], words=True))
        sections.append(Section(2, "Failed runs").table(columns, failed))
    return [*sections, _search_section(about)]


def _group(heading: str, rows: Sequence[Row]) -> list[Section]:
    tuned = [r for r in rows if r["variant"] == 1]
    sections = [
        Section(2, heading).table(QUALITY, sorted(tuned, key=lambda r: r.get("nrmse", float("inf")))),
        Section(3, "Lesions").table(lesion_columns(tuned), tuned),
        Section(3, "Errors as in PETRIC, against the truth").table(PETRIC, tuned),
        Section(3, "Cost").table(COST, tuned),
    ]
    if any("crc" in name for r in tuned for name in r):
        sections[1].figure("contrast recovery", figures.lesion_recovery(rows))
    if any("bias" in r for r in tuned):
        section = Section(3, "Bias against standard deviation", "Each method's first parameter varies along its line.")
        if any(r["variant"] != 1 for r in rows):
            sections.append(section.table(_VARIANTS, rows).figure("bias against SD", figures.bias_against_sd(rows)))
        else:
            sections.append(section.figure("bias against SD", figures.bias_against_sd(rows)))
    sections[3].figure("cost against error", figures.cost_against_error(rows))
    sampled = [r for r in tuned if r.get("ranks")]
    if sampled:
        section = Section(3, "Calibration of the samples").table(CALIBRATION, sampled)
        sections.append(section.figure("rank histograms", figures.calibration(sampled)))
    return sections


_VARIANTS = (
    Column("method", lambda row: str(row["title"])),
    Column("settings", lambda row: _settings(json.loads(row["settings"])), words=True),
    Column("NRMSE", lambda row: format(row.get("nrmse", float("nan")), ".3f")),
    Column("bias", lambda row: format(row.get("bias", float("nan")), ".3f")),
    Column("SD", lambda row: format(row.get("sd", float("nan")), ".3f")),
)


def _search_section(about: Mapping[str, Any]) -> Section:
    section = Section(2, "Search", "Mean NRMSE of all candidates on the tuning subjects, in the order they were tried.")
    columns = (
        Column("method / prompts", lambda r: r["key"]),
        Column("candidates tried", lambda r: r["tried"], words=True),
        Column("chosen", lambda r: r["chosen"], words=True),
    )
    rows = []
    for key, tried in about["searches"].items():
        finite = [t for t in tried if t["nrmse"] is not None and t["nrmse"] < float("inf")]
        best = min(finite, key=lambda t: t["nrmse"]) if finite else {}
        rows.append(
            {"key": key, "tried": "; ".join(map(_candidate, tried)), "chosen": _candidate(best) if best else "none"}
        )
    return section.table(columns, rows)


def _candidate(tried: Mapping[str, Any]) -> str:
    settings = _settings({name: value for name, value in tried.items() if name != "nrmse"})
    error = "failed" if tried["nrmse"] is None else f"{tried['nrmse']:.4f}"
    return f"{settings}: {error}"


def _settings(settings: Mapping[str, Any]) -> str:
    numbers = (int, float)
    return ", ".join(f"{k} {v:.3g}" if isinstance(v, numbers) else f"{k} {v}" for k, v in settings.items())


def _command(about: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["software"].items())
    models = "; ".join(f"{role}: {m['name']} ({m['sha256'][:12]})" for role, m in about["models"].items())
    sizes = json.dumps(about["sizes"])
    return (
        f"{about['command']}\n\nversions: {versions}\nmodels: {models}\ndevice: {about['device']}, "
        f"{about['threads']} threads\nsizes: {sizes}"
    )
