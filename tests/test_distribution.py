"""How far from the model's distribution: right for its own images, noticed for others, and what it costs."""

import json
from dataclasses import replace

import pytest
import torch
from toy_denoisers import gaussian_score_model

from sirf_diffusion.data import load_example
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models import ScoreModel, intensity_scale
from sirf_diffusion.reconstructors import OSEM
from sirf_diffusion.study.fitness import (
    COARSE,
    IN,
    LIKELIHOOD_LIMIT,
    OUT,
    PROBES,
    LikelihoodCheck,
    check_distribution,
    some_planes,
)
from sirf_diffusion.study.reconstruction import reconstruct

GEOMETRY = ImageGeometry((1, 96, 96), (2.0, 2.0, 2.0))
MEAN, VARIANCE, SCALE = 1.0, 0.06, 7.0


def gaussian_model(geometry=GEOMETRY, planes="transverse"):
    return gaussian_score_model(VARIANCE, MEAN).on(geometry, SCALE, planes)


def own_image(seed=0, spread=VARIANCE**0.5, geometry=GEOMETRY):
    noise = torch.randn(geometry.shape, generator=torch.Generator().manual_seed(seed))
    return SCALE * (MEAN + spread * noise)


def ratios(check):
    return [level.own_ratio for level in check.denoising]


@pytest.mark.parametrize("planes", ["transverse", "three"])
def test_the_model_s_own_images_are_denoised_as_well_as_it_expects(planes):
    shape = (1, 96, 96) if planes == "transverse" else (16, 32, 32)
    geometry = ImageGeometry(shape, (2.0, 2.0, 2.0))
    image = own_image(geometry=geometry)
    check = check_distribution(gaussian_model(geometry, planes), image, samples=image[None])
    assert [level.sigma for level in check.denoising] == list(PROBES)
    assert check.network_evaluations == (2 * sum(PROBES.values()) if planes == "transverse" else 2 * len(PROBES))
    assert not any(level.companion for level in check.denoising)
    for level in check.denoising:
        exact = (VARIANCE * level.sigma**2 / (VARIANCE + level.sigma**2)) ** 0.5
        assert level.expected == pytest.approx(exact, rel=0.04)
        assert level.error == pytest.approx(exact, rel=0.04)
    assert check.verdict == IN
    assert check.recommendation == ""
    assert check.training_ratio is None


def test_few_planes_stand_for_a_volume():
    images = torch.rand(2, 40, 8, 8)
    images[:, :10] = 0
    images[:, 30:] = 0
    images += 100.0 * torch.arange(40)[:, None, None] * (images > 0)
    few, grid = some_planes(images, ImageGeometry((40, 8, 8), (2.0, 2.0, 2.0)), 4)
    assert grid.shape == (4, 8, 8)
    assert (few[0].mean((1, 2)) / 100).round().tolist() == [12, 17, 22, 27]  # spread over those that emit
    assert some_planes(images[:, :1], ImageGeometry((1, 8, 8), (2.0, 2.0, 2.0)), 4)[0].shape == (2, 1, 8, 8)


def test_the_unit_of_the_image_does_not_matter():
    one = check_distribution(gaussian_model(), own_image())
    other = check_distribution(gaussian_model().on(GEOMETRY, 1024 * SCALE), 1024 * own_image())
    assert ratios(one) == pytest.approx(ratios(other), rel=1e-3)


def test_more_variation_than_the_model_knows_is_noticed():
    found = [check_distribution(gaussian_model(), own_image(spread=s * VARIANCE**0.5)) for s in (1.0, 1.5, 2.0, 3.0)]
    largest = [check.fine_ratio for check in found]
    assert largest == sorted(largest)
    assert found[-1].verdict == OUT
    assert "--adapt" in found[-1].recommendation
    assert found[-1].recommendation in found[-1].message


@pytest.mark.parametrize("image", [own_image(spread=0.6 * VARIANCE**0.5), "estimate"], ids=["smooth", "estimate"])
def test_less_variation_than_the_model_knows_is_noticed_of_samples_alone(image):
    """The model's own estimate of a noisy image has less, too: of estimates, nothing follows."""
    model = gaussian_model()
    if isinstance(image, str):
        noise = torch.randn(GEOMETRY.shape, generator=torch.Generator().manual_seed(1))
        image = model.denoise_at(own_image() + 0.3 * SCALE * noise, 0.3)
    sample, estimate = (check_distribution(model, image, samples=s) for s in (image[None], None))
    assert sample.coarse_ratio == estimate.coarse_ratio < 0.9
    assert sample.fine_ratio < 1.05
    assert (sample.verdict, estimate.verdict) == ("unusual", IN)
    assert "as smooth images have" in estimate.message
    assert estimate.recommendation == ""
    assert [check.to_dict()["limits"]["coarse_ratio"][0] for check in (sample, estimate)] == [0.92, 0.0]


