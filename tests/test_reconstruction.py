"""Reconstructions by a method's name: what they take, where they start, and what they count."""

from dataclasses import replace

import pytest
import torch

from sirf_diffusion.data import load_example
from sirf_diffusion.engines.embedded.acquisition import Acquisition
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.models.storage import DEFAULT_MODEL
from sirf_diffusion.priors import QuadraticPenalty
from sirf_diffusion.reconstructors import OSEM
from sirf_diffusion.study.data import InterfileData
from sirf_diffusion.study.reconstruction import Study, reconstruct


def test_the_bundled_student_reconstructs_and_is_checked(small_acquisition):
    found = reconstruct(small_acquisition, "dds", model="brain-fast", num_samples=1, settings={"num_steps": 1})
    assert found.record["distribution"]["verdict"]


def test_a_checkpoint_of_other_data_or_from_another_image_is_refused(small_acquisition, tmp_path):
    data, options = small_acquisition, {"settings": {"num_iterations": 2}, "checkpoint": tmp_path / "run.safetensors"}
    first = reconstruct(data, "osem", **options)
    again = reconstruct(data, "osem", **options)
    assert torch.equal(again.image, first.image)
    assert again.record["seconds"]["data"] >= 0
    with pytest.raises(ValueError, match="another run: initial_image"):
        reconstruct(data, "osem", initial=1 + torch.rand(data.geometry.shape), **options)
    resampled = data.prompts.flatten()[torch.randperm(data.prompts.numel())].reshape(data.prompts.shape)
    background = {"additive": torch.ones_like(data.prompts)}
    plain, other = (Acquisition(y, data.projdata, data.geometry, **background) for y in (data.prompts, resampled))
    options["checkpoint"] = tmp_path / "plain.safetensors"
    reconstruct(plain, "osem", **options)
    with pytest.raises(ValueError, match="another run: prompts_mark"):
        reconstruct(other, "osem", **options)
    with pytest.raises(TypeError, match="prompts must be a tensor"):
        Acquisition(data.prompts.numpy(), data.projdata, data.geometry)


def test_without_a_model_the_default_one_is_used_and_named(small_acquisition, caplog):
    caplog.set_level("INFO", logger="sirf_diffusion.study")
    result = reconstruct(small_acquisition, "dds", num_samples=1, settings={"num_steps": 1})
    assert result.record["model"]["sha256"] == ScoreModel.load(DEFAULT_MODEL).hash
    assert f"{DEFAULT_MODEL}, the default" in caplog.text


@pytest.mark.parametrize("method", ["map-rdp", "map-score"])
def test_map_starts_from_the_early_osem_image_and_counts_its_cost(small_acquisition, small_model, method):
    options = {"model": small_model, "settings": {"num_iterations": 1}}
    early = OSEM(small_acquisition.objective(8), 2).process().get_output()
    found = reconstruct(small_acquisition, method, **options)
    given = reconstruct(small_acquisition, method, initial=early, **options)
    uniform = reconstruct(small_acquisition, method, initial=small_acquisition.objective().uniform_image(), **options)
    assert torch.equal(found.image, given.image)
    assert not torch.allclose(found.image, uniform.image, rtol=1e-2)
    assert found.record["projections"] == given.record["projections"] == uniform.record["projections"]
    assert found.record["seconds"]["total"] > found.record["seconds"]["intensity_scale"] > 0


def test_files_acquisition_example_and_objective_give_one_image(small_acquisition, small_scan):
    settings = {"num_iterations": 3}
    expected = reconstruct(small_acquisition, "osem", num_subsets=4, settings=settings)
    names = {name: getattr(small_scan, f"{name}_hs") for name in ("prompts", "multiplicative", "additive")}
    files = InterfileData(**names, attenuation=small_scan.mu_hv)
    example, four = replace(load_example(), acquisition=small_acquisition), {"num_subsets": 4}
    for data, options in ((files, four), (example, four), (small_acquisition.objective(4), {})):
        found = reconstruct(data, "osem", settings=settings, **options)
        assert torch.equal(found.image, expected.image)
        assert found.record["num_subsets"] == 4
        assert found.record["data"] == expected.record["data"]
        assert found.record["engine"] == expected.record["engine"]
    assert found.record["engine"]["name"] == "embedded"
    with pytest.raises(TypeError, match="cannot make an objective"):
        reconstruct(b"nothing", "osem")
    with pytest.raises(TypeError, match=r"takes no num_iterations: .* settings="):
        reconstruct(small_acquisition, "osem", num_iterations=3)


