"""Markers, threads and fixtures that every test module may use.

``requires_stir``, ``requires_shim``, ``requires_sirf``, ``requires_cuda`` and ``requires_diffusers`` skip a test where
the thing is absent; the environment variables ``REQUIRE_STIR=1`` (also for the shim), ``REQUIRE_SIRF=1``,
``REQUIRE_CUDA=1`` and ``REQUIRE_DIFFUSERS=1`` turn these skips into failures, so that a machine that is meant to have
them cannot pass by skipping.
"""

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch


@functools.lru_cache
def _imports(module: str) -> str:
    """Empty if ``module`` imports, otherwise the last line of the error. In a child: a broken library may abort."""
    child = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True, check=False)
    if child.returncode == 0:
        return ""
    return (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]


@functools.lru_cache
def _reason_shim() -> str:
    """Empty if the compiled module of ``stir_priors`` is there, which is compiled once if STIR and a compiler are."""
    from filelock import FileLock  # which PyTorch brings

    from stir_priors.build import ShimError, build

    try:
        with FileLock(Path(tempfile.gettempdir()) / f"stir-priors-tests-{os.getuid()}.lock"):
            build()
    except ShimError as problem:
        return str(problem)
    return ""


_REQUIREMENTS = {
    "stir": (lambda: _imports("stir"), "REQUIRE_STIR"),
    "shim": (_reason_shim, "REQUIRE_STIR"),
    "sirf": (lambda: _imports("sirf.STIR"), "REQUIRE_SIRF"),
    "cuda": (lambda: "" if torch.cuda.is_available() else "no CUDA device", "REQUIRE_CUDA"),
    "diffusers": (lambda: _imports("diffusers"), "REQUIRE_DIFFUSERS"),
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name, (reason_of, variable) in _REQUIREMENTS.items():
        if item.get_closest_marker(f"requires_{name}") is None:
            continue
        reason = reason_of()
        if not reason:
            continue
        if os.environ.get(variable) == "1":
            pytest.fail(f"{variable}=1, but {name} is not usable here: {reason}", pytrace=False)
        pytest.skip(f"{name} is not usable here: {reason}")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process a core; tests of a single file run in the process that was started, where ``breakpoint()`` serves."""
    if len(config.args) == 1 and config.args[0].partition("::")[0].endswith(".py"):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


def pytest_configure(config: pytest.Config) -> None:
    # Processes take the cores, and small tensors gain nothing from threads. STIR's sums depend on the order in which
    # its threads finish, and some comparisons here are exact.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture
def generator() -> torch.Generator:
    """A freshly seeded CPU generator: tests never touch the global one."""
    return torch.Generator().manual_seed(20240229)


@pytest.fixture
def untouched_random_state():
    """A test with this fixture fails if PyTorch's global random state was used in it."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "the global random state was used; pass a torch.Generator"


@pytest.fixture
def undrawn(request, monkeypatch):
    """Figures of results, and all noise levels of their check, half of a small one's time, are for ``draws`` alone."""
    if request.node.get_closest_marker("draws") is None:
        for name in ("study.result.report_figure", "study.enhancement.figure_of_views",
                     "personalise.members.member_figure"):  # fmt: skip
            monkeypatch.setattr(f"sirf_diffusion.{name}", lambda path, *_, **__: Path(path).touch())
        monkeypatch.setattr("sirf_diffusion.training.log.TrainingLog._draw", lambda self: None)
        monkeypatch.setattr("sirf_diffusion.study.fitness.PROBES", {0.1: 1, 1.6: 1})


@pytest.fixture(scope="module")
def few_levels():
    """Trained networks are validated at three noise levels or doses, beside three filters."""
    with pytest.MonkeyPatch.context() as patch:
        for name, values in {
            "validation.SIGMAS": (0.1, 0.4, 1.6), "validation.GAUSSIAN_FWHM_PIXELS": (1.0, 4.0, 14.0),
            "doses.DOSES": (0.1, 0.05, 0.02), "doses.GAUSSIAN_FWHM_PIXELS": (1.0, 4.0, 14.0),
        }.items():  # fmt: skip
            patch.setattr(f"sirf_diffusion.training.evaluation.{name}", values)
        yield


@pytest.fixture(scope="session")
def small_scan(tmp_path_factory):
    """One plane of `small_scan.write_small_scan`; files of it are ``small_scan.prompts_hs`` and so on."""
    from small_scan import write_small_scan

    return write_small_scan(tmp_path_factory.mktemp("scan"))


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """File of a score model with random weights for it."""
    from small_scan import write_small_model

    return write_small_model(tmp_path_factory.mktemp("model") / "small.safetensors")


@pytest.fixture(scope="session")
def small_acquisition(small_scan):
    """The small scan, read."""
    from sirf_diffusion.engines.embedded.acquisition import Acquisition

    files = {name: getattr(small_scan, f"{name}_hs") for name in ("multiplicative", "additive")}
    return Acquisition.from_files(small_scan.prompts_hs, **files, attenuation=small_scan.mu_hv)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A small file of training volumes."""
    from training_file import write_training_file

    return write_training_file(tmp_path_factory.mktemp("data") / "data.h5")


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory):
    """A small acquisition simulated with STIR-Python, see ``stir_shim_scan.py``."""
    from stir_shim_scan import simulate

    return simulate(tmp_path_factory.mktemp("scan"))


@pytest.fixture(scope="module")
def pet():
    """SIRF's engine, see ``sirf_scan.quiet_sirf``."""
    from sirf_scan import quiet_sirf

    from sirf_diffusion import get_engine

    with quiet_sirf():
        yield get_engine("sirf")


@pytest.fixture(scope="module")
def stir():
    """STIR-Python with this package's priors and filters, silent; parameter files may run Python."""
    import stir_priors
    from sirf_diffusion.interop.stir.python_blocks import ALLOW

    stir_priors.load()
    import stir

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ALLOW, "1")
        before = stir.Verbosity.get()
        stir.Verbosity.set(0)
        yield stir
        stir.Verbosity.set(before)
