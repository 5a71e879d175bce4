"""Every example runs, on the embedded engine and on SIRF where that is installed; all but the first on a small scan."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from fresh import run as fresh_run
from fresh import run_script
from small_scan import write_conditional_model, write_example, write_small_model

from sirf_diffusion.data import list_examples

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("[0-9]*.py"))
# Priors of this package inside SIRF's own reconstructors are called by STIR through the compiled shim.
NEED_SHIM = ("02_one_step_late.py", "07_your_own_prior.py", "10_before_and_after.py")
IMAGES = {
    "01_osem.py": ["OSEM"],
    "02_one_step_late.py": ["OSEM", "RDP", "score-prior"],
    "03_dds.py": ["DDS", "one-sample"],
    "04_hqs.py": ["HQS", "one-sample"],
    "05_likelihood_scheduling.py": ["mean-of-samples", "standard-deviation"],
    "06_mr_guided.py": ["quadratic", "Bowsher", "DDS-Bowsher"],
    "07_your_own_prior.py": ["OSEM", "own-prior"],
    "08_kappa_and_penalty_scan.py": ["factor-0.005", "factor-0.02", "factor-0.08"],
    "09_three_planes.py": ["OSEM", "DDS-three-planes"],
    "10_before_and_after.py": ["before", "after", "LiSch"],
    "11_domain_shift.py": ["OSEM", "LiSch", "LiSch-with-DDIP", "steerable-LiSch"],
}


@pytest.fixture(scope="session")
def scans(tmp_path_factory):
    """Folder of a slice and of a volume."""
    return {n: write_example(tmp_path_factory.mktemp("example") / str(n), planes=n).folder for n in (1, 3)}


def run(script, engine, output, *more):
    options = ["--engine", engine, "--non-interactive", "--quick", "--output", output]
    code, text = run_script(EXAMPLES / script, *options, *more, cwd=output.parent)
    assert code == 0, text
    assert text.rstrip().splitlines()[-1] == f"=== done with {EXAMPLES / script}"
    return text


def errors(text):
    """The errors that an example prints, by the name of the image."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(": NRMSE ")
        if value:
            found[name] = float(value)
    return found


def check(script, engine, tmp_path, scans):
    more = () if script == "01_osem.py" else ("--path", scans[3 if script == "09_three_planes.py" else 1])
    if more and "subsets=9" in (EXAMPLES / script).read_text(encoding="utf-8"):
        more += ("--subsets", 4)  # of the small scan's 32 views
    text = run(script, engine, tmp_path / "out", *more)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"figure.png", *(f"{name}.hv" for name in IMAGES[script])} <= written
    # Whatever the settings: an image of the head, not noise or nothing. Few steps are far from the best.
    found = errors(text)
    assert max(found.values()) < 0.6
    if script == "02_one_step_late.py":
        assert max(found["RDP"], found["score prior"]) < found["OSEM"]


def test_all_examples_are_tested():
    assert sorted(IMAGES) == SCRIPTS
    assert SCRIPTS


def test_their_usual_data_are_bundled():
    texts = [(EXAMPLES / script).read_text(encoding="utf-8") for script in SCRIPTS]
    assert {name for text in texts for name in re.findall(r'data="(\w+)"', text)} <= set(list_examples())


@pytest.mark.parametrize("script", sorted(IMAGES))
def test_example_runs_on_the_embedded_engine(script, tmp_path, scans):
    check(script, "embedded", tmp_path, scans)


def until_the_data_are_loaded(script):
    sys.path.insert(0, str(EXAMPLES))
    import common

    common.osem = lambda *_: sys.exit("there they are")
    sys.argv = [script, "--engine", "embedded"]
    runpy.run_path(script, run_name="__main__")


def test_a_case_of_the_domain_shift_is_simulated(tmp_path):
    pytest.importorskip("nilearn")
    _, text = fresh_run(until_the_data_are_loaded, str(EXAMPLES / "11_domain_shift.py"), cwd=tmp_path)
    assert re.search(r"^amyloid-negative: (.|\n)*counts, image of 1 x 128 x 128 voxels\nthere they are$", text.strip())


@pytest.mark.requires_sirf
@pytest.mark.parametrize("script", [pytest.param(s, marks=pytest.mark.requires_shim) if s in NEED_SHIM else s
                                    for s in sorted(IMAGES)])  # fmt: skip
def test_example_runs_on_sirf(script, tmp_path, scans):
    check(script, "sirf", tmp_path, scans)


def test_a_conditional_model_takes_the_mr_image(tmp_path, scans):
    model = write_conditional_model(tmp_path / "conditional.safetensors")
    options = ("--conditional-model", model, "--model", write_small_model(tmp_path / "plain.safetensors", 2.0))
    run("06_mr_guided.py", "embedded", tmp_path / "out", "--path", scans[1], *options)
    assert (tmp_path / "out" / "DDS-conditional.hv").is_file()
    plain = ("--conditional-model", tmp_path / "plain.safetensors", "--model", tmp_path / "plain.safetensors")
    with pytest.raises(AssertionError, match="without anatomical images"):
        run("06_mr_guided.py", "embedded", tmp_path / "refused", "--path", scans[1], *plain)
