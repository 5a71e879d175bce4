"""An anatomical image in a reconstruction, from the command line and from Python, in every method with a network."""

import json
import logging

import pytest
import torch
from small_scan import write_conditional_model, write_small_model

from sirf_diffusion.cli import main
from sirf_diffusion.files.interfile import read_image, write_image
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.patient import AnatomicalImage
from sirf_diffusion.reconstructors.methods import METHODS
from sirf_diffusion.study.reconstruction import reconstruct

pytestmark = pytest.mark.usefixtures("undrawn")
GUIDED = ("map-score", "dds", "hqs", "lisch")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    conditional = write_conditional_model(folder / "conditional.safetensors", 4.0)
    return {1: write_small_model(folder / "plain.safetensors"), 2: conditional}


@pytest.fixture
def recon(small_scan, models, tmp_path):
    def run(*more, model=2, method="dds", out="out"):
        steps = "num_iterations=2" if method.startswith("map-") else "num_steps=2"
        arguments = ["recon", *small_scan.options, "--method", method, "--out", str(tmp_path / out)]
        arguments += ["--device", "cpu", "--set", steps]
        arguments += ["--samples", "1"] if METHODS[method].samples else []
        arguments += ["--model", str(models[model])] if METHODS[method].uses_model else []
        return main([*arguments, *map(str, more)]), tmp_path / out

    return run


def settings(method):
    return {"num_iterations": 2} if method.startswith("map-") else {"num_steps": 2}


@pytest.mark.parametrize("method", GUIDED)
def test_every_method_that_has_a_network_shows_it_the_image(small_acquisition, small_scan, models, method):
    def image(**guide):
        return reconstruct(
            small_acquisition, method, model=models[2], settings=settings(method), device="cpu", **guide
        ).image  # fmt: skip

    with_mr, without = image(anatomical=small_scan.mr_hv), image(guidance=-1.0)
    assert not torch.allclose(with_mr, without, rtol=1e-3)
    assert torch.equal(image(anatomical=small_scan.mr_hv, guidance=-1.0), without)
    assert not torch.allclose(image(anatomical=small_scan.mr_hv, guidance=1.0), with_mr, rtol=1e-3)
    assert torch.equal(image(anatomical=read_image(small_scan.mr_hv)[0]), with_mr)


def test_the_record_says_which_image_how_much_of_it_and_from_which_grid(recon, small_scan, tmp_path):
    mr, _ = read_image(small_scan.mr_hv)
    fine = ImageGeometry((3, 42, 42), (4.0, 2.0, 2.0), (-4.0, -1.0, -1.0))
    write_image(tmp_path / "fine.hv", mr.repeat_interleave(2, 1).repeat_interleave(2, 2).repeat(3, 1, 1), fine)
    code, out = recon("--anatomical", tmp_path / "fine.hv", "--guidance", "0.5")
    assert code == 0
    known = json.loads((out / "record.json").read_text())["anatomical"]
    assert known["file"] == str(tmp_path / "fine.hv")
    assert len(known["sha256"]) == 64
    assert known["guidance"] == 0.5
    assert known["resampled"]
    assert known["from"] == {"shape": [3, 42, 42], "voxel_size_mm": [4.0, 2.0, 2.0]}
    assert known["to"] == {"shape": [1, 21, 21], "voxel_size_mm": [4.0, 4.0, 4.0]}
    assert known["patient_covered"] == 1
    assert known["registration"] is None


@pytest.mark.draws
def test_the_report_has_a_row_more(recon, small_scan):
    from matplotlib.image import imread

    heights = []
    for name, more in (("with", ("--anatomical", small_scan.mr_hv)), ("without", ("--guidance", "-1"))):
        code, out = recon(*more, out=name)
        assert code == 0
        heights.append(imread(out / "report.png").shape[0])
    assert heights[0] > 1.5 * heights[1]


def test_another_image_or_weight_is_another_result(recon, small_scan):
    assert recon("--anatomical", small_scan.mr_hv)[0] == 0
    assert recon("--anatomical", small_scan.mr_hv)[0] == 0  # the same command may be run again
    for more in (("--anatomical", small_scan.truth_hv), ("--anatomical", small_scan.mr_hv, "--guidance", "1")):
        assert recon(*more)[0] == 2


@pytest.mark.parametrize(("model", "method", "more", "message"), [
    (1, "dds", ("--anatomical", "MR"), "trained without anatomical images"),
    (1, "dds", ("--guidance", "0.5"), "trained without anatomical images"), (2, "dds", (), "--anatomical FILE"),
    (2, "dds", ("--guidance", "0.5"), "--anatomical FILE"),
    (2, "dds", ("--anatomical", "MR", "--guidance", "-2"), "at least -1"),
    (2, "dds", ("--register",), "no anatomical image"), (2, "dds", ("--anatomical", "no-such.nii"), "no-such.nii"),
    (2, "dds", ("--anatomical", "MR", "--register"), "40 mm"),
    (2, "map-rdp", ("--anatomical", "MR"), "uses no score model"),
])  # fmt: skip
def test_what_makes_no_sense_ends_with_one_message(recon, small_scan, capsys, caplog, model, method, more, message):
    code, out = recon(*[small_scan.mr_hv if text == "MR" else text for text in more], model=model, method=method)
    assert code == 2
    assert message in capsys.readouterr().err + caplog.text
    assert not out.exists()


def test_an_image_of_elsewhere_is_refused(small_acquisition, models):
    geometry = ImageGeometry((1, 21, 21), (4.0, 4.0, 4.0), (0.0, 300.0, 0.0))
    far = AnatomicalImage.of(torch.rand(geometry.shape), geometry, "far.hv")
    with pytest.raises(ValueError, match=r"far.hv covers only 0%.*--register"):
        reconstruct(small_acquisition, "dds", model=models[2], anatomical=far, settings={"num_steps": 2}, device="cpu")


def test_an_image_that_misses_a_part_of_the_patient_gives_a_warning(small_acquisition, models, caplog):
    geometry = ImageGeometry((1, 13, 21), (4.0, 4.0, 4.0), (0.0, 0.0, 0.0))
    part = AnatomicalImage.of(torch.ones(geometry.shape) + torch.eye(21)[:13], geometry)
    with caplog.at_level(logging.WARNING, "sirf_diffusion"):
        reconstruct(small_acquisition, "dds", model=models[2], anatomical=part, settings={"num_steps": 2}, device="cpu")
    assert "of the patient" in caplog.text
