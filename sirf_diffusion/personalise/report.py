"""The page of a personalisation: what became of each member, pseudo-PETs, and what the training changed."""

from __future__ import annotations

import os
import shutil
from html import escape
from pathlib import Path

from ..files.outputs import OutputFolder
from ..models.score_model import ScoreModel
from ..training.data.volume_file import VolumeFile
from .figures import curves_figure, pseudo_figure
from .pipeline import Personalised, denoising_curves

_COLUMNS = {
    "jacobian": "least Jacobian", "information_affine": "MI, affine", "information": "MI",
    "inverse_mm": "inverse [mm]", "overlap": "overlap", "similarity": "similarity",
}  # fmt: skip
_ADVICE = "give another folder"
_STYLE = "body{font-family:sans-serif;margin:2em;max-width:70em}td,th{padding:.2em .8em}img{max-width:100%}"


def check_report(path: str | os.PathLike[str]) -> None:
    """Refuse a folder that holds something else than a report, before hours of work for it."""
    folder = Path(path)
    if not (folder / "report.json").exists():
        OutputFolder(folder, {}, record_name="report.json", advice=_ADVICE).check()


def write_report(made: Personalised, population: str, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write ``index.html`` with its figures and ``report.json`` into a folder; returns the page."""
    curves = denoising_curves(made.work, {population: population, "personalised": made.model})
    model = ScoreModel.load(made.model)
    settings = {"model": model.hash}
    folder = OutputFolder(path, settings, record_name="report.json", overwrite=overwrite, advice=_ADVICE)
    numbers = {
        "members": [{"number": m.number, "reason": m.reason, **m.quality} for m in made.members], "denoising": curves,
    }  # fmt: skip
    with folder.staged(numbers) as staging:
        drawn = {m.number: f"{m.number - 1:05d}.png" for m in made.members}  # but those that were not registered
        drawn = {n: name for n, name in drawn.items() if (made.work / "members" / name).is_file()}
        for name in drawn.values():
            shutil.copyfile(made.work / "members" / name, staging / name)
        members, pseudo = VolumeFile(made.work / "members.h5"), VolumeFile(made.work / "pseudo.h5")
        mr = sum(members.volume(k, "anatomy").float().numpy() for k in range(len(members))) / len(members)
        some = [pseudo.volume(k).float().numpy() for k in range(min(5, len(pseudo)))]
        pseudo_figure(staging / "pseudo.png", some, mr, model.expected_image.image.values)
        curves_figure(staging / "denoising.png", curves)
        (staging / "index.html").write_text(_page(made, curves, drawn), encoding="utf-8")
    return folder / "index.html"


def _page(made: Personalised, curves: dict[str, dict[float, float]], drawn: dict[int, str]) -> str:
    good = sum(not m.reason for m in made.members)
    heads = "".join(f"<th>{name}</th>" for name in ("member", *_COLUMNS.values(), "left out"))
    rows = "".join(
        f"<tr><td>{m.number}</td>"
        + "".join(f"<td>{m.quality[key]:.2f}</td>" if key in m.quality else "<td></td>" for key in _COLUMNS)
        + f"<td>{escape(m.reason)}</td></tr>"
        for m in made.members
    )
    levels = list(next(iter(curves.values())))
    table = "".join(f"<th>{level:g}</th>" for level in levels)
    lines = "".join(
        f"<tr><td>{escape(name)}</td>" + "".join(f"<td>{errors[level]:.4f}</td>" for level in levels) + "</tr>"
        for name, errors in curves.items()
    )
    figures = "".join(f'<img src="{name}" alt="member {number}">' for number, name in drawn.items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Personalised model</title><style>{_STYLE}</style>'
        f"<h1>{escape(made.model.name)}</h1><p>{good} of {len(made.members)} members of the bank were registered well "
        "enough to be used. Look at the checks: structures must go on from field to field.</p>"
        f"<table><tr>{heads}</tr>{rows}</table><h2>Pseudo-PETs</h2><img src='pseudo.png' alt='pseudo-PETs'>"
        "<h2>Denoising before and after</h2><p>Root mean square error on pseudo-PETs kept from the training, by noise "
        f"level.</p><table><tr><th>model</th>{table}</tr>{lines}</table><img src='denoising.png' alt='curves'>"
        f"<h2>Members</h2>{figures}</html>\n"
    )
