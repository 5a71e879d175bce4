"""What README, docs, cards, `--help` and the benchmarks' texts print is understood by the program that it names."""

import argparse
import ast
import importlib
import itertools
import pydoc
import re
import shlex
import sys
import textwrap
from pathlib import Path

import pytest

import benchmarks.__main__
import sirf_diffusion.cli
import sirf_diffusion.cli.stir
from benchmarks.bench.table import get_line
from sirf_diffusion.models.storage import list_models
from sirf_diffusion.simulation.tracers import TRACERS
from sirf_diffusion.training.configuration import read_configuration
from sirf_diffusion.training.enhancement_recipes import ENHANCEMENT_RECIPES
from sirf_diffusion.training.recipes import RECIPES

ROOT = Path(__file__).parents[1]


def texts(*patterns):
    return {str(p.relative_to(ROOT)): p.read_text("utf-8") for pattern in patterns for p in ROOT.glob(pattern)}


def blocks(text, language):
    return map(textwrap.dedent, re.findall(rf"^ *```{language}\n(.*?)```", text, re.DOTALL | re.MULTILINE))


def parsers(parser):
    """This one and those of its sub-commands."""
    yield parser
    for action in parser._actions:
        for child in action.choices.values() if isinstance(action, argparse._SubParsersAction) else ():
            yield from parsers(child)


MAINS = {"sirf-diffusion": sirf_diffusion.cli, "stir-diffusion": sirf_diffusion.cli.stir}
MAINS["python -m benchmarks"] = benchmarks.__main__
PARSERS = {parser.prog: parser for main in MAINS.values() for parser in parsers(main.build_parser())}
PAGES = texts("[!C]*.md", "CONTRIBUTING.md", "docs/**/*.md", "benchmarks/*.md", "docker/*.md", "sirf_diffusion/**/*.md")
SCRIPTS = texts("benchmarks/*.py")
SHELL = {name: "\n".join(blocks(text, "sh")) for name, text in PAGES.items()}
SHELL |= {name: (parser.epilog or "").removeprefix("example: ") for name, parser in PARSERS.items()}
SHELL |= {name: ast.get_docstring(ast.parse(text)) or "" for name, text in SCRIPTS.items()}
SHELL |= {name: text.replace(";", "") for name, text in texts("stir_priors/par/*.par").items()}
#: What a line begins with, and what that stands for.
LINES = (
    (r"^\s*(\.\.\. |[A-Z_]+=\S+ )*", ""),
    (r"^torchrun .*-m sirf_diffusion.cli", "sirf-diffusion"),
    (r"^python benchmarks/(\w+)\.py", r"python -m benchmarks.\1"),
    (r"^benchmarks/gpu.sh", "python -m benchmarks.gpu --out"),
    (r"^benchmarks/gpu_train.sh (\S+)", r"python -m benchmarks.gpu_train train \1 --out"),
)


def commands(text):
    """Module and arguments of each line that is a command of ours."""
    for line in re.split(r"\n|&&", re.sub(r"\$\(.*?\)|> \S+|[][]", "", text.replace("\\\n", " "))):
        for found, put in LINES:
            line = re.sub(found, put, line)
        if found := re.match(r"(sirf-diffusion|stir-diffusion|python -m benchmarks)(?:\.(\w+))?(?: |$)", line):
            module = f"benchmarks.{found[2]}" if found[2] else MAINS[found[1]].__name__
            yield module, [word for word in shlex.split(line[found.end() :], comments=True) if word != "..."]


COMMANDS = {name: list(commands(text)) for name, text in SHELL.items()}


MODELS = {*list_models(), *list_models(enhancing=True), "brain-fdg-deft", "brain-fdg-deft-3d"}
NAMES = dict.fromkeys(("--model", "--init", "--init-h", "--distil", "--h-transform"), MODELS)
NAMES |= {"--recipe": {*RECIPES, *ENHANCEMENT_RECIPES}, "--tracer": set(TRACERS)}


class UnderstoodError(Exception):
    """Raised in place of doing it."""


@pytest.mark.parametrize("name", [name for name, found in COMMANDS.items() if found])
def test_commands_are_understood(name, monkeypatch):
    """And no two of a page write to one place: who gives them one after the other would be refused."""
    parse, written = argparse.ArgumentParser.parse_args, {}

    def understand(self, *arguments, **options):
        told = parse(self, *arguments, **options)
        for line in getattr(told, "methods", None) or [] if "-m" in self.prog else []:
            get_line(line)
        raise UnderstoodError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", understand)
    for module, words in COMMANDS[name]:
        monkeypatch.setattr(sys, "argv", [module, *words])
        with pytest.raises(UnderstoodError):
            importlib.import_module(module).main()
        for option, value in itertools.pairwise(words):
            assert value in NAMES.get(option, value) or "." in value or words[:2] == ["data", "build"]
            assert not re.match("(examples|sirf_diffusion)/", value) or (ROOT / value).exists()
        if name in PAGES and "--out" in words:
            assert written.setdefault(words[words.index("--out") + 1], words) == words


def test_every_command_helps_with_an_example():
    for name, parser in PARSERS.items():
        assert parser.epilog is None or parser.epilog in parser.format_help()
        assert COMMANDS[name] or name.startswith("python -m benchmarks ")
    assert sum(map(len, COMMANDS.values())) > 150


OPTIONS = {option for parser in PARSERS.values() for option in parser._option_string_actions}
OPTIONS |= set(re.findall(r"--[a-z-]+", "".join(SCRIPTS.values()))) | {"--gpus", "--index-url", "--pdb", "--upgrade"}


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_names_exists(name, tmp_path):
    """Options, sub-commands, files of the repository, names of the package; Python and TOML can be read."""
    text, code = PAGES[name], "\n".join(blocks(PAGES[name], "python"))
    spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    for words in (" ".join(span.split()) for span in spans):
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*\b", words)) <= OPTIONS, words
        if found := re.match(r"((?:sirf|stir)-diffusion|python -m benchmarks)(?: [a-z]+(?:-[a-z]+)*)*", words):
            assert {found[0], found[0].rpartition(" ")[0]} & set(PARSERS), words
        if re.match(r"(examples|benchmarks|tests|docs|docker|stir_priors)/[\w/.-]+$", words):
            assert (ROOT / words).exists(), words
    for dotted in re.findall(r"\bsirf_diffusion(?:\.[A-Za-z_]\w*)+", code + " ".join(spans)):
        assert pydoc.locate(dotted) is not None, dotted
    for block in blocks(text, "python"):
        compile(block, name, "exec")
    for statement in re.findall(r"^(?:from|import) (?:sirf_diffusion|benchmarks).*", code, re.MULTILINE):
        exec(statement, {})
    for block in blocks(text, "toml"):
        (tmp_path / "a.toml").write_text(block)
        read_configuration(tmp_path / "a.toml")
