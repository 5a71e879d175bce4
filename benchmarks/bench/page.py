"""The report: one page that opens from disk without a network, and the same tables as Markdown."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.bench import figures
from benchmarks.bench.campaign import Outcome
from benchmarks.bench.tables import (
    CALIBRATION,
    CHANGES,
    COST,
    PETRIC,
    QUALITY,
    Column,
    as_text,
    changes,
    lesion_columns,
    markdown,
)
from sirf_diffusion.files.atomic import atomic_path

if TYPE_CHECKING:
    import pandas

Row = Mapping[str, Any]

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{{ title }}</title>
<style>
body { font-family: sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; font-size: 85%; margin: 1em 0; }
th, td { padding: 0.25em 0.7em; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
img { max-width: 100%; }
.wide { overflow-x: auto; }
pre { background: #f4f4f4; padding: 0.7em; white-space: pre-wrap; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>{{ about }}</p>
{% for part in sections %}
<h{{ part.level }}>{{ part.heading }}</h{{ part.level }}>
{% if part.text %}<p>{{ part.text }}</p>{% endif %}
{% for table in part.tables %}<div class="wide">{{ table.to_html(index=False, border=0) | safe }}</div>{% endfor %}
{% for words, png in part.figures %}<p><img alt="{{ words }}" src="data:image/png;base64,{{ png }}"></p>{% endfor %}
{% if part.verbatim %}<pre>{{ part.verbatim }}</pre>{% endif %}
{% endfor %}
</body>
</html>
"""

_DOCUMENT = """\
# {{ title }}

{{ about }}.
{% for part in sections %}
{{ "#" * part.level }} {{ part.heading }}
{% if part.text %}
{{ part.text }}
{% endif %}{% for table in part.tables %}
{{ markdown(table) }}
{% endfor %}{% if part.verbatim %}
```
{{ part.verbatim }}
```
{% endif %}{% endfor %}"""


@dataclass
class Section:
    """A heading with text, tables, figures (on the page only) and preformatted text."""

    level: int
    heading: str
    text: str = ""
    verbatim: str = ""
    tables: list[pandas.DataFrame] = field(default_factory=list)
    figures: list[tuple[str, str]] = field(default_factory=list)

    def table(self, columns: Sequence[Column], rows: Sequence[Row]) -> Section:
        """Add a table."""
        self.tables.append(as_text(columns, rows))
        return self

    def figure(self, about: str, png: bytes) -> Section:
        """Add a figure."""
        self.figures.append((about, base64.b64encode(png).decode()))
        return self


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
    import jinja2

    about = outcome.about
    values = {
        "title": f"benchmarks run, suite {about['suite']}",
        "about": about["about"],
        "sections": _sections(outcome, earlier),
        "markdown": markdown,
    }
    for name, template in (("report.html", _PAGE), ("report.md", _DOCUMENT)):
        made = jinja2.Environment(autoescape=name.endswith("html"), trim_blocks=True).from_string(template)
        with atomic_path(folder / name) as temporary:
            temporary.write_text(made.render(values), encoding="utf-8")


def _sections(outcome: Outcome, earlier: Sequence[Row] | None) -> list[Section]:
    about, rows = outcome.about, outcome.summary
    sections = [Section(2, "How it was made", verbatim=_command(about))]
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
        columns = (Column("method", lambda r: r["name"]), Column("why not", lambda r: r["reason"]))
        missing = [{"name": name, "reason": reason} for name, reason in outcome.unavailable.items()]
        sections.append(Section(2, "Not run").table(columns, missing))
    failed = [{"run": r.spec.name, "failure": r.failure} for r in outcome.results if r.failure]
    if failed:
        columns = (Column("run", lambda r: r["run"]), Column("failure", lambda r: r["failure"]))
        sections.append(Section(2, "Failed runs").table(columns, failed))
    return [*sections, _search_section(about)]


def _group(heading: str, rows: Sequence[Row]) -> list[Section]:
    tuned = [r for r in rows if r["variant"] == 1]
    sections = [
        Section(2, heading).table(QUALITY, sorted(tuned, key=lambda r: r.get("nrmse", float("inf")))),
        Section(3, "Errors as in PETRIC, against the truth").table(PETRIC, tuned),
        Section(3, "Cost").table(COST, tuned).figure("cost against error", figures.cost_against_error(rows)),
    ]
    if len(columns := lesion_columns(tuned)) > 1:
        section = Section(3, "Lesions").table(columns, tuned)
        sections.insert(1, section.figure("contrast recovery", figures.lesion_recovery(rows)))
    if any("bias" in r for r in tuned):
        section = Section(3, "Bias against standard deviation", "Each method's first parameter varies along its line.")
        if any(r["variant"] != 1 for r in rows):
            sections.append(section.table(_VARIANTS, rows).figure("bias against SD", figures.bias_against_sd(rows)))
        else:
            sections.append(section.figure("bias against SD", figures.bias_against_sd(rows)))
    sampled = [r for r in tuned if r.get("ranks")]
    if sampled:
        section = Section(3, "Calibration of the samples").table(CALIBRATION, sampled)
        sections.append(section.figure("rank histograms", figures.calibration(sampled)))
    return sections


_VARIANTS = (
    Column("method", lambda row: str(row["title"])),
    Column("settings", lambda row: _settings(json.loads(row["settings"]))),
    Column("NRMSE", lambda row: format(row.get("nrmse", float("nan")), ".3f")),
    Column("bias", lambda row: format(row.get("bias", float("nan")), ".3f")),
    Column("SD", lambda row: format(row.get("sd", float("nan")), ".3f")),
)


def _search_section(about: Mapping[str, Any]) -> Section:
    section = Section(2, "Search", "Mean NRMSE of all candidates on the tuning subjects, in the order they were tried.")
    columns = (
        Column("method / prompts", lambda r: r["key"]),
        Column("candidates tried", lambda r: r["tried"]),
        Column("chosen", lambda r: r["chosen"]),
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
