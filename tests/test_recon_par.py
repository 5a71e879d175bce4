"""``sirf-diffusion recon --par``: an existing parameter file of STIR, other methods."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from refused_changes import refused
from small_scan import relative, write_small_scan

import sirf_diffusion
from sirf_diffusion.cli import main
from sirf_diffusion.engines.em import inside
from sirf_diffusion.engines.embedded.acquisition import Acquisition
from sirf_diffusion.engines.embedded.par_acquisition import read_acquisition
from sirf_diffusion.files.interfile import (
    read_exam_info,
    read_image,
    read_projection_data,
    write_image,
    write_projection_data,
)
from sirf_diffusion.files.parfile import ParFile, ParFileError
from sirf_diffusion.files.parfile.run import ParRun
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.interop.stir.par_prior import prior_of
from sirf_diffusion.reconstructors.methods import METHODS

pytestmark = pytest.mark.usefixtures("undrawn")
RDP = """\
  prior type := Relative Difference Prior
    Relative Difference Prior Parameters :=
      penalisation factor := 2
      gamma value := 1.5
      epsilon value := 0.01
    END Relative Difference Prior Parameters :=
"""

MATRIX = """\
Matrix type := Ray Tracing
        Ray Tracing Matrix Parameters :=
          number of rays in tangential direction to trace for each bin := 10
          do symmetry 90degrees min phi := 0
          do symmetry 180degrees min phi := 0
        End Ray Tracing Matrix Parameters :="""

PAR = """\
OSMAPOSLParameters :=
objective function type := PoissonLogLikelihoodWithLinearModelForMeanAndProjData
PoissonLogLikelihoodWithLinearModelForMeanAndProjData Parameters :=
  input file := {folder}/prompts.hs
  maximum absolute segment number to process := -1
  projector pair type := Matrix
    Projector Pair Using Matrix Parameters :=
      {matrix}
    End Projector Pair Using Matrix Parameters :=
  Bin Normalisation type := Chained
    Chained Bin Normalisation Parameters :=
      Bin Normalisation to apply first := From ProjData
        Bin Normalisation From ProjData :=
          normalisation projdata filename := {folder}/norm.hs
        End Bin Normalisation From ProjData :=
      Bin Normalisation to apply second := From Attenuation Image
        Bin Normalisation From Attenuation Image :=
          attenuation image filename := {folder}/mu.hv
          forward projector type := Matrix
            Forward Projector Using Matrix Parameters :=
              {matrix}
            End Forward Projector Using Matrix Parameters :=
        End Bin Normalisation From Attenuation Image :=
    END Chained Bin Normalisation Parameters :=
  additive sinogram := {folder}/additive.hs
  XY output image size (in pixels) := 21
  use subset sensitivities := 1
{prior}end PoissonLogLikelihoodWithLinearModelForMeanAndProjData Parameters :=
number of subsets := 4
start at subset := 1
number of subiterations := 8
save estimates at subiteration intervals := 8
output filename prefix := {folder}/stir
END :=
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    scan = write_small_scan(tmp_path_factory.mktemp("scan"))
    factors, projdata = read_projection_data(scan.multiplicative_hs)
    write_projection_data(scan.folder / "norm.hs", 1 / factors, projdata)
    return scan.folder


@pytest.fixture
def par(folder, tmp_path):
    """``par(old=new, ...)`` writes the file with some texts replaced; gives its path."""

    def write(*changes: tuple[str, str], prior: str = "") -> str:
        text = PAR.format(matrix=MATRIX, folder=folder, prior=prior)
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        path = tmp_path / "file.par"
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def recon(tmp_path):
    def run(path: str, method: str = "osem", *more: str, engine: str = "embedded"):
        out = tmp_path / f"{method}-{engine}"
        code = main(
            ["recon", "--par", path, "--engine", engine, "--method", method, "--out", str(out), *map(str, more)]
        )
        return code, out

    return run


def acquisition_of(path):
    return read_acquisition(ParRun.of(ParFile.read(path)))[0]


@pytest.mark.parametrize("engine", ["embedded", pytest.param("stir", marks=pytest.mark.requires_stir)])
def test_of_few_rays_only_the_embedded_engine_warns(engine, par, recon, caplog, capfd):
    assert recon(par(("for each bin := 10", "for each bin := 2")), engine=engine)[0] == 0
    assert caplog.text.count("with the 2 of the file") == (2 if engine == "embedded" else 0)
    assert "INFO:" not in capfd.readouterr().err  # of each subset that STIR projects


