"""The table of methods: settings with their defaults, checks, documentation; and a method that is added to it."""

import ast
import os
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from tiny_model import small_model
from toy_model import Fixed, ToyModel, identity
from toy_objective import make_toy

from benchmarks.settings_tables import adaptation_table, settings_table, shared_table, speed_table
from sirf_diffusion.cli import main
from sirf_diffusion.reconstructors.methods import (
    ADAPTATIONS,
    METHODS,
    build_adaptation,
    build_reconstructor,
    methods_of,
)
from sirf_diffusion.reconstructors.references import bibtex, references
from sirf_diffusion.reconstructors.settings import SPEEDS, listed
from sirf_diffusion.study.reconstruction import reconstruct

DOCS = Path(__file__).resolve().parents[1] / "docs"
TABLES = [
    *(("methods.md", f"## {name}", lambda name=name: settings_table(METHODS[name])) for name in METHODS),
    ("methods.md", "## Settings that all samplers share", shared_table),
    ("methods.md", "## Speed", speed_table),
    ("adaptation.md", "## Settings (`--adapt-set NAME=VALUE`)", adaptation_table),
]


@pytest.mark.parametrize(("file", "heading", "table"), TABLES, ids=[heading for _, heading, _ in TABLES])
def test_the_documentations_tables_are_those_of_the_methods(file, heading, table):
    """With UPDATE_DOCS=1 in the environment they are written anew."""
    page = DOCS / file
    text = page.read_text(encoding="utf-8")
    start = text.index(f"{heading}\n")
    first = text.index("| setting |", start)
    last = re.compile(r"\n(?!\|)").search(text, first).start()
    if os.environ.get("UPDATE_DOCS") == "1":
        page.write_text(text[:first] + table() + text[last:], encoding="utf-8")
    else:
        assert text[first:last] == table()


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.samples])
def test_defaults_follow_how_the_model_sees_the_image(name):
    objective, _ = make_toy((4, 8, 8))
    method = METHODS[name]
    for planes, volume in (("transverse", False), ("three", True), ("alternating", True)):
        model = ToyModel(identity).on(objective.geometry, 1.0)
        model.planes = planes
        if method.own_adaptation is None:
            expected = method.with_settings({}, volume=volume)
            assert build_reconstructor(name, objective, {}, model=model).settings.items() >= {
                **expected, "planes": None
            }.items()  # fmt: skip
            made = method(objective, model)  # the class and the command have the same defaults
            assert made.settings == build_reconstructor(name, objective, {}, model=model).settings


@pytest.mark.parametrize(("name", "given", "message"), [
    ("map-rdp", {"speed": "fast"}, "map-rdp has no speed to choose"),
    ("steerable", {"speed": "balanced"}, "steerable has no speed to choose"),
    ("lisch", {"speed": "slow"}, "speed must be one of accurate, balanced, fast"),
    ("dds", {"anchor": 1}, "no setting 'anchor'; it has num_steps=28"),
    ("dds", {"num_inner": "abc"}, "num_inner must be an integer"),
    ("dds", {"num_steps": 1e30}, "num_steps must be an integer of at most"),
    ("dds", {"eta": float("nan")}, "eta must be a number"),
    ("dds", {"eta": 1.5}, r"in \[0, 1\]"),
    ("hqs", {"beta": 0}, r"in \(0, inf\)"),
    ("lisch", {"step_size": 2}, r"in \(0, 2\)"),
    ("lisch", {"planes": "all"}, "planes must be one of"),
    ("lisch", {"target": 3.0, "num_em_iterations": 2.0}, "not both"),
    ("ddip", {"final_step": 1}, "final_step must be True or False"),
    ("map-score", {"noise_level": None}, "noise_level must be a number"),
])  # fmt: skip
def test_settings_are_checked_before_anything_else(name, given, message):
    with pytest.raises(ValueError, match=message):
        METHODS[name].with_settings({k: v for k, v in given.items() if k != "speed"}, speed=given.get("speed"))


