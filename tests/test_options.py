"""Options with values that make no sense: one line that names the option, before any file is opened."""

import argparse

import pytest

from sirf_diffusion import cli
from sirf_diffusion.cli import stir as stir_cli
from sirf_diffusion.cli.command_line import USER_ERROR, run_command, whole
from sirf_diffusion.reconstructors.methods import ADAPTATIONS, METHODS

#: For a number, and what no number of an option may be.
NO_NUMBERS = ("abc", "", "nan", "inf", "-inf", "1e400", "1" + 30 * "0", "0x10", "1_0")
ODD_NUMBERS = ("0", "-1", "0.5", "1e30", "-1e30")
ODD_SETTINGS = ("abc", "nan", "-1e400", "[1]", "1e30", "(" * 300, "9" * 5000)


def commands(parser, words=()):
    """Every command that runs something: its words and parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield from commands(sub, (*words, name))
            return
    yield words, parser


PROGRAMS = {"sirf-diffusion": cli.build_parser(), "stir-diffusion": stir_cli.build_parser()}
COMMANDS = {
    (program, words): parser
    for program, top in PROGRAMS.items()
    for words, parser in commands(top)
    if parser.get_default("run") is not None and words != ("build",)
}


#: What makes commands end that have no input, or begin without one.
ENDS = {
    ("demo",): ["--model", "nothing.x"],
    ("train",): ["--data", "nothing.h5", "--out", "m.safetensors"],
    ("data", "build"): ["nothing.x"],
}


def needed(parser, but):
    """Values for what a command must be given, besides one option: files that are not there."""
    found = [group._group_actions[0] for group in parser._mutually_exclusive_groups if group.required]
    for action in [*found, *parser._actions]:
        if action is but or not (action.required or action in found):
            continue
        values = ["nothing.x"] * (action.nargs if isinstance(action.nargs, int) else 1)
        yield from ([action.option_strings[0]] if action.option_strings else []) + values


def numeric(program, words, parser):
    for action in parser._actions:
        assert action.type not in (int, float), f"{action.option_strings} takes numbers that are none"
        if getattr(action.type, "__module__", "") == whole.__module__ and action.option_strings:
            yield program, words, action.option_strings[-1]


NUMERIC = [each for (program, words), parser in COMMANDS.items() for each in numeric(program, words, parser)]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(program, words, *options):
        try:
            errors = (*cli.USER_ERRORS, RuntimeError) if program == "stir-diffusion" else cli.USER_ERRORS
            code = run_command(PROGRAMS[program], [*words, *options], ("sirf_diffusion",), errors)
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr().err

    return run


def value_of(parser, option, text):
    action = parser._option_string_actions[option]
    number = action.nargs if isinstance(action.nargs, int) else 1
    # A value that begins with a sign is an option to the parser otherwise.
    return [f"{option}={text}"] if number == 1 and action.nargs is None else [option, *[text] * number]


@pytest.mark.parametrize(("program", "words", "option"), NUMERIC)
def test_a_number_that_is_none_is_refused_before_files_are_opened(run, program, words, option):
    parser = COMMANDS[program, words]
    others = [*ENDS.get(words, ()), *needed(parser, parser._option_string_actions[option])]
    for text in NO_NUMBERS:
        code, said = run(program, words, *others, *value_of(parser, option, text))
        assert code == USER_ERROR, (text, code)
        assert "Traceback" not in said
        assert f"argument {option}" in said, (text, said)
    for text in ODD_NUMBERS:
        code, said = run(program, words, *others, *value_of(parser, option, text))
        assert code == USER_ERROR, (text, code)
        assert len(said.strip().splitlines()) <= 3, said


SETTINGS = [(name, key, "--set") for name, method in METHODS.items() for key in method.with_settings({})]
SETTINGS += [
    ("lisch", key, f"--adapt {name} --adapt-set") for name, kind in ADAPTATIONS.items() for key in kind.defaults()
]


@pytest.mark.parametrize(("method", "key", "option"), SETTINGS)
def test_a_setting_of_a_wrong_kind_is_refused_before_files_are_opened(run, method, key, option):
    for text in ODD_SETTINGS:
        *more, last = option.split()
        code, said = run(
            "sirf-diffusion", ("recon",), "--prompts", "nothing.hs", "--out", "out", "--method", method, *more, last,
            f"{key}={text}",
        )  # fmt: skip
        assert code == USER_ERROR, (text, code, said)
        assert len(said.strip().splitlines()) == 1, said
