"""The bundled model on the bundled subjects, which it was not trained on."""

import pytest
import torch

from sirf_diffusion.data import load_example
from sirf_diffusion.files.documents import digest
from sirf_diffusion.files.outputs import jsonable
from sirf_diffusion.geometry.gaussian import gaussian_smooth
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models import ScoreModel, intensity_scale, list_models
from sirf_diffusion.models.h_transform import find_h_transform, list_h_transforms, read_h_transform
from sirf_diffusion.study.metrics import nrmse
from sirf_diffusion.study.reconstruction import reconstruct
from sirf_diffusion.training.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("undrawn")
WIDTHS_MM = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0)


@pytest.fixture(scope="module")
def model():
    return ScoreModel.load("brain-fdg")


@pytest.fixture(scope="module")
def example():
    return load_example("brain2d")


@pytest.mark.parametrize("name", ["brain", "brain-fdg", "brain-fdg-mr"])
def test_is_bundled_small_and_says_where_it_comes_from(name):
    from sirf_diffusion.models.storage import find_model

    assert name in list_models()
    assert find_model(name).stat().st_size <= 16e6
    metadata, recipe = ScoreModel.load(name).metadata, RECIPES[name]
    assert metadata["licence"] == "Apache-2.0"
    training = metadata["training"]
    assert training["steps"] == recipe.num_steps
    assert training["init"]["sha256"]
    assert training["recipe"] == training["recipe"] | jsonable(recipe.to_dict())


@pytest.mark.parametrize("name", ["brain", "brain-fdg"])
def test_a_companion_started_from_its_model_and_errs_little_more_where_it_is_asked(name, example):
    model, truth, geometry = ScoreModel.load(name), example.truth, example.acquisition.geometry
    training, recipe = model.companion.metadata["training"], RECIPES[f"{name}-coarse"]
    assert training["init"] == {"name": name, "sha256": model.hash}
    assert training["steps"] == recipe.num_steps
    assert training["recipe"] == training["recipe"] | jsonable(recipe.to_dict())
    c = intensity_scale(truth, geometry)
    clean = model.on(geometry, c).to_latent(truth)
    noise = torch.randn((3, *clean.shape), generator=torch.Generator().manual_seed(1))
    for sigma, most in ((0.5, 1.25), (1.0, 1.15), (2.0, 1.1)):
        t, errors = model.schedule.t_of_sigma(sigma), []
        for above in (None, 0.4):
            bound = model.on(geometry, c, coarse_above=above)
            found, _ = bound.predict(model.schedule.gamma(t) * (clean + sigma * noise), t)
            errors.append(float((found - clean).norm()))
        assert errors[1] < most * errors[0]


def test_the_distilled_model_is_small_and_close_to_its_teacher(example):
    from sirf_diffusion.models.storage import find_model

    assert find_model("brain-fast").stat().st_size <= 8e6
    teacher, student = (ScoreModel.load(name) for name in ("brain", "brain-fast"))
    assert student.metadata["training"]["teacher"] == {"name": "brain", "sha256": teacher.hash}
    assert [student.metadata[name] for name in ("tracer", "licence")] == ["many tracers, head", "Apache-2.0"]
    truth, geometry = example.truth, example.acquisition.geometry
    c = intensity_scale(truth, geometry)
    noisy = truth + 0.4 * c * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    taught, found = (model.on(geometry, c).denoise_at(noisy, 0.4) for model in (teacher, student))
    assert float((found - truth).norm()) < 1.2 * float((taught - truth).norm())
    assert float((found - taught).norm()) < 0.6 * float((taught - truth).norm())


