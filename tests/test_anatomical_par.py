"""The anatomical image in parameter files: keys of our blocks, what `check` says of them, STIR's own calls."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from par_files import par_text
from patient_images import write_nifti_at
from small_scan import write_conditional_model, write_small_model
from stir_shim_blocks import prior, processor
from stir_shim_scan import run_program

import stir_priors
from sirf_diffusion.files.interfile import write_image
from sirf_diffusion.files.parfile import ParFile
from sirf_diffusion.geometry.exam import ORIENTATIONS, ROTATIONS, ExamInfo
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.interop.stir import blocks, check, registry
from sirf_diffusion.interop.stir.callbacks import make_prior, make_processor
from sirf_diffusion.interop.stir.par_prior import anatomical_of, score_settings_of
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.models.denoiser import Denoiser
from sirf_diffusion.patient import AnatomicalImage
from sirf_diffusion.priors import NOISE_LEVEL, ScorePenalty

pytest.importorskip("SimpleITK")

GEOMETRY = ImageGeometry((2, 14, 15), (4.0, 4.0, 4.0))
FINE = ImageGeometry((4, 30, 30), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
MIDDLE = replace(GEOMETRY, origin=(-2.0, 0.0, 0.0))
SCALE = 10.0
SCORE = """\
prior type := Diffusion Score
  Diffusion Score Parameters :=
  penalisation factor := 0.1
  {keys}
  END Diffusion Score Parameters :="""
PAR = par_text("prompts.hs", "image", SCORE, subsets=1, subiterations=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    pytest.importorskip("nibabel")
    folder = tmp_path_factory.mktemp("files")
    write_conditional_model(folder / "conditional.safetensors", 4.0)
    personal = ScoreModel.load(folder / "conditional.safetensors")
    personal.metadata["training"] = {"personalised": {}}
    personal.save(folder / "personal.safetensors")
    write_small_model(folder / "plain.safetensors")
    mr = torch.rand(FINE.shape, generator=torch.Generator().manual_seed(1)) + 0.2
    write_image(folder / "mr.hv", mr, FINE)
    write_nifti_at(folder / "mr.nii", mr, FINE, "SLP")
    write_nifti_at(folder / "middle.nii", mr, replace(FINE, origin=(-3.0, 0.0, 0.0)))
    return folder


def image(seed=0):
    return SCALE * (torch.rand(GEOMETRY.shape, generator=torch.Generator().manual_seed(seed)) + 0.1)


def options(kind, files, **changed):
    """All keys of a block as STIR hands them over."""
    defaults = next(block.defaults for block in blocks.BLOCKS if block.name == kind)
    given = {"model filename": files / "conditional.safetensors", "intensity scale": SCALE, "device": "cpu"}
    given |= {key.replace("_", " "): value for key, value in changed.items()}
    assert set(given) <= set(defaults)
    return {**defaults, **{key: str(value) for key, value in given.items()}}


def gradient(callback):
    callback.set_up(GEOMETRY)
    out = np.zeros(GEOMETRY.shape, np.float32)
    callback.gradient(image().numpy(), out)
    return out


def bound(files, guidance):
    model = ScoreModel.load(files / "conditional.safetensors")
    return model.guided_by(files / "mr.hv", guidance)


def expected_gradient(files, weight):
    penalty = ScorePenalty(bound(files, weight), NOISE_LEVEL, 1.0, planes="three", intensity_scale=SCALE)
    penalty.set_up(GEOMETRY)
    return penalty.gradient(image()).numpy()


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * float(np.abs(expected).max()))


@pytest.mark.parametrize(("name", "weight"), [("mr.hv", 0.0), ("mr.nii", 0.5)])
def test_the_score_prior_shows_the_network_the_resampled_image(files, name, weight):
    callback = make_prior(
        "Diffusion Score",
        options("Diffusion Score", files, anatomical_image_filename=files / name, guidance_weight=weight),
        {},
    )
    found = gradient(callback)
    assert_close(found, expected_gradient(files, weight))
    plain = make_prior("Diffusion Score", options("Diffusion Score", files, guidance_weight=-1), {})
    assert not np.allclose(found, gradient(plain), rtol=1e-2, atol=1e-2 * float(np.abs(found).max()))


def test_the_denoiser_shows_it_too(files):
    keys = {"anatomical_image_filename": files / "mr.hv", "guidance_weight": 0.5, "noise_level": 0.4}
    callback = make_processor("Diffusion Denoiser", options("Diffusion Denoiser", files, **keys), {})
    callback.set_up(GEOMETRY)
    x = image().numpy().copy()
    callback.apply(x)
    expected = Denoiser(bound(files, 0.5), 0.4, intensity_scale=SCALE)(image(), GEOMETRY)
    assert_close(x, expected.numpy())


def test_the_sampler_shows_it_too(files):
    images = []
    for keys in ({"anatomical_image_filename": files / "mr.hv"}, {"guidance_weight": -1}):
        block = options("Diffusion Sampler", files, number_of_steps=2, **keys)
        callback = make_processor("Diffusion Sampler", block, {})
        callback.set_up(GEOMETRY)
        x = image().numpy().copy()
        callback.apply(x)
        images.append(x)
    assert not np.allclose(*images, rtol=1e-2)


def made(kind, files, **keys):
    """The object behind a block that names the MR."""
    keys["anatomical_image_filename"] = files / "middle.nii"
    values = options(kind, files, **keys)
    return make_prior(kind, values, {}) if kind == "Diffusion Score" else make_processor(kind, values, {})


@pytest.mark.parametrize("position", [("head_in", "prone"), ("feet_in", "supine"), ("unknown", "unknown")])
@pytest.mark.parametrize("kind", ["Diffusion Score", "Diffusion Denoiser", "Diffusion Sampler"])
def test_an_image_of_the_patient_is_placed_as_the_patient_of_the_data_lies(files, kind, position):
    mr = AnatomicalImage.read(files / "middle.nii")
    callback = made(kind, files, **({"number_of_steps": 2} if kind == "Diffusion Sampler" else {}))
    callback.set_patient_position(ORIENTATIONS.index(position[0]), ROTATIONS.index(position[1]))
    callback.set_up(MIDDLE)
    owner = {"Diffusion Score": "prior", "Diffusion Denoiser": "denoiser"}.get(kind)
    shown = (getattr(callback, owner) if owner else callback).model._anatomical.on(MIDDLE)
    unknown = position[0] == "unknown"
    assert torch.equal(shown, mr.on(MIDDLE)) == unknown
    assert torch.equal(shown, replace(mr, data_position=None if unknown else position).on(MIDDLE))


def test_the_gradient_follows_the_position(files):
    """Also after another set-up, which keeps what it can."""
    callback, found = made("Diffusion Score", files), []
    for orientation in (0, 1, 0):
        callback.set_patient_position(orientation, 0)
        callback.set_up(MIDDLE)
        found.append(np.zeros(MIDDLE.shape, np.float32))
        callback.gradient(image().numpy(), found[-1])
    np.testing.assert_array_equal(found[0], found[2])
    assert not np.allclose(found[0], found[1], rtol=1e-2)
    with pytest.raises(ValueError, match="head_in, left"):
        callback.set_patient_position(0, ROTATIONS.index("left"))


@pytest.mark.requires_stir
@pytest.mark.requires_shim
@pytest.mark.parametrize("position", [("feet_in", "prone"), ("head_in", "supine")])
def test_stir_tells_how_the_patient_lies(tmp_path, position):
    """As its own reader has it from the header."""
    write_image(tmp_path / "x.hv", image(), MIDDLE, exam=ExamInfo(orientation=position[0], rotation=position[1]))
    block = processor("Postfilter type", "Python", module="stir_shim_priors", cls="HowThePatientLies")
    (tmp_path / "f.par").write_text(f"PostFilteringParameters :=\n{block}END PostFiltering Parameters :=\n")
    ran = run_program("postfilter", "out", "x.hv", "f.par", cwd=tmp_path)
    numbers = ORIENTATIONS.index(position[0]), ROTATIONS.index(position[1])
    assert "lies {} {}".format(*numbers) in ran.output


@pytest.mark.parametrize("kind", ["Diffusion Score", "Diffusion Denoiser", "Diffusion Sampler"])
def test_what_makes_no_sense_names_the_key(files, kind):
    make = make_prior if kind == "Diffusion Score" else make_processor

    def make_with(**changed):
        changed |= {"number_of_steps": 2} if kind == "Diffusion Sampler" else {}
        return make(kind, options(kind, files, **changed), {})

    with pytest.raises(ValueError, match=r"anatomical image filename := .*none.hv"):
        make_with(anatomical_image_filename=files / "none.hv")
    with pytest.raises(ValueError, match="guidance weight := -2"):
        make_with(anatomical_image_filename=files / "mr.hv", guidance_weight=-2)
    plain = {"model_filename": files / "plain.safetensors"}
    with pytest.raises(ValueError, match=r"anatomical image filename .*without anatomical images"):
        make_with(anatomical_image_filename=files / "mr.hv", **plain)
    far = make_with(anatomical_image_filename=files / "mr.hv")
    with pytest.raises(ValueError, match=r"mr.hv .*overlap by only 0%"):
        far.set_up(ImageGeometry((2, 14, 15), (4.0, 4.0, 4.0), (500.0, 0.0, 0.0)))


@pytest.mark.parametrize(("keys", "level", "expected"), [
    ("model filename := MODEL\n  anatomical image filename := MR\n  guidance weight := 0.5", None, ""),
    ("model filename := MODEL\n  guidance weight := -1", None, ""),
    ("model filename := PERSONAL", None, ""),
    ("model filename := MODEL", "warning", "can use an MR or CT image and is given none"),
    ("model filename := MODEL\n  guidance weight := -2", "error", "weight := -2: expected a number of at least -1"),
    ("model filename := MODEL\n  memory := yes", "error", "memory := yes: expected 0 or 1"),
    ("model filename := MODEL\n  guidance weight := much", "error", "guidance weight"),
    ("model filename := MODEL\n  anatomical image filename := absent.nii", "error", "no such file"),
    ("model filename := brain-fdg\n  anatomical image filename := MR", "error", "without anatomical images"),
    ("model filename := brain-fdg\n  guidance weight := 0.5", "error", "without anatomical images"),
    ("model filename := MODEL\n  guidance weights := 0.5", "error", "did you mean 'guidance weight'"),
])  # fmt: skip
def test_check_knows_the_keys(files, tmp_path, monkeypatch, keys, level, expected):
    monkeypatch.setattr(check, "known_names", registry.built_in_names)
    monkeypatch.chdir(tmp_path)
    names = {"MODEL": "conditional.safetensors", "PERSONAL": "personal.safetensors", "MR": "mr.nii"}
    text = keys
    for name, file in names.items():
        text = text.replace(name, str(files / file))
    (tmp_path / "prompts.hs").write_text("")
    path = tmp_path / "my.par"
    path.write_text(PAR.format(keys=text))
    findings = [f for f in check.check(path).findings if "prompts" not in f.text]
    if level is None:
        assert not findings
    else:
        assert any(f.level == level and expected in f.text for f in findings)


@pytest.mark.requires_stir
@pytest.mark.requires_shim
def test_stirs_own_call_gives_the_gradient_of_the_tensor_prior(files):
    keys = options("Diffusion Score", files, anatomical_image_filename=files / "mr.nii", guidance_weight=0.5)
    text = prior(
        "Diffusion Score", **{k.replace(" ", "_"): v for k, v in keys.items() if v} | {"penalisation_factor": 1}
    )
    found = stir_priors.load().evaluate(text, image().numpy(), GEOMETRY.voxel_size)["gradient"]
    assert_close(found, expected_gradient(files, 0.5))


@pytest.mark.parametrize(("keys", "expected"), [
    ("anatomical image filename := mr.nii\n  guidance weight := 0.5", ("mr.nii", 0.5)),
    ("noise level := 0.3", (None, 0.0)),
])  # fmt: skip
def test_a_kept_prior_brings_its_image_into_another_run(keys, expected):
    par = ParFile.parse(PAR.format(keys=f"model filename := m\n  {keys}"))
    assert score_settings_of(par)[0] == "m"
    assert anatomical_of(par) == expected
