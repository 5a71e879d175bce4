"""The container's and conda's recipes: what they copy and call exists, nothing secret, nothing floating unseen."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
SCRIPTS = sorted(DOCKER.glob("*.sh"))


def instructions() -> list[tuple[str, str]]:
    """Instruction and argument of each line of the Dockerfile, continued lines joined, comments left out."""
    lines = [line for line in (DOCKER / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word.upper(), rest.strip()) for word, _, rest in (ln.partition(" ") for ln in joined.splitlines() if ln)]


def arguments_of(instruction: str) -> list[str]:
    return [argument for word, argument in instructions() if word == instruction]


def test_every_copied_file_exists_and_is_copied_before_it_is_run():
    present: set[str] = set()
    for word, argument in instructions():
        if word == "COPY":
            *sources, target = argument.split()
            for source in sources:
                assert (ROOT / source).exists(), source
                present.add(f"{target}{Path(source).name}" if target.endswith("/") else source)
        if word == "RUN" and (match := re.match(r"docker/\S+\.sh", argument)):
            assert match[0] in present
            assert os.access(ROOT / match[0], os.X_OK)


def test_the_final_user_is_not_root():
    assert arguments_of("USER")[-1] == "${NB_UID}"


def test_nothing_secret_and_nothing_left_behind():
    text = "".join(path.read_text() for path in DOCKER.iterdir())
    assert not re.search(r"password|secret|token|api[_-]?key|BEGIN [A-Z ]*PRIVATE KEY", text, re.IGNORECASE)
    for argument in arguments_of("RUN"):
        if "apt-get install" in argument:
            assert "--no-install-recommends" in argument
            assert "rm -rf /var/lib/apt/lists/*" in argument
        assert "curl" not in argument
        assert "wget" not in argument
    for command in re.findall(r"pip install[^\n]*", "".join(p.read_text() for p in [DOCKER / "Dockerfile", *SCRIPTS])):
        assert "--no-cache-dir" in command


@pytest.mark.parametrize(
    ("tag", "index"), [("latest", "whl/cpu"), ("latest-gpu", "pypi.org"), ("v3.9.0-gpu", "pypi.org")]
)
def test_pytorch_comes_from_the_index_of_the_tag(tag, index, tmp_path):
    """Run the script with a ``python`` that only prints what it was asked."""
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho "$@"\n')
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", str(DOCKER / "install-torch.sh"), tag]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert re.search(rf"torch==\d\S* --index-url https://\S*{re.escape(index)}", done.stdout)


@pytest.mark.parametrize("path", [*SCRIPTS, ROOT / "examples" / "stir" / "run.sh"], ids=lambda path: path.name)
def test_scripts_are_valid_and_stop_at_errors(path):
    text = path.read_text()
    shell = text.splitlines()[0].removeprefix("#!/bin/")
    assert re.search(r"^set -eu", text, re.MULTILINE)
    assert os.access(path, os.X_OK)
    subprocess.run([shell, "-n", str(path)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(path)], check=True)


def console_scripts() -> set[str]:
    section = re.search(r"\[project\.scripts\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), re.DOTALL)[1]
    return set(re.findall(r"^(\S+) =", section, re.MULTILINE))


def quoted_commands() -> set[tuple[str, str]]:
    """Console scripts with their sub-commands as the recipes and their README call them."""
    found = set()
    for path in [*DOCKER.iterdir(), ROOT / "examples" / "stir" / "run.sh"]:
        # Comments quote commands with an indent of three blanks.
        code = re.sub(r"^(?:RUN |say |#   )\s*", "", path.read_text(), flags=re.MULTILINE)
        found |= set(
            re.findall(r"(?:^|[`&|] *| -w \S+ \S+ )(sirf-diffusion|stir-diffusion) ([a-z]+)\b", code, re.MULTILINE)
        )
    return found


def test_commands_that_are_called_exist():
    from sirf_diffusion.cli import build_parser as parser_of_sirf
    from sirf_diffusion.cli.stir import build_parser as parser_of_stir

    parsers = {"sirf-diffusion": parser_of_sirf(), "stir-diffusion": parser_of_stir()}
    assert set(parsers) <= console_scripts()
    commands = quoted_commands()
    assert ("stir-diffusion", "build") in commands
    for script, command in commands:
        assert command in parsers[script]._subparsers._group_actions[0].choices, f"{script} {command}"
    # The options too: argparse ends the process for one that it does not have.
    for argument in arguments_of("RUN"):
        for part in argument.split("&&"):
            words = shlex.split(part)
            if words and words[0] in parsers:
                parsers[words[0]].parse_args(words[1:])


def test_conda_environment_has_what_a_build_needs():
    text = (DOCKER / "environment.yml").read_text()
    packages = dict(re.findall(r"^  - ([a-z0-9-]+)([<>=][^\s]*)?$", text.split("dependencies:")[1], re.MULTILINE))
    assert set(packages) == {"python", "stir", "cxx-compiler", "cmake", "ninja", "pybind11", "pip"}
    assert packages["stir"].startswith(">=6.2")
    # The lower bounds are those of the extra that pip would install.
    extra = re.search(r"^stir = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    for name in ("cmake", "pybind11"):
        assert f'"{name}{packages[name]}"' in extra
    assert not text.count("\t")


@pytest.mark.requires_shim
def test_the_images_own_check_passes_here():
    """What the image runs when it is built, with this environment's commands."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    folder = Path(sys.executable).parent
    environment["PATH"] = f"{folder}{os.pathsep}{environment['PATH']}"
    missing = [name for name in sorted(console_scripts()) if shutil.which(name, path=environment["PATH"]) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed in {folder}: pip install -e .")
    done = subprocess.run(
        [str(DOCKER / "check-image.sh")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing is wrong" in done.stdout
