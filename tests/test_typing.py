"""The public names are typed: mypy in its strict mode accepts a script that uses all of them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sirf_diffusion

TESTS = Path(__file__).parent


def test_the_script_uses_every_public_name():
    used = set(re.findall(r"\bsd\.(\w+)", (TESTS / "public_names.py").read_text(encoding="utf-8")))
    assert used == set(sirf_diffusion.__all__)


@pytest.mark.slow
def test_a_script_with_every_public_name_is_strictly_typed():
    pytest.importorskip("mypy", reason="mypy is not installed (extra: dev)")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(TESTS / "public_names.py")]
    found = subprocess.run(
        command, cwd=TESTS.parent, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": ""}
    )
    assert found.returncode == 0, found.stdout + found.stderr
