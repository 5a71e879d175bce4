"""The shim in a process: order of imports, memory, Ctrl-C, second copies, builds."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from interrupts import heed_interrupts
from par_files import par_text
from stir_shim_blocks import python
from stir_shim_scan import environment, run_python

from sirf_diffusion.data import load_example
from sirf_diffusion.interop.stir.python_blocks import ALLOW
from stir_priors import build as building
from stir_priors.build import ShimError, find_builds, find_stir


def needs_stir(test):
    """Mark a test that needs STIR and the compiled module."""
    return pytest.mark.requires_stir(pytest.mark.requires_shim(test))


def passes(code, *arguments, cwd, **options):
    """Run code in a process of its own, which has to end well."""
    ran = run_python(code, *arguments, cwd=cwd, **options)
    assert ran.returncode == 0, ran.output


@needs_stir
@pytest.mark.parametrize("imports", ["stir", "torch, stir", "stir, torch", "sys"])
def test_any_order_of_imports_works(imports, tmp_path):
    code = f"""
import {imports}
import stir_priors
first = stir_priors.load()
import stir, torch
assert stir_priors.load() is first
assert "Diffusion Score" in first.prior_names()
assert torch.ones(3).sum() == 3
"""
    passes(code, cwd=tmp_path)


COMPUTE = """
import torch, numpy, sirf_diffusion, {0} as engine
kind = getattr(engine, "ImageData", None) or engine.FloatVoxelsOnCartesianGrid.read_from_file
image = kind(str(sirf_diffusion.load_example("brain2d").folder / "truth.hv"))
values = image.as_array() if hasattr(image, "as_array") else __import__("stirextra").to_numpy(image)
x = torch.from_numpy(numpy.array(values, numpy.float32))[None]
assert torch.nn.functional.conv2d(x, torch.ones(1, 1, 3, 3)).sum() > 8 * x.sum() > 0
"""


@pytest.mark.parametrize("other", ["torch", "sirf_diffusion.models.score_model, h5py, matplotlib.pyplot"])
@pytest.mark.parametrize("engine", [
    pytest.param("stir", marks=pytest.mark.requires_stir), pytest.param("sirf.STIR", marks=pytest.mark.requires_sirf)
])  # fmt: skip
def test_engines_are_imported_before_and_after_ours(engine, other, tmp_path):
    for order in (f"{engine}, {other}", f"{other}, {engine}"):
        passes(f"import {order}\n{COMPUTE.format(engine)}", cwd=tmp_path)


@needs_stir
def test_nothing_beside_a_parameter_file_takes_the_place_of_an_installed_module(tmp_path):
    """A run, and a prior that it may run, import none of these from the folder of the file."""
    for name in ("numpy", "json", "torch", "sirf_diffusion", "safetensors", "colorsys"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w').close()\n")
    (tmp_path / "mine.py").write_text(
        "import colorsys\nclass Prior:\n    def gradient(self, x, out): out[...] = colorsys.rgb_to_hsv(0, 0, 0)[2]\n"
    )
    example = load_example("brain2d").folder
    keys = "penalisation factor := 1\nmodule := mine\nclass := Prior"
    block = f"prior type := Python\nPython Parameters :=\n{keys}\nEND Python Parameters :="
    text = par_text(example / "prompts.hs", "image", block, subsets=1, subiterations=1)
    (tmp_path / "my.par").write_text(text)
    variables = {name: value for name, value in environment().items() if name != ALLOW}
    script = "import sys; sys.path.remove(''); from sirf_diffusion.cli.stir import main; sys.exit(main())"
    for options, code in (([], 2), (["--python-module", "mine"], 0)):
        words = [sys.executable, "-c", script, "run", *options, "OSMAPOSL", "my.par"]
        done = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        assert not (tmp_path / "was_run").exists()
    assert (tmp_path / "image_1.hv").exists()


@needs_stir
@pytest.mark.requires_sirf
def test_sirf_and_stir_python_share_one_shim(tmp_path):
    code = "import sirf.STIR, torch, stir, stir_priors; stir_priors.load(); stir_priors.load()"
    passes(code, cwd=tmp_path)


@needs_stir
def test_a_second_copy_of_the_shim_registers_nothing(tmp_path):
    original = find_builds()[0].module
    copy = tmp_path / original.name
    shutil.copy(original, copy)
    # Depending on its version, pybind11 gives the first module again, or runs the second, which finds its names taken.
    code = """
import sys, stir_priors
first = stir_priors.load()
names = first.prior_names(), first.processor_names()
del sys.modules["stir_priors._shim"]
try:
    second = stir_priors.load(sys.argv[1])
except stir_priors.ShimError as problem:
    assert "already registered" in str(problem), problem
else:
    assert second is first
assert names == (first.prior_names(), first.processor_names())
"""
    passes(code, copy, cwd=tmp_path)


@needs_stir
def test_a_shim_for_another_stir_is_refused(tmp_path):
    code = """
import stir, stir_priors, stir_priors.loader as loader
loader._version = lambda host: "6.1"
try:
    stir_priors.load()
except stir_priors.ShimError as problem:
    assert "6.1" in str(problem) and "stir-diffusion build" in str(problem), problem
else:
    raise SystemExit("loaded")
"""
    passes(code, cwd=tmp_path)


@needs_stir
def test_a_thousand_subiterations_leak_no_memory(scan):
    code = """
import gc, resource, sys, stir, stir_priors
stir_priors.load()
stir.Verbosity.set(0)

def memory_after_a_run():
    assert stir.OSMAPOSLReconstruction3DFloat(sys.argv[1]).reconstruct().succeeded()
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

