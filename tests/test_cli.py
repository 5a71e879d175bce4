"""The commands: what they write, what they say, and that bad input costs nothing."""

import json
import re
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
import torch
from small_scan import write_example, write_small_scan

from sirf_diffusion.cli import main
from sirf_diffusion.data import load_example
from sirf_diffusion.engines.embedded.acquisition import AcquisitionError, power_of_attenuation
from sirf_diffusion.files.interfile import read_exam_info, read_image, write_image
from sirf_diffusion.files.versions import read_record
from sirf_diffusion.geometry.exam import ExamInfo, Radionuclide
from sirf_diffusion.models.h_transform import find_h_transform
from sirf_diffusion.patient.writing import write_dicom
from sirf_diffusion.reconstructors.methods import METHODS
from sirf_diffusion.study.bids import bids_fields
from sirf_diffusion.study.reconstruction import Study

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def recon(small_scan, small_model, tmp_path):
    """``recon(option=value, ...)`` runs the command on the small scan with few steps; gives exit code and folder."""

    def run(*more: str, out: Path | None = None, **changed: object) -> tuple[int, Path]:
        out = out or tmp_path / "out"
        method = changed.get("method", "lisch")
        options = {"method": method, "out": out}
        if METHODS[method].uses_model:
            options["model"] = small_model
            options["set"] = "num_iterations=2" if method == "map-score" else "num_steps=3"
        if METHODS[method].default_model:  # it works with its own model alone
            options |= {"model": None, "set": "final_consistency=True"}
        if METHODS[method].samples:
            options["samples"] = 2
        if METHODS[method].own_adaptation:
            options["adapt-set"] = "num_updates=1"
        return main(["recon", *small_scan.words(**options | changed), *more]), out

    return run


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[pytest.mark.draws] if m in ("map-rdp", "lisch") else []) for m in METHODS]
)
def test_recon_writes_a_complete_result(recon, small_scan, method):
    code, out = recon(method=method)
    assert code == 0
    written = {p.name for p in out.iterdir()}
    expected = {"reconstruction.hv", "reconstruction.v", "record.json", "report.png", "references.bib"}
    if METHODS[method].samples:
        expected |= {"samples.h5", "uncertainty.hv", "uncertainty.v"}
    assert written == expected

    image, geometry = read_image(out / "reconstruction.hv")
    assert geometry == small_scan.geometry
    assert float(image.min()) >= 0
    # A random network does not denoise, but the data decide where activity is and how much.
    assert float(image.sum()) == pytest.approx(float(small_scan.truth.sum()), rel=0.2)
    record = json.loads((out / "record.json").read_text())
    assert record["seed"] == 0
    assert record["engine"]["name"] == "embedded"
    assert record["software"]["torch"]
    assert record["data"]["prompts"] > 0
    assert record["projections"]["forward"] > 0
    if METHODS[method].uses_model:
        assert len(record["model"]["sha256"]) == 64
        assert record["intensity_scale"] > 0
        assert record["network_evaluations"] > 0
    if METHODS[method].samples:
        with h5py.File(out / "samples.h5") as file:
            assert file.attrs["schema_version"] == 1
            samples = torch.from_numpy(file["samples"][:])
        assert samples.shape == (2, *geometry.shape)
        assert torch.allclose(samples.mean(0), image, rtol=1e-4, atol=1e-5 * float(image.max()))
        assert torch.allclose(samples.std(0, correction=0), read_image(out / "uncertainty.hv")[0], rtol=1e-4, atol=1e-5)
        assert len(record["trace"]) == (5 if METHODS[method].default_model else 3)


def test_an_adapter_is_kept_and_used(recon, tmp_path):
    kept = tmp_path / "adapter.safetensors"
    options = ("--adapt", "ddip")
    for setting in ("rank=2", "cap=False", "num_updates=2", "max_noise_level=None"):
        options += ("--adapt-set", setting)
    code, first = recon(*options, "--save-adapter", str(kept), method="dds")
    assert code == 0
    record = json.loads((first / "record.json").read_text())
    assert record["adaptation"]["updates"] == 6
    assert record["adaptation"]["rank"] == 2
    code, other = recon(*options, "--save-adapter", str(kept), method="dds", out=tmp_path / "other")
    assert code == 2
    assert not (other / "record.json").exists()
    images = {}
    start = ("--adapter", str(kept))
    for name, more in {"none": (), "used": start, "further": (*options, *start)}.items():
        code, out = recon(*more, method="dds", out=tmp_path / name)
        assert code == 0
        images[name] = read_image(out / "reconstruction.hv")[0]
    record = json.loads((tmp_path / "used" / "record.json").read_text())
    assert record["adaptation"]["adapter"] == record["adaptation"]["adapter_hash"]
    assert len({image.numpy().tobytes() for image in images.values()}) == 3