@pytest.mark.parametrize("name", ["dds", "hqs", "lisch"])
@pytest.mark.parametrize("volume", [False, True])
def test_speeds_are_defaults_of_settings(name, volume):
    objective, _ = make_toy((4 if volume else 1, 8, 8))
    accurate, balanced, fast = (METHODS[name].with_settings({}, volume=volume, speed=s) for s in SPEEDS)
    assert balanced == METHODS[name].with_settings({}, volume=volume)
    if volume:  # fewer levels lose lesions
        assert balanced == {**accurate, "crop": True, "coarse_above": 0.35}
    assert accurate["num_steps"] >= balanced["num_steps"] > fast["num_steps"]
    assert METHODS[name].with_settings({"num_steps": 7}, volume=volume, speed="fast") == {**fast, "num_steps": 7}
    made = METHODS[name](objective, ToyModel(identity), speed="fast")  # a class as a command
    assert made.settings.items() >= fast.items()
    adapted = METHODS[name](objective, ToyModel(identity), adaptation=build_adaptation("ddip"))
    assert adapted.settings.items() >= accurate.items()  # a network that adapts gets all levels


@pytest.mark.parametrize("name", METHODS)
def test_the_command_lists_each_setting_with_default_range_and_meaning(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["recon", "--list-settings", name])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    own = METHODS[name].own_adaptation
    known = [("--set", METHODS[name].parts(), METHODS[name].with_settings({}))]
    known += [] if own is None else [("--adapt-set", (own.group,), own.defaults())]
    for option, parts, usual in known:
        for entry in (entry for part in parts for entry in listed(part)):
            told = f"  {option} {entry.name}={usual[entry.name]}"
            at = next(k for k, line in enumerate(lines) if line.startswith(told))
            assert entry.metadata["allowed"] in lines[at]
            assert lines[at + 1].strip()
    if name == "lisch":
        told = "in volumes 0.4, accurate 2.5, accurate in volumes 0.4, fast 2.5, fast in volumes 0.4, published 0.0"
        assert f"  --set anchor_strength=1.5, {told} (number in [0, inf))" in lines
        assert not any("](" in line for line in lines)


def test_the_published_settings_are_the_papers():
    objective, _ = make_toy((4, 8, 8))
    made = METHODS["dds"].published(objective, ToyModel(identity), num_inner=7).settings
    assert (made["eta"], made["anchor_strength"], made["smoothing"], made["num_inner"]) == (0.85, 10.0, 0.0, 7)


def test_adaptations_have_the_defaults_of_their_classes():
    for name, choice in ADAPTATIONS.items():
        own = choice().settings
        assert build_adaptation(name).settings == own
        assert choice.defaults().items() <= own.items()


def test_a_method_is_one_file_and_one_line(monkeypatch):
    """The page says so: its file, as printed, becomes a method by its line, as printed."""
    source, line = re.findall(r"```python\n(.*?)```", (DOCS / "extending.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(source.splitlines()) < 60
    module = ModuleType("sirf_diffusion.reconstructors.diffusion.ascent")
    module.__package__ = "sirf_diffusion.reconstructors.diffusion"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, "ascent.py", "exec"), vars(module))
    found = methods_of(ast.literal_eval(f"({line.strip()})"))
    monkeypatch.setitem(METHODS, "ascent", found["ascent"])
    assert found["ascent"].with_settings({}, volume=True)["num_inner"] == 3
    with pytest.raises(ValueError, match="step_size must be a number"):
        found["ascent"].with_settings({"step_size": 2.0})
    objective, truth = make_toy(dtype=torch.float32)
    start = truth * 1.5
    run = build_reconstructor("ascent", objective, {"num_steps": 4}, model=ToyModel(Fixed(start)))
    assert float(objective.value(run.process().get_output())) > float(objective.value(start))
    record = reconstruct(objective, "ascent", model=small_model(), num_samples=2, settings={"num_steps": 2}).record
    assert record["values"]["num_inner"] == 2


def test_everything_that_a_run_cites_has_one_entry():
    entries = bibtex(key for kind in (*METHODS.values(), *ADAPTATIONS.values()) for key in kind.references)
    entries += bibtex(
        references(METHODS["lisch"], {"name": "sirf"}, model=SimpleNamespace(planes="alternating"), guidance=1.0)
    )
    assert all(kind.references for kind in (*METHODS.values(), *ADAPTATIONS.values()))
    for key in ("Nuyts2002", "Singh2024", "Webber2025", "Barbano2025", "Lee2023", "Ho2022", "Ovtchinnikov2020"):
        assert f"{{{key},\n" in entries
    assert entries.count("{Webber2025,") == 2
    assert entries.count("title = ") == entries.count("year = ") == entries.count("\n}\n")