def test_a_foreign_pattern_is_noticed():
    y = torch.arange(96)[:, None]
    stripes = own_image() + SCALE * 0.9 * torch.sin(2 * torch.pi * y / 12)
    assert check_distribution(gaussian_model(), stripes).verdict == OUT


def test_noise_and_patterns_are_noticed_by_the_bundled_model():
    example = load_example("brain2d")
    truth, geometry = example.truth, example.acquisition.geometry
    model = ScoreModel.load("brain-fdg").on(geometry, intensity_scale(truth, geometry))
    check = check_distribution(model, truth, samples=truth[None], objective=example.acquisition.objective())
    assert check.verdict == IN
    assert [level.companion for level in check.denoising] == [level.sigma >= COARSE for level in check.denoising]
    assert all(0.9 < level.own_ratio < 1.1 and level.training for level in check.denoising)
    assert abs(check.likelihood.deviations) < 4
    assert check.network_evaluations == 2 * sum(PROBES.values())
    assert check.forward_projections == 2
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    assert check_distribution(model, truth * (1 + 0.5 * noise).clamp(min=0)).verdict == OUT


def test_too_close_a_fit_is_no_fault_of_the_model():
    objective = load_example("brain2d").acquisition.objective(9)
    x = OSEM(objective, num_iterations=6).process().get_output()
    overfitted = check_distribution(gaussian_model(objective.geometry), x, objective=objective)
    in_distribution = check_distribution(gaussian_model(), own_image())
    assert overfitted.likelihood.deviations > LIKELIHOOD_LIMIT
    judged = replace(in_distribution, likelihood=overfitted.likelihood)
    assert judged.verdict == "unusual"
    assert "adapt" not in judged.recommendation
    assert "check scatter" in judged.message


def test_engines_that_cannot_tell_the_expected_likelihood_are_served():
    class Silent:
        device, counter = torch.device("cpu"), type("Counter", (), {"forward": 0.0})

        def expected_log_likelihood(self, x):
            raise NotImplementedError("list mode")

    assert check_distribution(gaussian_model(), own_image(), objective=Silent()).likelihood is None


def test_deviations_are_above_what_is_expected():
    assert LikelihoodCheck(-90.0, -100.0, 5.0).deviations == 2.0


def test_every_run_with_a_model_says_what_it_found(small_acquisition, tmp_path):
    from sirf_diffusion.files.outputs import OutputFolder

    result = reconstruct(small_acquisition, "map-score", model="brain-fdg", settings={"num_iterations": 2})
    found = result.record["distribution"]
    assert found["verdict"] in found["message"]
    assert found["smooth"]
    assert [level["sigma"] for level in found["denoising"]] == list(PROBES)
    assert all(level["training_ratio"] > 0.5 for level in found["denoising"] if level["training"])
    assert found["cost"]["network_evaluations"] == 2 * sum(PROBES.values())
    result.save(OutputFolder(tmp_path / "out", {}))
    assert json.loads((tmp_path / "out" / "record.json").read_text())["distribution"] == found

    assert reconstruct(small_acquisition, "osem").record["distribution"] is None


@pytest.mark.parametrize(("options", "smooth"), [({"num_steps": 3}, True), ({"num_steps": 20}, False), (None, True)])
def test_samples_of_few_steps_are_smooth_and_quick_ones_not_the_models_fault(
    small_acquisition, small_model, monkeypatch, options, smooth
):
    told = {}
    monkeypatch.setattr(
        "sirf_diffusion.study.reconstruction.check_distribution",
        lambda *a, **given: told.update(given) or check_distribution(*a, **given),
    )
    of = {"model": str(small_model), "num_samples": 1, "settings": options, "quick": options is None}
    assert reconstruct(small_acquisition, "dds", **of).record["distribution"]["smooth"] is smooth
    assert ("quick settings" if options is None else "--adapt ddip") in told["remedy"]