@pytest.mark.parametrize(("options", "words"), [
    (["--method", "ddip", "--adapt", "none"], ["--adapt none", "ddip"]),
    (["--adapt-set", "rank=2"], ["--adapt-set", "--adapt ddip"]),
    (["--adapt", "ddip", "--adapt-set", "rang=2"], ["rang", "rank=4"]),
    (["--adapt", "ddip", "--adapt-set", "rank"], ["--adapt-set rank", "NAME=VALUE"]),
    (["--adapt", "ddip", "--method", "map-score"], ["map-score", "lisch"]),
    (["--adapter", "missing.safetensors"], ["--adapter missing.safetensors"]),
    (["--adapt", "ddip", "--save-adapter", "nowhere/a.safetensors"], ["--save-adapter", "folder"]),
])  # fmt: skip
def test_adaptations_that_make_no_sense_cost_nothing(small_scan, small_model, tmp_path, capsys, options, words):
    command = ["recon", *small_scan.options, "--model", str(small_model), "--out", str(tmp_path / "out")]
    assert main([*command, *options]) != 0
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert not (tmp_path / "out").exists()


def test_attenuation_given_twice_is_refused_unless_told(recon, tmp_path, capsys):
    folder = load_example("brain2d").folder
    names = {"prompts": "prompts.hs", "additive": "additive.hs", "attenuation": "mu.hv"}
    data = {name: folder / file for name, file in names.items()} | {"method": "osem"}
    twice, told = {"multiplicative": folder / "multiplicative.hs"}, "attenuation-in-factors"
    assert recon(**data, **twice)[0] == 2
    said = capsys.readouterr().err
    assert all(words in said for words in ("given twice", f"--{told}", "multiplicative.hs", "mu.hv"))
    images = {}
    for name, options in {
        "once": twice | {"attenuation": None, "initial": folder / "truth.hv"},
        "yes": twice | {told: "yes"},
        "no": twice | {told: "no"},
        "README": {"multiplicative": folder / "efficiencies.hs"},
    }.items():
        code, out = recon(out=tmp_path / name, **(data | options))
        assert code == 0
        images[name] = read_image(out / "reconstruction.hv")[0]
    inside = load_example("brain2d").truth > 2
    mean = {name: float(image[inside].mean()) for name, image in images.items()}
    assert mean["yes"] == pytest.approx(mean["once"], rel=0.02)
    assert mean["README"] == pytest.approx(mean["once"], rel=0.02)
    assert mean["no"] > 4 * mean["once"]
    assert recon(multiplicative=None, **{told: "yes"})[0] == 2


@pytest.mark.parametrize(("power", "told"), [(1, "given twice"), (0.35, None), (0, None), (-1, "correction")])
def test_the_power_of_attenuation_in_the_factors_is_told_from_the_data(small_acquisition, power, told, caplog):
    """Of efficiencies that vary with the distance from the axis, and are zero in places."""
    thick = replace(small_acquisition, attenuation=3 * small_acquisition.attenuation, multiplicative=None)
    attenuating = thick.objective().model.multiplicative_factors
    r = torch.linspace(-1, 1, attenuating.shape[2])
    factors = torch.exp(-0.4 * r**2) * attenuating**power
    factors[0, 3, 4:9] = 0
    twice = replace(thick, multiplicative=factors)
    assert power_of_attenuation(factors, attenuating)[0] == pytest.approx(power, abs=0.01)
    if told is None:
        twice.objective()
        assert ("falls a little" in caplog.text) == (power > 0)
    else:
        with pytest.raises(AcquisitionError, match=told):
            twice.objective()
    replace(twice, attenuation_in_factors=False).objective()


EXAM = """patient orientation := feet_in
patient rotation := prone
calibration factor := 250
radionuclide name[1] := ^18^Fluorine
radionuclide halflife (sec)[1] := 6584.04
number of time frames := 1
image duration (sec)[1] := 600
image relative start time (sec)[1] := 30
"""