memory = [memory_after_a_run() for run in range(5)]
# STIR's own caches grow now and then, with its own priors too; a leak grows in every run: an image left behind
# by each subiteration would be 9 MB a run, a hundred bytes 100 kB.
assert min(after - before for before, after in zip(memory, memory[1:])) < 2**16, memory
assert not stir_priors.load().living_priors()
"""
    par = scan.par("long", python("TenLines", 0.01), subsets=63, subiterations=1000)
    passes(code, par, cwd=scan.folder, timeout=280)


def _interrupted(command, cwd):
    """Start, wait until STIR has called Python, press Ctrl-C; exit code and output."""
    called = cwd / "called"
    called.unlink(missing_ok=True)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, cwd=cwd, env=environment(), text=True, preexec_fn=heed_interrupts, **pipes) as child:
        for _ in range(600):
            if called.exists() and called.stat().st_size >= 3:
                break
            time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        output, _ = child.communicate(timeout=60)
    return child.returncode, output


@needs_stir
def test_ctrl_c_ends_a_run_and_keeps_saved_estimates(scan):
    par = scan.par("slow", python("Slow", 0.1), subiterations=2000, save=2)
    code, output = _interrupted([str(find_builds()[0].program("OSMAPOSL")), str(par)], scan.folder)
    assert code == 130, output
    assert "interrupted by Ctrl-C" in output
    assert np.isfinite(scan.image("slow_2")).all()


@needs_stir
def test_ctrl_c_is_an_exception_of_stir_python(scan):
    script = scan.folder / "interrupt.py"
    script.write_text(
        "import sys, stir, stir_priors\n"
        "stir_priors.load()\n"
        "stir.Verbosity.set(0)\n"
        "reconstruction = stir.OSMAPOSLReconstruction3DFloat(sys.argv[1])\n"
        "try:\n"
        "    reconstruction.reconstruct()\n"
        "    print('went on')\n"
        "except RuntimeError as problem:\n"
        "    print(problem)\n"
    )
    par = scan.par("slowpy", python("Slow", 0.1), subiterations=2000, save=2)
    code, output = _interrupted([sys.executable, "-W", "ignore", str(script), str(par)], scan.folder)
    assert code == 0, output
    assert "interrupted by Ctrl-C" in output
    assert np.isfinite(scan.image("slowpy_2")).all()


@pytest.fixture
def no_stir(monkeypatch, tmp_path):
    """A machine without STIR."""
    for variable in ("STIR_DIR", "CONDA_PREFIX", "SIRF_INSTALL_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(building, "_prefixes", lambda: iter([tmp_path]))
    monkeypatch.setenv("SIRF_DIFFUSION_CACHE", str(tmp_path / "cache"))
    return tmp_path


def fake_stir(folder, version="6.3.0", headers=True, libraries=True):
    """Files of an installed STIR, as far as they are looked at before CMake runs."""
    short = ".".join(version.split(".")[:2])
    config = folder / "lib" / "cmake" / f"STIR-{short}"
    config.mkdir(parents=True)
    (config / "STIRConfig.cmake").write_text("")
    (config / "STIRConfigVersion.cmake").write_text(f'set(PACKAGE_VERSION "{version}")\n')
    (config / "STIRTargets-release.cmake").write_text(
        'set_target_properties(b PROPERTIES IMPORTED_LOCATION_RELEASE "${_IMPORT_PREFIX}/lib/libbuildblock.a")\n'
    )
    if headers:
        include = folder / "include" / f"STIR-{short}" / "stir"
        include.mkdir(parents=True)
        (include / "DataProcessor.h").write_text("")
    if libraries:
        (folder / "lib" / "libbuildblock.a").write_text("")
    return config


def test_without_stir_the_message_says_how_to_get_one(no_stir, caplog):
    with pytest.raises(ShimError, match=r"no STIR found: .*--stir-dir.*conda"):
        building.build()
    with caplog.at_level(logging.INFO, logger="stir_priors"):
        assert building.build_if_possible() is None
    assert "no STIR found" in caplog.text


def test_a_folder_without_stir_is_named(no_stir):
    with pytest.raises(ShimError, match=r"nowhere \(from the argument\) has no STIRConfig.cmake"):
        find_stir("nowhere")


@pytest.mark.parametrize(("options", "message"), [
    ({"version": "6.1.0"}, "STIR 6.1.0 .* is too old: 6.2 or newer"), ({"headers": False}, "has no headers"),
    ({"libraries": False}, "has no libraries to link: .*libbuildblock.a"),
])  # fmt: skip
def test_an_unsuitable_stir_is_refused_with_the_reason(options, message, no_stir):
    fake_stir(no_stir / "opt", **options)
    with pytest.raises(ShimError, match=message):
        building.build(no_stir / "opt")


def test_missing_tools_are_named(no_stir, monkeypatch):
    fake_stir(no_stir / "opt")
    monkeypatch.setattr(building.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ShimError, match="pybind11 is missing: pip install"):
        building.build(no_stir / "opt")
    monkeypatch.setattr(building.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(building, "_which", lambda name: None)
    with pytest.raises(ShimError, match="cmake is missing: pip install"):
        building.build(no_stir / "opt")
    monkeypatch.setattr(building, "_which", lambda name: f"/bin/{name}")
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    with pytest.raises(ShimError, match="CXX=no-such-compiler is not there"):
        building.build(no_stir / "opt")


def test_stir_is_found_by_prefix_and_by_its_cmake_folder(no_stir, monkeypatch):
    config = fake_stir(no_stir / "opt")
    assert find_stir(no_stir / "opt") == config
    assert find_stir(config) == config
    monkeypatch.setenv("STIR_DIR", os.fspath(config))
    assert find_stir() == config