def test_the_bundled_h_transforms_are_small_and_help_their_score_model(example):
    assert list_h_transforms() == ["brain-fdg-deft", "brain-fdg-deft-3d"]
    for name, updates in (("brain-fdg-deft-3d", 7), ("brain-fdg-deft", 0)):
        assert find_h_transform(name).stat().st_size <= 8e6
        config = read_h_transform(find_h_transform(name))
        assert config.num_updates == updates
        assert config.base_sha256 == ScoreModel.load(config.base).hash
    result = reconstruct(example.acquisition, "deft", num_samples=2, seed=1)
    assert result.record["model"]["sha256"] == config.base_sha256
    assert nrmse(result.image, example.truth) < 0.35


def test_in_volumes_another_h_transform_is_the_default():
    example = load_example("brain3d")
    result = reconstruct(example.acquisition, "deft", num_samples=1, seed=1)
    assert result.record["h_transform"]["sha256"] == digest(find_h_transform("brain-fdg-deft-3d"))
    assert result.record["h_transform"]["outside_training"] == []
    assert nrmse(result.image, example.truth) < 0.28


@pytest.mark.parametrize("sigma", [0.1, 0.2, 0.4, 0.8, 1.6])
def test_denoises_better_than_the_best_gaussian_filter(model, example, sigma):
    truth, geometry = example.truth, example.acquisition.geometry
    c = intensity_scale(truth, geometry)
    noise = torch.randn((3, *truth.shape), generator=torch.Generator().manual_seed(1))
    noisy = truth + c * sigma * noise
    error = float((model.on(geometry, c).denoise_at(noisy, sigma) - truth).square().mean())
    best = min(float((gaussian_smooth(noisy, geometry, width) - truth).square().mean()) for width in WIDTHS_MM)
    assert error < 0.8 * best


@pytest.mark.slow
def test_the_enhancement_model_is_small_and_beats_the_best_gaussian_filter_on_a_held_out_trunk():
    from sirf_diffusion.models.enhancement import EnhancementModel
    from sirf_diffusion.models.storage import find_model
    from sirf_diffusion.reconstructors.enhancement import Enhancer
    from sirf_diffusion.reconstructors.low_dose import LowDose
    from sirf_diffusion.training.data.phantom_data import PhantomOptions, simulate_volumes

    name = "body-fdg-enhance"
    assert name not in list_models()
    assert name in list_models(enhancing=True)
    assert find_model(name).stat().st_size <= 16e6
    model = EnhancementModel.load(name, "cpu")
    assert (model.config.licence, model.config.training["steps"]) == ("Apache-2.0", 4800)
    volume = simulate_volumes(9300, PhantomOptions("fdg", "trunk", 1, first=9300, voxel_size=4.0))[0]
    truth, ct = (torch.from_numpy(volume.arrays[key][40:52]).float() for key in ("emission", "anatomy"))
    geometry, doses = ImageGeometry(tuple(truth.shape), (4.0, 4.0, 4.0)), torch.full((12,), 0.1)
    low = LowDose(model.config.scan, "binomial", geometry.voxel_size)
    noisy = low(truth[:, None], doses, torch.Generator().manual_seed(1))[:, 0]
    error = float((Enhancer(model.guided_by(ct), 0.1)(noisy, geometry) - truth).square().mean())
    best = min(float((gaussian_smooth(noisy, geometry, w) - truth).square().mean()) for w in (4, 6, 8, 10, 13))
    assert error < 0.7 * best


@pytest.mark.slow
def test_sampling_beats_maximum_likelihood_at_its_best(example):
    """OSEM stopped by looking at the truth, against likelihood-scheduled sampling."""
    objective = example.acquisition.objective()
    x, errors = objective.uniform_image(), []
    for _ in range(14):
        evaluation = objective.at(x)
        x = x * (1 + evaluation.gradient() / objective.sensitivity().clamp_min(1e-9))
        x = x * (objective.sensitivity() > 0.01 * objective.sensitivity().max())
        errors.append(nrmse(x, example.truth))
    assert errors.index(min(errors)) < len(errors) - 1
    result = reconstruct(example.acquisition, "lisch", model="brain-fdg", num_samples=2, settings={"num_steps": 10})
    assert nrmse(result.image, example.truth) < 0.9 * min(errors)