@pytest.fixture
def feet_first(small_scan, tmp_path):
    """Prompts whose header tells the examination."""
    text = Path(small_scan.prompts_hs).read_text().replace("prompts.s", str(small_scan.folder / "prompts.s"))
    text = re.sub(r"number of time frames.*\n", "", text)
    (tmp_path / "feet.hs").write_text(text.replace("!END OF INTERFILE", EXAM + "!END OF INTERFILE"))
    return tmp_path / "feet.hs"


def test_the_examination_is_kept_in_every_file(recon, feet_first):
    code, out = recon(prompts=feet_first, samples=2)
    assert code == 0
    for name in ("reconstruction", "uncertainty"):
        exam = read_exam_info(out / f"{name}.hv")
        assert (exam.orientation, exam.rotation, exam.time_frames) == ("feet_in", "prone", ((30.0, 600.0),))
        assert (exam.radionuclide.half_life, exam.calibration_factor) == (6584.04, 250.0)
    with h5py.File(out / "samples.h5") as file:
        assert list(file["samples"].attrs["patient_position"]) == ["feet_in", "prone"]
        assert file["samples"].attrs["time_frames_s"].tolist() == [[30.0, 600.0]]
    exam = json.loads((out / "record.json").read_text())["data"]["exam"]
    assert exam["orientation"] == "feet_in"
    assert exam["time_frames"] == [[30.0, 600.0]]


def test_images_in_becquerel_by_the_header_or_a_number(recon, small_scan, feet_first, tmp_path, capsys, monkeypatch):
    plain = read_image(recon(prompts=feet_first, method="osem")[1] / "reconstruction.hv")[0]
    for text, factor, source in (("header", 250.0, "header of the data"), ("3.5", 3.5, "given")):
        code, out = recon(prompts=feet_first, method="osem", calibration=text, out=tmp_path / text)
        assert code == 0
        assert torch.allclose(read_image(out / "reconstruction.hv")[0], factor * plain, rtol=1e-5)
        assert read_exam_info(out / "reconstruction.hv").calibration_factor == 1
        record = json.loads((out / "record.json").read_text())
        assert record["unit"] == "Bq/ml"
        assert record["calibration"] == {"factor": factor, "source": source}
    for text in ("-1", "nan", "much"):
        assert recon(method="osem", calibration=text, out=tmp_path / "bad")[0] == 2
    monkeypatch.setattr(Study, "run", None)  # asked for before the work, of a time frame as well
    for prompts in (small_scan.folder / "prompts.hs", f"{small_scan.folder}/prompts.hs#1"):
        assert recon(method="osem", prompts=prompts, calibration="header", out=tmp_path / "bad")[0] == 2
    assert "no calibration factor" in capsys.readouterr().err


def test_images_come_as_nifti_and_dicom_too(recon, feet_first, tmp_path):
    nibabel, pydicom = pytest.importorskip("nibabel"), pytest.importorskip("pydicom")
    code, out = recon(prompts=feet_first, method="osem", format="both")
    assert code == 0
    image, geometry = read_image(out / "reconstruction.hv")
    nifti = nibabel.load(out / "reconstruction.nii.gz")
    assert torch.allclose(torch.from_numpy(nifti.get_fdata()).permute(2, 1, 0).float(), image)
    assert int(nifti.header["qform_code"]) == 1
    write_dicom(tmp_path / "series", torch.ones(geometry.shape), geometry, read_exam_info(feet_first))
    code, out = recon("--like", str(tmp_path / "series"), prompts=feet_first, method="osem", format="nifti",
                      calibration="header", out=tmp_path / "dicom")  # fmt: skip
    assert code == 0
    assert not (out / "reconstruction.hv").exists()
    header = pydicom.dcmread(next((out / "dicom").iterdir()))
    assert (header.PatientPosition, header.Units) == ("FFP", "BQML")
    assert recon("--like", str(tmp_path / "nothing"), method="osem", out=tmp_path / "other")[0] == 2


def test_a_position_that_nifti_cannot_say_is_refused_before_the_work(recon, feet_first, capsys, monkeypatch):
    feet_first.write_text(feet_first.read_text().replace("prone", "left"))
    monkeypatch.setattr(Study, "run", None)
    assert recon(prompts=feet_first, method="osem", format="nifti")[0] == 2
    assert "'feet_in, left' is none of head or feet first, supine or prone: write Interfile" in capsys.readouterr().err


