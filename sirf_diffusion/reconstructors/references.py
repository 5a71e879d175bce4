"""What to cite: BibTeX entries of the methods and of the programs that they ran with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

from ..models.grid import THREE_ORIENTATIONS

_ENGINES = {"stir": ("Thielemans2012",), "sirf": ("Ovtchinnikov2020", "Thielemans2012")}


def references(
    method: Any, engine: Mapping[str, str], adaptation: Any = None, model: Any = None, guidance: float = 0.0
) -> list[str]:
    """Keys of what a run used: method, adaptation, personalised model, three orientations, guidance, engine."""
    keys = [*method.references, *getattr(adaptation, "references", ())]
    training = getattr(model, "metadata", {}).get("training", {})
    keys += ["WebberPersonalised2025"] * ("personalised" in training)
    keys += ["Lee2023"] * (getattr(model, "planes", None) in THREE_ORIENTATIONS) + ["Ho2022"] * (guidance != 0)
    return list(dict.fromkeys([*keys, *_ENGINES.get(engine["name"], ())]))


def bibtex(keys: Iterable[str]) -> str:
    """Entries of these keys, each once, in their order; KeyError for an unknown one.

    Examples
    --------
    >>> print(bibtex(["Song2020"]).splitlines()[0])
    @article{Song2020,
    """
    text = files(__package__).joinpath("references.bib").read_text(encoding="utf-8")
    entries = {found[1]: found[0] for found in re.finditer(r"@\w+\{(\w+),.*?^\}\n", text, re.DOTALL | re.MULTILINE)}
    return "\n".join(entries[key] for key in dict.fromkeys(keys))
