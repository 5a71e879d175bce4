"""Where SIRF is not installed, asking for it says so."""

import importlib
import sys

import pytest

from sirf_diffusion import get_engine


@pytest.fixture
def no_sirf(monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "sirf" or n.startswith("sirf_diffusion.interop.sirf")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sirf", None)


@pytest.mark.parametrize(
    "ask", [lambda: get_engine("sirf"), lambda: importlib.import_module("sirf_diffusion.interop.sirf")]
)
def test_says_what_is_missing_and_what_to_do(no_sirf, ask):
    with pytest.raises(ImportError, match=r"sirf.STIR.*get_engine\('embedded'\)"):
        ask()


def test_the_package_does_not_need_it(no_sirf):
    assert get_engine("embedded").ImageData.__module__.startswith("sirf_diffusion")