def test_headers_that_have_the_patient_lie_otherwise_are_warned_of(recon, small_scan, feet_first, tmp_path, caplog):
    values, grid = read_image(small_scan.folder / "mu.hv")
    for position, warned in ((("feet_in", "prone"), 0), (("head_in", "supine"), 1), (("unknown", "unknown"), 0)):
        write_image(tmp_path / "mu.hv", values, grid, exam=ExamInfo(*position))
        caplog.clear()
        out = tmp_path / position[0]
        assert recon(prompts=feet_first, method="osem", attenuation=tmp_path / "mu.hv", out=out)[0] == 0
        assert caplog.text.count("but 'feet_in, prone' in") == warned


def test_the_json_of_a_bids_derivative_has_what_the_data_tell_and_names_the_rest(recon, feet_first, tmp_path, caplog):
    pytest.importorskip("nibabel")
    assert recon("--bids-json", method="osem", out=tmp_path / "hv")[0] == 2
    clock = "study date := 2024:03:01\nstudy time := 10:20:30.250000\n!END"
    feet_first.write_text(feet_first.read_text().replace("!END", clock))
    code, out = recon("--bids-json", prompts=feet_first, samples=2, format="nifti", calibration="header")
    assert code == 0
    fields = json.loads((out / "reconstruction.json").read_text())
    numbers = dict(zip(fields["ReconMethodParameterLabels"], fields["ReconMethodParameterValues"], strict=True))
    assert len(fields["ReconMethodParameterUnits"]) == len(numbers)
    assert numbers["num_steps"] == 3
    expected = {
        "SkullStripped": False, "Units": "Bq/mL", "TracerRadionuclide": "F18", "TimeZero": "10:20:30",
        "ScanStart": 0.25, "FrameTimesStart": [30.25], "FrameDuration": [600.0], "ImageDecayCorrected": False,
        "ReconMethodName": "lisch", "ReconFilterType": "none", "AttenuationCorrection": "attenuation image",
        "DoseCalibrationFactor": 250.0,
    }  # fmt: skip
    assert {name: fields[name] for name in expected} == expected
    said = caplog.text.split("BIDS requires")[1]
    assert "InjectionStart" in said
    assert "TimeZero" not in said
    spread = json.loads((out / "uncertainty.json").read_text())
    assert spread.pop("Description").startswith("Posterior standard deviation")
    assert spread == {name: value for name, value in fields.items() if name != "Description"}


@pytest.mark.parametrize(("name", "nuclide"), [
    ("^18^Fluorine", "F18"), ("F-18", "F18"), ("18F", "F18"), ("^68^Gallium", "Ga68"), ("C11", "C11"),
    ("^99m^Technetium", "Tc99m"), ("unknown", None), ("", None), ("some mixture", "some mixture"),
])  # fmt: skip
def test_bids_tells_nothing_that_is_not_known(name, nuclide):
    record = {"title": "t", "method": "osem", "values": {"a": True, "b": "c", "d": 0.5}, "num_subsets": 7, "data": {},
              "software": {"sirf-diffusion": "1"}}  # fmt: skip
    fields = bids_fields(record, ExamInfo(radionuclide=Radionuclide(name), time_frames=((0.0, 60.0),)))
    assert fields.get("TracerRadionuclide") == nuclide
    assert fields["Units"] == "arbitrary"
    assert fields["ReconMethodParameterValues"] == [7, 0.5]
    assert fields["FrameDuration"] == [60.0]
    assert not {"TimeZero", "ScanStart", "FrameTimesStart", "AttenuationCorrection"} & fields.keys()


def test_the_networks_precision_is_chosen_and_recorded(recon):
    for precision in ("float32", "bfloat16"):
        code, out = recon("--overwrite", method="dds", precision=precision)
        assert code == 0
        assert json.loads((out / "record.json").read_text())["model"]["precision"] == precision
    assert recon(method="dds", precision="float32")[0] == 2  # another result is in the folder


def test_without_an_image_the_grid_covers_the_field_of_view_in_the_models_voxels(recon, small_model, small_scan):
    code, out = recon(attenuation=None, multiplicative=small_scan.multiplicative_with_attenuation_hs)
    assert code == 0
    geometry = read_image(out / "reconstruction.hv")[1]
    assert geometry.voxel_size == (4.0, 4.0, 4.0)
    assert geometry.shape[1] == geometry.shape[2]
    assert 100 < geometry.shape[1] * 4.0 <= 190


