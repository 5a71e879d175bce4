"""The package as it is installed: cheap to import, typed, complete."""

import re
import subprocess
import sys
import tarfile
import zipfile
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


def test_extras_bring_what_the_benchmarks_import():
    """But those that check this package with the tests' needs."""
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = metadata["optional-dependencies"]
    wanted = [*metadata["dependencies"], *extras["bench"], *extras["bm4d"]]
    brought = {re.split(r"[>=<;\s]", name)[0].lower().replace("scikit-image", "skimage") for name in wanted}
    known = brought | {"benchmarks", "sirf_diffusion", "stir_priors", "stir", "sirf", *sys.stdlib_module_names}
    scripts = [*ROOT.glob("benchmarks/*.py"), *ROOT.glob("benchmarks/bench/*.py")]
    for path in (path for path in scripts if not path.name.startswith("kill")):
        found = re.findall(r"^ *(?:from|import) (\w+)", path.read_text("utf-8"), re.MULTILINE)
        assert {name.lower() for name in found} <= known, path


def test_the_bundled_data_are_small_enough_to_ship():
    data = [p for p in (ROOT / "sirf_diffusion" / "data").rglob("*") if p.is_file()]
    assert sum(path.stat().st_size for path in data) <= 3e6


def test_links_in_the_documentation_lead_somewhere():
    assert not list(broken_links(ROOT))


def broken_links(root):
    pages = [*root.glob("*.md"), *(root / "docs").rglob("*.md")]
    assert pages
    for page in pages:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            path = target.split("#")[0]
            if path and "://" not in path and not (page.parent / path).exists():
                yield f"{page.relative_to(root)}: {target}"


def build(kind, folder, source):
    """What the build system makes of a folder."""
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    told = subprocess.check_output([sys.executable, "-c", code, folder], cwd=source, text=True, stderr=subprocess.PIPE)
    return folder / told.split()[-1]


def test_source_and_wheel_are_complete(tmp_path):
    """What is unpacked has all that its README needs, and gives a wheel with every module and every file of data."""
    with tarfile.open(build("sdist", tmp_path, ROOT)) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    for name in ("constraints.txt", "SECURITY.md", "LICENSE", "conftest.py", "noxfile.py", ".ci/run", "docs/conf.py",
                 "examples/stir", "examples/01_osem.py", "benchmarks/__main__.py", "docker/Dockerfile",
                 "tests/conftest.py", "tests/fixtures/version-1/unfinished/.unfinished/settings.json"):  # fmt: skip
        assert (source / name).exists(), f"{name} is missing"
    assert not list(broken_links(source))
    with zipfile.ZipFile(build("wheel", tmp_path, source)) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = set()
    for package in ("sirf_diffusion", "stir_priors"):
        wanted |= {p.relative_to(ROOT).as_posix() for p in (ROOT / package).rglob("*") if p.is_file()}
    assert packed == {name for name in wanted if "__pycache__" not in name}
