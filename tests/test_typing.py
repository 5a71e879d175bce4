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


# Of PyTorch, the types that the script sees: all of it takes mypy four times as long.
CONFIGURATION = """[mypy]
strict = True
follow_imports = silent
[mypy-torch.*,matplotlib.*]
follow_imports = skip
[mypy-torch,torch._C.*,torch._tensor]
follow_imports = silent
"""


def test_a_script_with_every_public_name_is_strictly_typed(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed (extra: dev)")
    (tmp_path / "mypy.ini").write_text(CONFIGURATION)
    command = [sys.executable, "-m", "mypy", "--config-file", str(tmp_path / "mypy.ini"), "tests/public_names.py"]
    found = subprocess.run(
        command, cwd=TESTS.parent, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": ""}
    )
    assert found.returncode == 0, found.stdout + found.stderr