def test_a_par_file_gives_the_likelihood_of_the_same_files(par, folder):
    found = acquisition_of(par())
    given = {name: folder / f"{name}.hs" for name in ("multiplicative", "additive")}
    expected = Acquisition.from_files(
        folder / "prompts.hs", **given, attenuation=folder / "mu.hv", geometry=found.geometry
    )
    x, _ = read_image(folder / "truth.hv")
    x = x.expand(found.geometry.shape)
    objectives = [acquisition.objective(4) for acquisition in (found, expected)]
    for subset in (None, 2):
        values, gradients = zip(*((o.value(x, subset), o.gradient(x, subset)) for o in objectives), strict=True)
        assert float(values[0]) == pytest.approx(float(values[1]), rel=1e-6)
        assert relative(*gradients) < 1e-4


def test_record_tells_engine_file_prior_and_subsets(par, recon):
    path = par(prior=RDP)
    code, out = recon(path, "osem")
    assert code == 0
    record = json.loads((out / "record.json").read_text(encoding="utf-8"))
    assert record["engine"] == {"name": "embedded", "version": sirf_diffusion.__version__}
    assert record["parameter_file"]["prior"] == "replaced: Relative Difference Prior"
    assert record["parameter_file"]["path"] == record["data"]["files"]["parameter file"] == path
    assert "Relative Difference" in record["parameter_file"]["text"]
    assert record["num_subsets"] == 4
    assert record["values"]["num_iterations"] == 2


@pytest.mark.parametrize("method", ["map-score", "lisch", "deft"])  # one of each kind; others differ in no door
def test_methods_of_every_kind_run_from_a_par_file(par, recon, small_model, method):
    more = []
    if METHODS[method].uses_model:
        more += ["--model", METHODS[method].default_model or small_model]
    if METHODS[method].samples:
        more += ["--samples", 1]
    number = "num_iterations=2" if method.startswith("map") else "num_steps=3"
    code, out = recon(par(), method, *more, "--set", number)
    assert code == 0
    assert read_image(out / "reconstruction.hv")[0].isfinite().all()


def test_an_initial_estimate_starts_the_run_and_decides_the_grid(par, folder, tmp_path, recon):
    write_image(tmp_path / "start.hv", torch.full((1, 15, 15), 2.0), ImageGeometry((1, 15, 15), (4.0, 5.0, 5.0)))
    path = par(("number of subsets", f"initial estimate := {tmp_path}/start.hv\nnumber of subsets"))
    code, out = recon(path)
    assert code == 0
    assert read_image(out / "reconstruction.hv")[1].shape == (1, 15, 15)


@pytest.mark.parametrize(("keys", "shape", "voxel_size", "z"), [
    ("", (3, 35, 35), (4.0, 4.0, 4.0), 0.0), ("zoom := 2", (3, 69, 69), (4.0, 2.0, 2.0), 0.0),
    ("zoom := 2\n Z zoom := 2\n Z offset (in mm) := 6", (3, 69, 69), (2.0, 2.0, 2.0), 6.0),
    ("Z output image size (in pixels) := 1\n XY output image size (in pixels) := 8", (1, 8, 8), (4.0, 4.0, 4.0), 0.0),
])  # fmt: skip
def test_grid_from_zoom_and_sizes(par, keys, shape, voxel_size, z):
    """Two rings without axial compression have three planes; the field of view has a radius of 67.2 mm."""
    geometry = acquisition_of(par(("XY output image size (in pixels) := 21", keys))).geometry
    assert geometry.shape == shape
    assert geometry.voxel_size == pytest.approx(voxel_size)
    assert geometry.origin == (z, 0.0, 0.0)


@pytest.mark.requires_stir
@pytest.mark.parametrize("keys", ["", "zoom := 1.3", "zoom := 2\n Z zoom := 2\n Z output image size (in pixels) := 4"])
def test_grid_is_the_one_that_stir_makes(par, keys):
    from sirf_diffusion.interop.stir.par import stir_objective

    path = par(("XY output image size (in pixels) := 21", keys))
    found, expected = acquisition_of(path).geometry, stir_objective(ParRun.of(ParFile.read(path)), 1)[0].geometry
    assert found.shape == expected.shape
    assert found.voxel_size == pytest.approx(expected.voxel_size, rel=1e-5)
    assert found.origin == pytest.approx(expected.origin)


@pytest.mark.parametrize(("name", "old", "new", "kind", "words"), refused("recon --par"))
def test_what_would_change_the_image_is_refused_by_name_and_nothing_is_written(
    par, recon, folder, capsys, name, old, new, kind, words
):
    old, new = (text.replace("{folder}", str(folder)) for text in (old, new))
    code, out = recon(par((old, new)))
    error = capsys.readouterr().err
    assert code == 2
    assert words[0] in error
    assert ".par:" in error or ".hs" in error
    assert not out.exists()


def test_zero_normalisation_factors_are_refused(par, recon, folder, tmp_path, capsys):
    norm, projdata = read_projection_data(folder / "norm.hs")
    norm[0, 0, :3] = 0
    write_projection_data(tmp_path / "zero.hs", norm, projdata)
    assert recon(par((f"{folder}/norm.hs", f"{tmp_path}/zero.hs")))[0] == 2
    assert "3 normalisation factors that are not positive" in capsys.readouterr().err


def test_few_rays_are_warned_of(par, recon, caplog):
    assert (
        recon(par(("do symmetry 90degrees min phi := 0", "disable caching := 1"), ("each bin := 10", "each bin := 1")))[
            0
        ]
        == 0
    )
    assert "with the 1 of the file" in caplog.text


def test_the_files_own_prior_is_kept_when_asked(par, recon):
    code, out = recon(par(prior=RDP), "map-rdp", "--keep-prior")
    assert code == 0
    record = json.loads((out / "record.json").read_text(encoding="utf-8"))
    assert record["parameter_file"]["prior"] == "kept: Relative Difference Prior"
    kept = record["prior"]
    assert (kept["penalisation_factor"], kept["gamma"], kept["epsilon"]) == (2, 1.5, 0.01)


def test_priors_are_stirs(par, folder, tmp_path):
    quadratic = RDP.replace("Relative Difference Prior", "Quadratic").replace(
        "Quadratic Parameters", "Quadratic Prior Parameters"
    )
    quadratic = quadratic.replace("      gamma value := 1.5\n      epsilon value := 0.01\n", "      only 2D := 1\n")
    grid = ImageGeometry((1, 21, 21), (4.0, 4.0, 4.0))
    prior = prior_of(ParFile.read(par(prior=quadratic)), grid)
    assert prior.settings["name"] == "QuadraticPenalty"
    assert prior.settings["neighbourhood"] == "transverse"
    kappa = torch.full(grid.shape, 0.5)
    write_image(tmp_path / "kappa.hv", kappa, grid)
    with_kappa = RDP.replace("gamma value", f"kappa filename := {tmp_path}/kappa.hv\n gamma value")
    weighted, plain = (prior_of(ParFile.read(par(prior=text)), grid) for text in (with_kappa, RDP))
    x = torch.rand(grid.shape, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(weighted.gradient(x), 0.25 * plain.gradient(x))
    write_image(tmp_path / "kappa.hv", kappa, replace(grid, origin=(0.0, 10.0, 0.0)))
    with pytest.raises(ParFileError, match="another grid"):
        prior_of(ParFile.read(par(prior=with_kappa)), grid)


@pytest.mark.parametrize(("method", "prior", "more", "message"), [
    ("osem", RDP, (), "no place for the prior"), ("dds", RDP, (), "no place for the prior"),
    ("map-rdp", "", (), "has no prior"), ("map-score", RDP, (), "Diffusion Score"),
    ("map-rdp", RDP.replace("Relative Difference Prior", "Logcosh"), (), "map-rdp cannot keep"),
    ("map-rdp", RDP.replace("gamma value", "weights := {1}\n gamma value"), (), "weights"),
    ("map-rdp", RDP, ("--set", "gamma=1"), "leave one of them out"),
])  # fmt: skip
def test_priors_without_meaning_for_the_method_are_refused(par, recon, capsys, method, prior, more, message):
    code, out = recon(par(prior=prior), method, "--keep-prior", *more)
    assert code == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_score_prior_is_kept_with_its_model_and_strength(par, recon, small_model):
    score = f"""\
  prior type := Diffusion Score
    Diffusion Score Parameters :=
      penalisation factor := 0.3
      model filename := {small_model}
      noise level := 0.4
    END Diffusion Score Parameters :=
"""
    code, out = recon(par(prior=score), "map-score", "--keep-prior", "--set", "num_iterations=2")
    assert code == 0
    values = json.loads((out / "record.json").read_text(encoding="utf-8"))["values"]
    assert (values["penalisation_factor"], values["noise_level"]) == (0.3, 0.4)


def test_options_that_exclude_one_another(par, folder, capsys, tmp_path):
    out = ["--method=osem", "--out", str(tmp_path / "o")]
    for arguments in (
        ["--par", par(), "--additive", str(folder / "additive.hs")],
        ["--prompts", str(folder / "prompts.hs"), "--keep-prior"],
        ["--prompts", str(folder / "prompts.hs"), "--engine", "stir"],
        ["--par", par(), "--subsets", "2"],
    ):
        assert main(["recon", *arguments, *out]) == 2
        assert re.search(r"--par|file\.par says", capsys.readouterr().err)


def test_order_of_subsets_is_stirs():
    text = PAR.format(matrix=MATRIX, folder=".", prior="").replace("start at subset := 1", "start at subset := 3")
    run = ParRun.of(ParFile.parse(text))
    assert run.subset_order == (3, 0, 1, 2)
    late = ParRun.of(ParFile.parse(text.replace("save est", "start at subiteration number := 3\nsave est")))
    assert (late.subset_order, late.num_updates) == ((1, 2, 3, 0), 6)
    with pytest.raises(ParFileError, match="start at subset"):
        ParRun.of(ParFile.parse(text.replace("start at subset := 3", "start at subset := 4")))


@pytest.mark.requires_stir
@pytest.mark.parametrize("prior", ["", RDP], ids=["no prior", "prior left out"])
def test_stir_and_embedded_engine_give_the_image_of_stirs_own_program(par, recon, prior, folder, tmp_path):
    path = par(prior=prior)
    images = {}
    for engine in ("stir", "embedded"):
        code, out = recon(path, "osem", engine=engine)
        assert code == 0
        images[engine] = read_image(out / "reconstruction.hv")
        record = json.loads((out / "record.json").read_text(encoding="utf-8"))
        assert record["engine"]["name"] == engine
        assert record["engine"]["version"]
        assert record["data"]["files"]["parameter file"] == path
    assert images["stir"][1].shape == images["embedded"][1].shape
    assert relative(images["embedded"][0], images["stir"][0]) < 0.01
    own = _osmaposl(ParFile.read(path).with_prior(None), tmp_path)
    seen = inside(acquisition_of(path).objective(1).sensitivity())
    assert relative(images["stir"][0] * seen, own * seen) < 1e-4


@pytest.mark.requires_stir
@pytest.mark.parametrize("method", ["osem", "dds"])
def test_the_embedded_projector_gives_the_image_of_stirs(par, recon, small_model, method, tmp_path):
    more = ["--model", small_model, "--samples", 2, "--set", "num_steps=4", "--subsets", 2] if method != "osem" else []
    images = []
    for projector in ("toolkit", "embedded"):
        out = tmp_path / projector
        code, _ = recon(par(), method, *more, "--projector", projector, "--out", out, engine="stir")
        assert code == 0
        images.append(read_image(out / "reconstruction.hv")[0])
        record = json.loads((out / "record.json").read_text(encoding="utf-8"))
        assert ("projector" in record["engine"]) == (projector == "embedded")
        assert record["engine"]["name"] == "stir"
        assert record["num_subsets"] == (4 if method == "osem" else 2)
    assert 0 < relative(*images) < 0.01


@pytest.mark.requires_stir
def test_map_of_both_engines_agrees_with_the_prior_kept(par, recon):
    images = []
    for engine in ("stir", "embedded"):
        code, out = recon(par(prior=RDP), "map-rdp", "--keep-prior", "--set", "num_iterations=20", engine=engine)
        assert code == 0
        images.append(read_image(out / "reconstruction.hv")[0])
    assert relative(images[1], images[0]) < 0.01


@pytest.mark.requires_stir
@pytest.mark.parametrize(("old", "new", "message"), [
    ("additive.hs", "absent.hs", "absent.hs"), (":= From ProjData", ":= From Nonsense", "From Nonsense"),
    ("pair type := Matrix", "pair type := Matrixx", "Matrixx"),
])  # fmt: skip
def test_what_stir_would_drop_or_not_take_is_an_error(par, recon, capsys, old, new, message):
    code, out = recon(par((old, new)), engine="stir")
    assert code == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("engine", ["embedded", pytest.param("stir", marks=pytest.mark.requires_stir)])
def test_data_of_several_time_frames_are_refused(par, recon, folder, tmp_path, capsys, engine):
    header = (folder / "prompts.hs").read_text().replace("prompts.s", f"{folder}/prompts.s")
    (tmp_path / "two.hs").write_text(header.replace("!END OF", "number of time frames := 2\n!END OF"))
    assert recon(par((f"{folder}/prompts.hs", f"{tmp_path}/two.hs")), engine=engine)[0] == 2
    assert "2 time frames" in capsys.readouterr().err


@pytest.mark.parametrize("engine", ["embedded", pytest.param("stir", marks=pytest.mark.requires_stir)])
def test_unequal_subsets_are_refused_as_by_osmaposl(par, recon, capsys, engine):
    off = "".join(f"          do symmetry {angle}degrees min phi := 0\n" for angle in (90, 180))
    numbers = {"subsets := 4": "subsets := 16", "iterations := 8": "iterations := 16", "vals := 8": "vals := 16"}
    code, out = recon(par((off, ""), *numbers.items()), engine=engine)
    assert code == 2
    assert "'number of subsets' is refused, as by OSMAPOSL" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.requires_stir
def test_a_projector_within_the_normalisation_may_use_symmetries(par, recon):
    off = "".join(f"          do symmetry {angle}degrees min phi := 0\n" for angle in (90, 180))
    few, images = ("number of subsets := 4", "number of subsets := 2"), []
    for changes in ((few,), (few, (off, ""))):
        code, out = recon(par(*changes), "osem", "--overwrite", engine="stir")
        assert code == 0
        images.append(read_image(out / "reconstruction.hv")[0])
    assert relative(*images) < 1e-3


@pytest.mark.requires_stir
def test_a_key_that_stir_ignores_is_warned_of(par, recon, caplog):
    assert recon(par(("use subset sens", "use subsett sens")), engine="stir")[0] == 0
    assert "use subsett sensitivities" in caplog.text


def _osmaposl(text: str, folder) -> torch.Tensor:
    """STIR's own iterations, in a process of their own."""
    path = folder / "own.par"
    path.write_text(text)
    script = (
        "import sys, numpy, stir\n"
        "run = stir.OSMAPOSLReconstruction3DFloat(sys.argv[1])\n"
        "run.set_disable_output(True)\n"
        "image = run.get_initial_data()\n"
        "assert run.set_up(image).succeeded() and run.reconstruct(image).succeeded()\n"
        "numpy.save(sys.argv[2], image.as_array())\n"
    )
    command = [sys.executable, "-c", script, str(path), str(folder / "own.npy")]
    subprocess.run(command, check=True, capture_output=True, env=os.environ)
    return torch.from_numpy(np.load(folder / "own.npy"))


ENGINES = ["embedded", pytest.param("stir", marks=pytest.mark.requires_stir)]


@pytest.mark.parametrize("engine", ENGINES)
def test_attenuation_given_twice_is_refused_unless_told(par, recon, folder, tmp_path, capsys, engine):
    mu, geometry = read_image(folder / "mu.hv")
    write_image(tmp_path / "mu.hv", 4 * mu, geometry)
    acquisition = acquisition_of(par((f"{folder}/mu.hv", f"{tmp_path}/mu.hv")))
    factors = acquisition.objective().model.multiplicative_factors
    write_projection_data(tmp_path / "norm.hs", 1 / factors, acquisition.projdata)
    path = par((f"{folder}/mu.hv", f"{tmp_path}/mu.hv"), (f"{folder}/norm.hs", f"{tmp_path}/norm.hs"))
    assert recon(path, engine=engine)[0] == 2
    assert "given twice" in capsys.readouterr().err
    assert recon(path, "osem", "--attenuation-in-factors", "no", engine=engine)[0] == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_the_examination_is_kept(par, recon, folder, tmp_path, engine):
    text = (folder / "prompts.hs").read_text().replace("prompts.s", str(folder / "prompts.s"))
    lines = "patient orientation := feet_in\npatient rotation := prone\n"
    (tmp_path / "feet.hs").write_text(text.replace("!GENERAL IMAGE DATA :=", lines + "!GENERAL IMAGE DATA :="))
    code, out = recon(par((f"{folder}/prompts.hs", f"{tmp_path}/feet.hs")), engine=engine)
    assert code == 0
    exam = read_exam_info(out / "reconstruction.hv")
    assert (exam.orientation, exam.rotation) == ("feet_in", "prone")
