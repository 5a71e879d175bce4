"""The house: no import runs up or in a circle, no module is too long, and the sizes are kept."""

import pytest

from benchmarks.structure import LONGEST, circles, imports, lines, modules, room, room_of_shim, upward

PACKAGE = modules("sirf_diffusion")
SHIM = modules("stir_priors")


def test_no_import_runs_up():
    assert upward(PACKAGE) == []


def test_the_shim_knows_nothing_of_the_package():
    assert [one for one in imports(PACKAGE | SHIM) if room_of_shim(one)] == []


def test_no_circles():
    assert circles(PACKAGE | SHIM) == []


def test_no_module_is_too_long():
    assert {name: lines(path) for name, path in (PACKAGE | SHIM).items() if lines(path) > LONGEST} == {}


def test_only_the_environment_stands_beside_the_rooms():
    alone = {name for name, path in PACKAGE.items() if name.count(".") == 1 and path.name != "__init__.py"}
    assert alone == {"sirf_diffusion.environment"}


@pytest.mark.parametrize("where", ["def f():", "if TYPE_CHECKING:"])
def test_an_upward_import_is_found_wherever_it_stands(tmp_path, where):
    path = tmp_path / "environment.py"
    path.write_text(f"{where}\n    from .study import x")
    known = {**PACKAGE, "sirf_diffusion.environment": path}
    found = [one.target for one in upward(known) if one.module == "sirf_diffusion.environment"]
    assert "sirf_diffusion.study" in found
    assert room("sirf_diffusion.study.report") == "study"