def test_order_of_subsets_and_prior_are_used_and_refused_elsewhere(small_acquisition):
    settings = {"num_iterations": 1}
    options = {"num_subsets": 4, "settings": settings}
    first, second = (
        reconstruct(small_acquisition, "osem", subset_order=order, **options).image
        for order in ((0, 1, 2, 3), (3, 2, 1, 0))
    )
    assert not torch.allclose(first, second, rtol=1e-3)
    prior = QuadraticPenalty(small_acquisition.geometry, 0.5)
    result = reconstruct(small_acquisition, "map-rdp", prior=prior, settings=settings)
    assert result.record["prior"]["name"] == "QuadraticPenalty"
    with pytest.raises(ValueError, match="prior is for map-rdp only"):
        reconstruct(small_acquisition, "osem", prior=prior)
    with pytest.raises(ValueError, match="subset_order is for osem only"):
        reconstruct(small_acquisition, "map-rdp", subset_order=(0,))


@pytest.mark.parametrize(("options", "words"), [
    ({"num_samples": 0}, "num_samples must be"), ({"num_samples": 10**11}, "num_samples must be"),
    ({"num_samples": 1.5}, "num_samples must be"), ({"seed": 10**22}, "seed must be"), ({"seed": -1}, "seed must be"),
    ({"settings": {"num_steps": "many"}}, "num_steps must be"),
    ({"settings": {"num_steps": 1e30}}, "num_steps must be"), ({"settings": {"eta": float("nan")}}, "eta must be"),
    ({"method": "osem", "num_samples": 2}, "one image"), ({"method": "osem", "members": [0]}, "one image"),
    ({"engine": "stir"}, "--par"), ({"device": "abacus"}, "abacus"), ({"guidance": float("nan")}, "guidance"),
])  # fmt: skip
def test_options_that_make_no_sense_are_refused_before_anything_is_read(options, words):
    with pytest.raises(ValueError, match=words):
        Study(InterfileData("missing.hs"), **options)


@pytest.mark.requires_sirf
def test_sirfs_objective_tells_engine_and_examination(tmp_path):
    from sirf_scan import Scan, quiet_sirf

    from sirf_diffusion.engines.sirf.objective import SirfObjective

    folder = load_example("brain2d").folder
    text = (folder / "prompts.hs").read_text().replace("prompts.s", str(folder / "prompts.s"))
    lines = "patient orientation := feet_in\npatient rotation := prone\n"
    text = text.replace("!GENERAL IMAGE DATA :=", lines + "!GENERAL IMAGE DATA :=")
    frames = "number of time frames := 1\n"
    frame = frames + "image duration (sec)[1] := 600\nimage relative start time (sec)[1] := 30\n"
    (tmp_path / "feet.hs").write_text(text.replace(frames, frame))
    with quiet_sirf() as pet:
        prompts = pet.AcquisitionData(str(tmp_path / "feet.hs"))
        template = prompts.create_uniform_image(1.0, (128, 128))
        model = pet.AcquisitionModelUsingRayTracingMatrix()
        model.set_up(prompts, template)
        objective = SirfObjective(Scan(prompts, model, template).objective(pet), prompts, model)
        result = reconstruct(objective, "osem", settings={"num_iterations": 1})
    assert result.record["engine"]["name"] == "sirf"
    assert (result.exam.orientation, result.exam.rotation) == ("feet_in", "prone")
    assert result.exam.time_frames == ((30.0, 600.0),)