def test_one_sample_has_no_uncertainty_and_says_so(recon, capsys):
    code, out = recon(samples=1)
    assert code == 0
    assert not (out / "uncertainty.hv").exists()
    assert "no standard deviation" in capsys.readouterr().out


def test_the_number_of_subsets_is_chosen(recon):
    code, out = recon(method="osem", subsets=2)
    assert code == 0
    assert json.loads((out / "record.json").read_text())["num_subsets"] == 2


def test_debug_shows_the_traceback(recon, small_scan):
    with pytest.raises(ValueError, match="liver"):
        recon("--debug", model="liver")


def test_demo_compares_all_methods(small_scan, small_model, tmp_path, capsys):
    folder, out = write_example(tmp_path / "example").folder, tmp_path / "demo"
    assert main(["demo", "--data", str(folder), "--model", str(small_model), "--quick", "--out", str(out)]) == 0
    metrics = read_record(out / "metrics.json")
    assert list(metrics) == ["osem", "map-rdp", "map-score", "dds", "hqs", "lisch"]
    for numbers in metrics.values():
        assert set(numbers) == {"nrmse", "psnr", "ssim", "log_likelihood", "projections", "seconds"}
        assert 0 < numbers["nrmse"] < 1
    table = capsys.readouterr().out
    assert all(name in table for name in [*metrics, "nrmse", "psnr", "ssim", "forward", "back", "seconds"])
    assert (out / "comparison.png").stat().st_size > 10_000
    line = next(line for line in table.splitlines() if line.startswith("seconds: "))
    spent = {name: float(seconds) for seconds, name in re.findall(r"([0-9.]+) ([^,]+)", line)}
    assert {"model and example", "reconstructions in 2D", "checks in 2D", "figure and files"} < set(spent)
    whole = float(re.search(r"after (\d+) s", table)[1])
    assert sum(spent.values()) == pytest.approx(whole, abs=1.0)  # every second stands somewhere
    assert read_image(out / "lisch.hv")[1] == small_scan.geometry
    assert (out / "lisch-uncertainty.hv").exists()


def test_demo_compares_one_and_three_planes_on_a_volume(small_model, tmp_path, capsys):
    from sirf_diffusion.cli.demo import _compare_planes
    from sirf_diffusion.models import ScoreModel

    folder = write_small_scan(tmp_path / "volume", planes=3).folder
    options = {"model": ScoreModel.load(small_model), "num_samples": 1, "device": "cpu"}
    found = _compare_planes(load_example(folder), options)
    assert list(found) == ["osem", "lisch transverse", "lisch alternating"]
    planes = [found[f"lisch {p}"].results["lisch"].record["model"]["planes"] for p in ("transverse", "alternating")]
    assert planes == ["transverse", "alternating"]
    assert "lisch alternating" in capsys.readouterr().out


def test_doctor_says_what_is_there(capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert torch.__version__ in text
    assert all(word in text for word in ("STIR", "SIRF", "CUDA", "Works here"))


def test_models_lists_and_shows(small_model, capsys):
    assert main(["models"]) == 0
    assert main(["models", str(small_model)]) == 0
    assert '"licence": "Apache-2.0"' in capsys.readouterr().out
    assert main(["models", str(find_h_transform("brain-fdg-deft"))]) == 0
    assert '"counts"' in capsys.readouterr().out
    assert main(["models", "no-such"]) == 2
    assert "no-such" in capsys.readouterr().err


def test_train_passes_its_options_on(monkeypatch, tmp_path):
    import sirf_diffusion.training as training

    calls = []
    monkeypatch.setattr(training, "train", lambda *a, **k: calls.append((a, k)), raising=False)
    assert main(["train", "--recipe", "brain-fdg", "--out", str(tmp_path), "--max-steps", "3", "--restart"]) == 0
    assert calls[0][0] == ("brain-fdg", tmp_path)
    expected = {"work_dir": None, "max_steps": 3, "threads": None, "resume": False, "device": "auto", "data": None}
    assert expected.items() <= calls[0][1].items()
    assert main(["train", "--out", str(tmp_path)]) == 2
