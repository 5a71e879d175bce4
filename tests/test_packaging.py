"""The package as it is installed: cheap to import, typed, complete."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import sirf_diffusion

ROOT = Path(sirf_diffusion.__file__).parents[1]

HEAVY = ("monai", "matplotlib", "h5py", "nibabel", "nilearn", "tqdm", "scipy", "skimage", "einops", "stir", "sirf")


def test_importing_takes_nothing_heavy_besides_torch():
    script = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import sirf_diffusion\n"
        "print(*{m.split('.')[0] for m in set(sys.modules) - before})\n"
    )
    added = subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, text=True).split()
    assert "sirf_diffusion" in added
    assert not set(HEAVY) & set(added)


def test_every_public_name_exists():
    for name in sirf_diffusion.__all__:
        assert getattr(sirf_diffusion, name) is not None
    assert set(sirf_diffusion.__all__) <= set(dir(sirf_diffusion))
    with pytest.raises(AttributeError, match="no_such_name"):
        sirf_diffusion.no_such_name  # noqa: B018


def test_the_package_is_typed_and_says_its_version():
    assert (ROOT / "sirf_diffusion" / "py.typed").is_file()
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {sirf_diffusion.__version__}" in changes
    assert f"version: {sirf_diffusion.__version__}" in citation


def test_every_folder_with_code_is_a_package():
    for module in (ROOT / "sirf_diffusion").rglob("*.py"):
        assert (module.parent / "__init__.py").is_file(), f"{module.parent} is left out of an installation"


def test_the_bundled_data_are_small_enough_to_ship():
    data = [p for p in (ROOT / "sirf_diffusion" / "data").rglob("*") if p.is_file()]
    assert sum(path.stat().st_size for path in data) <= 3e6


def test_links_in_the_documentation_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert pages
    broken = []
    for page in pages:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            path = target.split("#")[0]
            if path and "://" not in path and not (page.parent / path).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken
