"""Every command that README, docs, cards and benchmarks print is understood by the program that it names."""

import argparse
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
PROGRAMS = {
    "sirf-diffusion": "sirf_diffusion.cli",
    "stir-diffusion": "sirf_diffusion.cli.stir",
    "python -m benchmarks": "benchmarks.__main__",
}


def commands() -> list:
    """Page, program and arguments of each command in a block of shell lines."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
            for line in re.split(r"\n|&&", re.sub(r"\$\(.*?\)|> \S+", "", block.replace("\\\n", " "))):
                words = [word for word in shlex.split(line, comments=True) if word != "..."]
                if words[:1] == ["torchrun"]:
                    words = ["sirf-diffusion", *words[words.index("sirf_diffusion.cli") + 1 :]]
                while words and re.fullmatch(r"[A-Z_]+=\S+", words[0]):
                    del words[0]
                if words[:1] and words[0] in PROGRAMS:
                    found.append((page, PROGRAMS[words[0]], words[1:]))
                elif words[:2] == ["python", "-m"] and words[2].split(".")[0] == "benchmarks":
                    module = words[2].replace("benchmarks", "benchmarks.__main__") if "." not in words[2] else words[2]
                    found.append((page, module, words[3:]))
    return found


COMMANDS = commands()


class UnderstoodError(Exception):
    """Raised in place of doing it."""


@pytest.mark.parametrize(
    ("page", "module", "words"), COMMANDS, ids=[f"{p.stem}: {' '.join(w)[:60]}" for p, _, w in COMMANDS]
)
def test_command_is_understood(page, module, words, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def understand(self, *arguments, **options):
        parse(self, *arguments, **options)
        raise UnderstoodError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", understand)
    monkeypatch.setattr(sys, "argv", [module, *words])
    with pytest.raises(UnderstoodError):
        importlib.import_module(module).main()


def test_there_are_commands():
    assert len(COMMANDS) > 60
