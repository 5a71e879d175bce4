"""The `stir-diffusion` command, the sample parameter files, and the documentation of their keys."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from refused_changes import refused

import stir_priors
from sirf_diffusion.cli import stir_scan as scan
from sirf_diffusion.cli.stir import main
from sirf_diffusion.data import load_example
from sirf_diffusion.files.interfile import read_image, write_image
from sirf_diffusion.files.parfile import ParFile, fold
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.interop.stir import blocks, python_blocks, registry, run
from sirf_diffusion.interop.stir import check as checking
from sirf_diffusion.interop.stir.callbacks import make_prior
from sirf_diffusion.models.storage import find_model

PACKAGE = Path(stir_priors.__file__).parent
SAMPLES = sorted((PACKAGE / "par").glob("*.par"))
ROOT = Path(__file__).parents[1]
OSMAPOSL = PACKAGE / "par" / "OSMAPOSL_diffusion_score.par"
DDS = PACKAGE / "par" / "OSMAPOSL_DDS.par"
PYTHON = PACKAGE / "par" / "OSMAPOSL_python_prior.par"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with all files that the samples name; nothing compiled is asked."""
    example = Path(load_example("brain2d").folder)
    for name in ("prompts", "additive"):
        for suffix in (".hs", ".s"):
            shutil.copy(example / f"{name}{suffix}", tmp_path)
    for target, source in (("norm", "multiplicative"), ("osem", "truth")):
        for path in example.glob(f"{source}.*"):
            # The header keeps naming its own data file.
            shutil.copy(path, tmp_path)
            shutil.copy(path, tmp_path / f"{target}{path.suffix}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checking, "known_names", registry.built_in_names)
    monkeypatch.delenv(python_blocks.ALLOW, raising=False)
    return tmp_path


def edited(folder: Path, *changes: tuple[str, str], source: Path = OSMAPOSL) -> Path:
    """A copy of a sample with each old text, which must be there, replaced by a new one."""
    text = source.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "my.par"
    path.write_text(text)
    return path


def errors_of(path: Path, **options) -> list[str]:
    return [str(f) for f in checking.check(path, **options).errors]


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_samples_are_right(folder, monkeypatch, path):
    monkeypatch.setenv(python_blocks.ALLOW, "smooth_prior")
    report = checking.check(path)
    assert report.findings == ()
    assert report.program == path.stem.split("_")[0]


def test_check_lists_what_the_file_asks_for(folder, capsys):
    assert main(["check", str(OSMAPOSL)]) == 0
    output = capsys.readouterr().out
    assert re.search(r"prior +Diffusion Score \(penalisation factor 0.4, model filename brain-fdg, noise level", output)
    assert re.search(r"matrix +Ray Tracing", output)
    assert re.search(r"input file +prompts.hs", output)
    assert "built-in table" in output


@pytest.mark.parametrize(("_", "old", "new", "kind", "words"), refused("stir-diffusion check"))
def test_what_stir_would_not_do_as_asked_is_an_error(folder, capsys, _, old, new, kind, words):
    path = edited(folder, (old, new))
    assert any(words[0] in error for error in errors_of(path))
    assert main(["check", str(path)]) == 2
    assert main(["run", "OSMAPOSL", str(path)]) == 2
    assert "not run" in capsys.readouterr().err


def test_a_prior_outside_the_objective_function_is_an_error(folder):
    text = OSMAPOSL.read_text(encoding="utf-8")
    start, end = text.index("prior type"), text.index("end PoissonLog")
    block = text[start:end]
    path = folder / "my.par"
    path.write_text(text.replace(block, "").replace("END :=\n", f"{block}END :=\n"))
    assert any("goes on without Diffusion Score" in error for error in errors_of(path))


def test_names_and_keys_compare_as_in_stir(folder):
    path = edited(
        folder,
        ("prior type := Diffusion Score", "Prior_Type := diffusion  SCORE"),
        ("Diffusion Score Parameters :=\n  ;", "!DIFFUSION_score parameters:=\n  ;"),
        ("  penalisation factor :=", "  Penalisation_Factor:="),
    )
    assert errors_of(path) == []


def test_keys_of_stir_that_look_wrong_are_warnings(folder):
    path = edited(folder, ("number of subsets := 9", "number of subset := 9"))
    report = checking.check(path)
    assert report.errors == []
    assert [f.text for f in report.findings if "did you mean 'number of subsets'" in f.text]


def test_a_prior_too_strong_for_one_step_late_is_a_warning(folder):
    default = ("  noise level := 0.4\n", "")
    assert not checking.check(edited(folder, default)).findings
    stronger = ("penalisation factor := 0.4", "penalisation factor := 0.5")
    for largest, *changes in (("0.12", ("noise level := 0.4", "noise level := 0.2")), ("0.48", default, stronger)):
        (finding,) = checking.check(edited(folder, *changes)).findings
        assert finding.level == "warning"
        assert f"above 3 level^2 = {largest}." in finding.text


@pytest.mark.parametrize(("changes", "source", "words"), [
    ([("inter-iteration filter type", "post-filter type")], DDS, "would make one step of its chain"),
    ([("noise level := 0.4", "noise level := 40")], OSMAPOSL, "brain-fdg knows up to 12.4"),
    ([("  ; planes := auto", "  planes := volume")], OSMAPOSL, "brain-fdg is a network of slices"),
    ([("input file := prompts.hs", "input file := two.hs")], OSMAPOSL, "two.hs has 2 time frames"),
    ([("input file := prompts.hs", "input file := askew.hs")], OSMAPOSL, "its mirror (ring differences 1 to 2)"),
])  # fmt: skip
def test_what_could_never_work_is_an_error(folder, changes, source, words):
    header = (folder / "prompts.hs").read_text()
    (folder / "two.hs").write_text(header.replace("!END OF", "number of time frames := 2\n!END OF"))
    changed = {"size [4]": "2", "size [2]": "{ 1,1}", "minimum ring": "{ 0,1}", "maximum ring": "{ 0,2}"}
    for key, value in changed.items():
        header = re.sub(rf"({re.escape(key)}.* := ).*", rf"\g<1>{value}", header)
    (folder / "askew.hs").write_text(header)
    assert any(words in error for error in errors_of(edited(folder, *changes, source=source)))


def test_a_multiplicative_prior_is_warned_of(folder):
    path = edited(folder, ("number of subsets", "MAP model := multiplicative\nnumber of subsets"))
    (finding,) = checking.check(path).findings
    assert "depends on the sensitivity" in finding.text


def test_the_factor_of_an_anchor_that_a_sampler_moves_is_not_asked_for(folder):
    end = "end PoissonLogLikelihoodWithLinearModelForMeanAndProjData Parameters:="
    block = "prior type := Quadratic Anchor\n  Quadratic Anchor Parameters :=\n{}  END Quadratic Anchor Parameters :=\n"
    moved = ("  ; anchor strength := 0", "  anchor strength := 2")
    for factor, messages in (("", []), ("  penalisation factor := 1\n", ["'penalisation factor' has no effect"])):
        path = edited(folder, (end, block.format(factor) + end), moved, source=DDS)
        found = [finding.text for finding in checking.check(path).findings]
        assert [text.split(":")[0] for text in found] == messages


def test_noise_levels_count_from_where_a_run_goes_on(caplog):
    options = {"model filename": "brain-fdg", "noise level": "{0.8, 0.4}", "intensity scale": "1",
               "number of subiterations per noise level": "2"}  # fmt: skip
    for first, expected in (("1", 0.8), ("4", 0.4)):
        prior = make_prior("Diffusion Score", options, {"start at subiteration number": first})
        prior.set_up(ImageGeometry((1, 16, 16), (2.0, 2.0, 2.0)))
        x = np.random.default_rng(0).random((1, 16, 16)).astype(np.float32)
        prior.gradient(x, np.empty_like(x))
        assert prior.prior.noise_level == expected
    assert "begins at subiteration 4 without what it knew" in caplog.text


def test_program_and_data_must_suit_the_file(folder):
    assert "not for OSSPS" in errors_of(OSMAPOSL, program="OSSPS")[0]
    (folder / "prompts.s").unlink()
    assert "names the data file prompts.s" in errors_of(OSMAPOSL)[0]


def test_variables(folder):
    path = edited(folder, ("penalisation factor := 0.4", "penalisation factor := ${FACTOR}"))
    assert errors_of(path, variables={"FACTOR": "0.4"}) == []
    assert main(["check", str(path), "FACTOR=0.4"]) == 0
    assert main(["check", str(path), "FACTOR=strong"]) == 2


@pytest.mark.parametrize(("subiterations", "steps", "level"), [
    (63, 0, None), (63, 20, None), (62, 0, "error"), (60, 20, "error"), (66, 20, "warning"), (3, 0, "error"),
])  # fmt: skip
def test_steps_of_the_sampler_and_subiterations(folder, subiterations, steps, level):
    path = edited(
        folder,
        (" := 63", f" := {subiterations}"),
        ("  random seed := 1", f"  random seed := 1\n  number of steps := {steps}"),
        source=DDS,
    )
    findings = checking.check(path).findings
    assert [f.level for f in findings] == ([] if level is None else [level])
    if level == "error" and steps:
        assert f"({steps} + 1) x 3 = {(steps + 1) * 3}" in findings[0].text


_STEERED = "  h-transform filename := brain-fdg-deft\n  sensitivity filename := osem.hv\n"


@pytest.mark.parametrize(("old", "new", "expected"), [
    ("", "", None), ("number of subsets := 1", "number of subsets := 2", "'number of subsets := 1', found '2'"),
    ("interval := 1", "interval := 2", "interval := 1', found '2'"),
    ("number of subsets", "maximum relative change := 3\nnumber of subsets", "not 'maximum relative change'"),
    ("end Poisson", "prior type := Quadratic\nend Poisson", "'prior type := none', found 'Quadratic'"),
    ("  sensitivity filename := osem.hv\n", "", "go together"),
    ("  random seed", "  anchor strength := 2\n  random seed", "'anchor strength' ties"),
    ("brain-fdg-deft", "osem.hv", "osem.hv cannot be read as an h-transform"),
    ("filename := osem.hv\n  random", "filename := none.hv\n  random", "recompute sensitivity := 1"),
])  # fmt: skip
def test_an_h_transform_wants_em_updates_of_all_data(folder, old, new, expected):
    whole = (("subsets := 9", "subsets := 1"), (" := 63", " := 6"), ("interval := 3", "interval := 1"))
    text = edited(folder, *whole, ("  random seed", f"{_STEERED}  random seed"), source=DDS).read_text()
    assert old in text
    (folder / "my.par").write_text(text.replace(old, new))
    found = errors_of(folder / "my.par")
    assert (found == []) if expected is None else any(expected in error for error in found), found


def test_a_filter_without_an_interval_is_never_called(folder):
    path = edited(folder, ("inter-iteration filter subiteration interval := 3\n", ""), source=DDS)
    assert any("never called" in error for error in errors_of(path))


@pytest.mark.parametrize(("old", "new", "expected"), [
    ('{"axial": false}', "axial=false", "expected JSON"), ('{"axial": false}', "[1]", "expected a JSON dictionary"),
    ("  penalisation factor", "  ; penalisation factor", "default is 0"), ("class := ", "; class := ", "no 'class'"),
])  # fmt: skip
def test_keys_of_a_python_prior(folder, monkeypatch, old, new, expected):
    monkeypatch.setenv(python_blocks.ALLOW, "1")
    assert any(expected in error for error in errors_of(edited(folder, (old, new), source=PYTHON)))


def test_a_file_runs_python_only_if_told(folder, monkeypatch, capsys):
    """Whoever hands out a parameter file would otherwise run code on the machine of the one who takes it."""
    assert main(["check", str(PYTHON)]) == 2
    assert "can do anything" in capsys.readouterr().out
    assert main(["run", "OSMAPOSL", str(PYTHON)]) == 2
    for options in (["--allow-python"], ["--python-module", "smooth_prior"]):
        monkeypatch.setenv(python_blocks.ALLOW, "another")
        assert main(["check", *options, str(PYTHON)]) == 0


@pytest.mark.parametrize(("module", "cls", "arguments", "error"), [
    ("sirf_diffusion.priors", "QuadraticPenalty", {}, None), ("sirf_diffusion.priors", "logging", {}, "has no class"),
    ("sirf_diffusion.cli", "main", {"argv": ["doctor"]}, "anything"), ("os", "getcwd", {}, "anything"),
    ("this_one", "Wanted", {}, "anything"),
])  # fmt: skip
def test_what_a_block_may_make_without_being_told(monkeypatch, module, cls, arguments, error):
    monkeypatch.setenv(python_blocks.ALLOW, "that_one, another")
    options = {"module": module, "class": cls, "arguments": json.dumps(arguments)}
    if error is None:
        assert make_prior("Python", options, {}).prior.penalisation_factor == 1
        return
    with pytest.raises(ValueError, match=error):
        make_prior("Python", options, {})


def test_folders_of_the_file_come_last_on_the_import_path(folder, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv(python_blocks.ALLOW, "of_the_user,json")
    for name in ("of_the_user", "json"):
        (folder / f"{name}.py").write_text("class Prior:\n    def gradient(self, x, out): ...\n")
    before = list(sys.path)
    assert make_prior("Python", {"module": "of_the_user", "class": "Prior", "arguments": "{}"}, {})
    assert sys.path == [*before, str(folder)]
    with pytest.raises(ValueError, match="no class Prior"):
        make_prior("Python", {"module": "json", "class": "Prior", "arguments": "{}"}, {})


def test_unreadable_files_are_one_message(folder, capsys):
    assert main(["check", "absent.par"]) == 2
    assert "absent.par" in capsys.readouterr().err
    (folder / "binary.par").write_bytes(b"\0\1\2")
    assert main(["check", "binary.par"]) == 2


@pytest.mark.parametrize(("words", "expected"), [
    (["KOSMAPOSL", "a.par"], "kernel coefficients"), (["FBP2D", "a.par"], "choose from OSMAPOSL, OSSPS, postfilter"),
    (["OSMAPOSL", "a.par", "b.par"], "found 2 file names"), (["postfilter", "a.par"], "OUTPUT INPUT FILE.par"),
])  # fmt: skip
def test_calls_that_cannot_be(words, expected, capsys):
    assert main(["run", *words]) == 2
    assert expected in capsys.readouterr().err


def test_call_of_postfilter():
    call = run.Call.parse("postfilter", ["out.hv", "in.hv", "SEED=3", "filter.par"])
    assert (call.images, call.par, call.variables) == (("out.hv", "in.hv"), Path("filter.par"), {"SEED": "3"})


def test_run_becomes_the_program_with_the_variables(folder, monkeypatch):
    monkeypatch.setattr(run, "find_build", lambda: type("Build", (), {"program": lambda self, name: f"/bin/{name}"})())
    seen = []
    monkeypatch.setattr(run.os, "execve", lambda *call: seen.append(call))
    path = edited(folder, ("penalisation factor := 0.4", "penalisation factor := ${FACTOR}"))
    assert main(["run", "OSMAPOSL", str(path), "FACTOR=0.4"]) == 1  # comes back only here
    executable, command, environment = seen[0]
    assert (executable, command) == ("/bin/OSMAPOSL", ["/bin/OSMAPOSL", str(path)])
    assert environment["FACTOR"] == "0.4"
    assert environment.get("PYTHONPATH") == os.environ.get("PYTHONPATH")
    assert python_blocks.FOLDERS not in environment
    monkeypatch.setenv(python_blocks.ALLOW, "1")
    assert run.Call("OSMAPOSL", path).environment()[python_blocks.FOLDERS].split(os.pathsep)[0] == str(folder)


def test_without_a_build_the_advice_is_to_build(folder, monkeypatch, capsys):
    monkeypatch.setattr(run, "find_builds", list)
    assert main(["run", "OSMAPOSL", str(OSMAPOSL)]) == 2
    assert "stir-diffusion build" in capsys.readouterr().err


# --- scan


@pytest.fixture
def fake_program(folder, monkeypatch):
    """An "OSMAPOSL" that writes the reference plus noise of (factor - 0.5)**2, and counts its calls."""

    def osmaposl(command, *, stdout, **_):
        par = ParFile.read(command[0])
        factor = par.prior().block.real("penalisation factor")
        with open("calls.txt", "a", encoding="utf-8") as calls:
            calls.write(f"{factor:g}\n")
        if factor == 9:
            os.write(stdout.fileno(), b"it cannot be done")
            return subprocess.CompletedProcess(command, 1)
        x, geometry = read_image("osem.hv")
        last = par.root.integer("number of subiterations")
        assert par.root.integer("save estimates at subiteration intervals") == last
        write_image(f"{par.root.text('output filename prefix')}_{last}.hv", x * (1 + (factor - 0.5) ** 2), geometry)
        os.write(stdout.fileno(), b"Objective function without penalty %g\n" % (100 - factor))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(run.Call, "command", lambda self: [str(self.par)])
    monkeypatch.setattr(scan.subprocess, "run", osmaposl)
    return folder


def test_scan_finds_the_best_factor_and_resumes(fake_program, capsys):
    command = ["scan", str(OSMAPOSL), "--reference", "osem.hv", "--out", "out", "--factors"]
    assert main([*command, "0.25,0.5"]) == 0
    assert "at its end: try larger" in capsys.readouterr().out
    assert main([*command, "0.25,0.5,1"]) == 0
    assert "penalisation factor 0.5" in capsys.readouterr().out
    assert Path("calls.txt").read_text(encoding="utf-8").split() == ["0.25", "0.5", "1"]
    rows = Path("out/scan.csv").read_text(encoding="utf-8").splitlines()
    assert [row.split(",")[0] for row in rows] == ["factor", "0.25", "0.5", "1.0"]
    assert Path("out/scan.png").stat().st_size > 5000
    # Every other setting of the file is as it was.
    assert ParFile.read("out/factor_0p25.par").prior().block.text("model filename") == "brain-fdg"


def test_a_reference_on_another_grid_is_refused(fake_program, capsys):
    x, grid = read_image("osem.hv")
    write_image("other.hv", x, ImageGeometry(grid.shape, (grid.voxel_size[0], 4.0, 4.0)))
    assert main(["scan", str(OSMAPOSL), "--reference", "other.hv", "--out", "out", "--factors", "0.5"]) == 2
    assert "other.hv lies on" in capsys.readouterr().err


def test_scan_without_a_reference_tells_likelihood_and_roughness(fake_program):
    points = scan.Scan(OSMAPOSL, Path("out")).run([0.25, 1])
    assert [p.log_likelihood for p in points] == [99.75, 99.0]
    assert all(p.nrmse is None and p.roughness > 0 for p in points)
    assert scan.best(points) is None
    assert Path("out/scan.png").is_file()


def test_a_scan_that_fails_keeps_what_it_has(fake_program, capsys):
    assert main(["scan", str(OSMAPOSL), "--out", "out", "--factors", "0.5,9"]) == 2
    assert "it cannot be done" in capsys.readouterr().err
    assert Path("out/factor_0p5_36.hv").is_file()
    assert main(["scan", str(OSMAPOSL), "--out", "out", "--factors", "0.5"]) == 0
    assert Path("calls.txt").read_text(encoding="utf-8").split() == ["0.5", "9"]


def test_scan_refuses_a_folder_of_another_scan(fake_program):
    scan.Scan(OSMAPOSL, Path("out")).run([0.5])
    other = edited(fake_program, ("noise level := 0.4", "noise level := 0.3"))
    with pytest.raises(ValueError, match="parameter file"):
        scan.Scan(other, Path("out"))
    with open("prompts.s", "r+b") as data:  # the header stays as it is
        data.write(bytes(4))
    with pytest.raises(ValueError, match="SHA-256"):
        scan.Scan(OSMAPOSL, Path("out"))
    with pytest.raises(ValueError, match="not empty"):
        scan.Scan(OSMAPOSL, Path())


@pytest.mark.parametrize("changed", ["own.safetensors", "smooth_prior.py"])
def test_scan_knows_another_model_or_module_of_the_same_name(fake_program, monkeypatch, changed):
    if changed == "smooth_prior.py":
        monkeypatch.setenv(python_blocks.ALLOW, "smooth_prior")
        par = edited(fake_program, source=PACKAGE / "par" / "OSMAPOSL_python_prior.par")
        shutil.copy(PACKAGE / "par" / changed, changed)
    else:
        par = edited(fake_program, ("model filename := brain-fdg", f"model filename := {changed}"))
        shutil.copy(find_model("brain-fdg"), changed)
    scan.Scan(par, Path("out")).run([0.5])
    with open(changed, "ab") as file:
        file.write(b"\n")
    with pytest.raises(ValueError, match="SHA-256"):
        scan.Scan(par, Path("out"))


@pytest.mark.parametrize("text", ["", "a", "-1", "nan"])
def test_factors_that_are_none(text):
    with pytest.raises(ValueError, match="--factors"):
        scan.parse_factors(text)


def test_scan_needs_a_prior(folder):
    with pytest.raises(ValueError, match="no prior"):
        scan.Scan(DDS, Path("out"))


# --- documentation in step


def _documented() -> dict[tuple[str, str], dict[str, str]]:
    text = (ROOT / "docs" / "stir.md").read_text(encoding="utf-8")
    documented = {}
    for heading, body in re.findall(r"^### (prior type :=|filter:) (.*?)(?=^##)", text, re.MULTILINE | re.DOTALL):
        name, _, table = body.partition("\n")
        kind = "prior" if heading.startswith("prior") else "data processor"
        documented[kind, name.strip()] = dict(re.findall(r"^\| `([^`]+)` \| *([^|]*?) *\|", table, re.MULTILINE))
    return documented


def test_every_key_is_documented_with_its_default():
    assert _documented() == {(block.kind, block.name): block.defaults for block in blocks.BLOCKS}


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_defaults_in_the_comments_of_samples_are_the_defaults(path):
    """``; key := value`` in one of our blocks states a default."""
    compared = 0
    file = ParFile.read(path, environment={})
    for _, key in file.root.walk():
        block = blocks.own_block(key)
        if block is None:
            continue
        for name, value in re.findall(r"^\s*; ([\w ]+?) :=(.*)$", file.lines_of(key), re.MULTILINE):
            assert value.strip() == block.defaults[fold(name)]
            compared += 1
    assert compared or "Values behind a commented-out key" not in path.read_text(encoding="utf-8")


def test_commands_and_samples_in_the_documentation_exist():
    text = (ROOT / "docs" / "stir.md").read_text(encoding="utf-8")
    commands = set(re.findall(r"stir-diffusion (\w+)", text))
    assert commands == {"build", "check", "run", "scan"}
    named = set(re.findall(r"`(\w+\.par)`", text)) - {"my.par"}
    assert named == {path.name for path in SAMPLES}
    # The file that shows the silent drop must stand in a red box, ahead of everything else.
    assert text.index("[!CAUTION]") < text.index("## ")


# --- with STIR


def stir_programs() -> Path | None:
    """Folder of STIR's own programs."""
    program = shutil.which("forward_project")
    if program:
        return Path(program).parent
    for build in run.find_builds():
        folder = Path(build.stir_dir).parents[2] / "bin"
        if (folder / "forward_project").is_file():
            return folder
    return None


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What examples/stir/run.sh makes."""
    programs = stir_programs()
    if programs is None:
        pytest.skip("STIR's own programs (forward_project, ...) are not installed")
    out = tmp_path_factory.mktemp("stir")
    bin_folder = tmp_path_factory.mktemp("bin")
    for name, words in (("stir-diffusion", "-m sirf_diffusion.cli.stir"), ("python3", "")):
        path = bin_folder / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        path.chmod(0o755)
    environment = {**os.environ, "PATH": os.pathsep.join([str(bin_folder), str(programs), os.environ["PATH"]])}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    example = ["sh", str(ROOT / "examples" / "stir" / "run.sh"), str(out)]
    done = subprocess.run(example, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    numbers = dict(re.findall(r"^(\S+)\.hv\s+([\d.]+)$", done.stdout, re.MULTILINE))
    return out, {name: float(number) for name, number in numbers.items()}, environment


def stir_diffusion(results, *words: str) -> None:
    """Run the command in the folder of the example."""
    out, _, environment = results
    words = [sys.executable, "-m", "sirf_diffusion.cli.stir", *words]
    done = subprocess.run(words, cwd=out, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.requires_shim
def test_the_example_runs_and_every_method_beats_osem(results):
    _, nrmse, _ = results
    for name in ("map_score_36", "ossps_score_72", "annealed_36"):
        assert nrmse[name] < 0.9 * nrmse["osem"]
    for name in ("denoised", "python_prior_36"):
        assert nrmse[name] < nrmse["osem"]
    # One posterior sample carries its own noise.
    assert nrmse["dds_63"] < 1.2 * nrmse["osem"]


@pytest.mark.requires_shim
def test_the_stock_program_drops_the_prior_and_ours_does_not(results):
    out, _, environment = results
    programs = stir_programs()
    text = (out / OSMAPOSL.name).read_text(encoding="utf-8").replace(":= map_score", ":= stock")
    (out / "stock.par").write_text(text)
    done = subprocess.run(
        [programs / "OSMAPOSL", "stock.par"], cwd=out, env=environment, capture_output=True, check=False
    )
    # This is what makes the check necessary: no prior, and success.
    assert done.returncode == 0
    (out / "plain.par").write_text(ParFile.parse(text).with_prior(None).replace(":= stock", ":= plain"))
    subprocess.run([programs / "OSMAPOSL", "plain.par"], cwd=out, env=environment, capture_output=True, check=True)
    stock, plain, ours = (read_image(out / f"{name}_36.hv")[0] for name in ("stock", "plain", "map_score"))
    assert (stock == plain).all()
    assert (ours - plain).norm() > 0.1 * plain.norm()


@pytest.mark.requires_shim
def test_names_come_from_the_compiled_program():
    names = registry.known_names()
    assert names.compiled
    assert {"Diffusion Score", "Quadratic Anchor", "Python", "Quadratic"} <= set(names.by_kind["prior"])
    assert {"Diffusion Sampler", "Separable Gaussian"} <= set(names.by_kind["data processor"])
    # The table that serves without it has no name that this STIR does not know, but for options of the build.
    optional = {name for name in registry.NAMES["prior"] if name.startswith("Cuda")} | {"HUToMu"}
    for kind in ("prior", "data processor"):
        assert set(registry.NAMES[kind]) - set(names.by_kind[kind]) <= optional | {"Maximal"}


@pytest.mark.requires_shim
def test_variables_reach_stir(results):
    out = results[0]
    text = (out / OSMAPOSL.name).read_text(encoding="utf-8").replace("prefix := map_score", "prefix := ${NAME}")
    text = re.sub(r"(number of subiterations|estimates at subiteration intervals) := 36", r"\1 := 1", text)
    (out / "variable.par").write_text(text)
    stir_diffusion(results, "run", "OSMAPOSL", "variable.par", "NAME=by_variable")
    assert (out / "by_variable_1.hv").is_file()


@pytest.mark.requires_shim
def test_scan_takes_any_prior(results):
    out = results[0]
    text = (out / OSMAPOSL.name).read_text(encoding="utf-8").replace(":= 36", ":= 9")  # subiterations, and when to save
    rdp = (
        "prior type := Relative Difference Prior\nRelative Difference Prior Parameters :=\npenalisation factor := 1\n"
        "END Relative Difference Prior Parameters :=\n"
    )
    (out / "rdp.par").write_text(ParFile.parse(text).with_prior(rdp))
    stir_diffusion(results, "scan", "rdp.par", "--factors", "0,0.05", "--reference", "truth.hv")
    rows = (out / "scan_rdp" / "scan.csv").read_text(encoding="utf-8").splitlines()[1:]
    without, with_prior = (dict(zip(("factor", "nrmse"), row.split(",")[:2], strict=True)) for row in rows)
    assert float(with_prior["nrmse"]) < float(without["nrmse"])
