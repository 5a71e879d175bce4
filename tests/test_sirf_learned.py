"""The priors and the processor that this package adds to SIRF's names, in the embedded engine."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from small_scan import script_objects, write_small_model, write_small_scan

import sirf_diffusion
from sirf_diffusion import priors
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models import ScoreModel, VPSchedule
from sirf_diffusion.models.denoiser import estimate_noise_level

pet = sirf_diffusion.get_engine("embedded")
SIGMA, SCALE = 0.3, 20.0


class Shrink:
    """Predicts part of what it sees: a denoiser whose effect on an image is easily had."""

    def __call__(self, images, times, class_labels):
        return 0.9 * images


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    return write_small_scan(tmp_path_factory.mktemp("scan"))


@pytest.fixture
def image(scan):
    return pet.ImageData(scan.truth_hv) + 1.0


@pytest.fixture
def objective(scan):
    return script_objects(pet, scan)[3]


def model():
    return ScoreModel(Shrink(), VPSchedule(), "x0", (4.0, 4.0, 4.0), multiple=4)


class Ridge:
    """``0.5 sum x^2``, the way a user would write it."""

    def set_up(self, geometry):
        self.geometry = geometry

    def value(self, x):
        return 0.5 * float(np.sum(x.astype(np.float64) ** 2))

    def gradient(self, x, out):
        out[...] = x

    def curvature(self, x, out):
        out[...] = 1

    def hessian_times(self, x, v, out):
        out[...] = v


def made(name, image):
    return {
        "score": lambda: pet.ScorePrior(model(), SIGMA, intensity_scale=SCALE),
        "anchor": lambda: pet.AnchorPrior(image.get_uniform_copy(3), image.get_uniform_copy(0.5)),
        "python": lambda: pet.PythonPrior(Ridge()),
        "bowsher": lambda: pet.BowsherPrior(image * image),
    }[name]()


def core(name, image, factor):
    geometry, x = image.geometry, image.tensor
    return {
        "score": lambda: priors.ScorePenalty(model().on(geometry, SCALE), SIGMA, factor),
        "anchor": lambda: priors.AnchorPenalty(torch.full_like(x, 3), factor, torch.full_like(x, 0.5)),
        "python": lambda: priors.AnchorPenalty(torch.zeros_like(x), factor),
        "bowsher": lambda: priors.BowsherPenalty(geometry, factor, x * x),
    }[name]()


ALL = pytest.mark.parametrize("name", ["score", "anchor", "python", "bowsher"])


@ALL
def test_they_are_sirf_priors_around_the_tensor_priors(name, image):
    prior = made(name, image)
    assert isinstance(prior, pet.Prior)
    assert prior.get_penalisation_factor() == (0.2 if name == "score" else 1)
    prior.set_up(image)
    x, direction = image * 1.5, image + 2.0
    for factor in (1.0, 4.0):  # may change after set_up
        prior.set_penalisation_factor(factor)
        expected = core(name, image, factor)
        assert prior.value(x) == prior(x) == pytest.approx(float(expected.value(x.tensor)), rel=1e-5)
        np.testing.assert_allclose(prior.gradient(x).as_array(), expected.gradient(x.tensor), rtol=1e-5, atol=1e-6)
        out = x.clone()
        assert prior.gradient(out, out=out) is out  # in place, on its own input
        np.testing.assert_array_equal(out.as_array(), prior.gradient(x).as_array())
        np.testing.assert_allclose(
            prior.multiply_with_Hessian(x, direction).as_array(),
            expected.hessian_times(x.tensor, direction.tensor),
            rtol=1e-4,
            atol=1e-4,
        )


@ALL
def test_osmaposl_uses_them(name, image, objective):
    results = []
    for prior in (made(name, image), core(name, image, 1.0), None):
        if prior is not None:
            prior.penalisation_factor = 0.2
            if isinstance(prior, pet.Prior):
                prior.set_penalisation_factor(0.2)
            objective.set_prior(prior)
        else:
            objective._prior = None
        reconstructor = pet.OSMAPOSLReconstructor()
        reconstructor.set_objective_function(objective)
        reconstructor.set_num_subsets(4)
        reconstructor.set_num_subiterations(8)
        reconstructor.set_up(image)
        estimate = image.clone()
        reconstructor.reconstruct(estimate)
        results.append(estimate.as_array())
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-5)
    assert np.abs(results[0] - results[2]).max() > 1e-3 * results[2].max()


def test_score_prior_takes_its_scale_from_set_up_or_from_the_first_image(image, caplog):
    prior = pet.ScorePrior(model(), SIGMA)
    prior.set_up(image)
    scale = prior.get_intensity_scale()
    assert scale == pytest.approx(sirf_diffusion.models.intensity_scale(image.tensor, image.geometry))
    late = pet.ScorePrior(model(), SIGMA)
    late.set_up(image.get_uniform_copy(1))
    with caplog.at_level(logging.WARNING, "sirf_diffusion"):
        assert late.gradient(image.get_uniform_copy(1)).norm() == 0
    assert "uniform" in caplog.text
    np.testing.assert_allclose(late.gradient(image).as_array(), prior.gradient(image).as_array(), rtol=1e-6)
    prior.set_noise_level(0.6)
    assert prior.get_noise_level() == 0.6
    assert prior.gradient(image).norm() < late.gradient(image).norm()


@pytest.mark.parametrize(("level", "says"), [(priors.NOISE_LEVEL, 0), (0.2, 1)])
def test_a_prior_too_strong_for_one_step_late_is_said_once(level, says, image, objective, caplog):
    prior = pet.ScorePrior(model(), noise_level=level)
    prior.set_penalisation_factor(priors.PENALISATION_FACTOR)
    objective.set_prior(prior)
    reconstructor = pet.OSMAPOSLReconstructor()
    reconstructor.set_objective_function(objective)
    reconstructor.set_num_subiterations(2)
    reconstructor.set_up(image)
    reconstructor.reconstruct(image.clone())
    assert sum("use OSSPS or MAPEM" in message for message in caplog.messages) == says


def test_python_priors_see_read_only_arrays_and_must_fill_their_output(image):
    class Wrong(Ridge):
        def gradient(self, x, out):
            out[..., 1:] = x[..., 1:]

    class Greedy(Ridge):
        def value(self, x):
            x[...] = 0
            return 0.0

    for obj, method, problem, message in (
        (Wrong(), "gradient", FloatingPointError, "overwrite"),
        (Greedy(), "value", ValueError, "read-only"),
    ):
        prior = pet.PythonPrior(obj)
        prior.set_up(image)
        with pytest.raises(problem, match=message):
            getattr(prior, method)(image)
    with pytest.raises(TypeError, match="gradient"):
        pet.PythonPrior(object())
    with pytest.raises(pet.error, match="set_kappa"):
        pet.PythonPrior(Ridge()).set_kappa(image)


def test_processor_denoises_in_place_and_as_a_copy(image):
    processor = pet.ScoreImageProcessor(model(), 0.3, intensity_scale=SCALE)
    expected = model().on(image.geometry, SCALE).denoise_at(image.tensor, 0.3)
    copy = processor.process(image)
    np.testing.assert_allclose(copy.as_array(), expected, rtol=1e-5)
    processor.apply(image)
    np.testing.assert_allclose(image.as_array(), expected, rtol=1e-5)
    assert isinstance(processor, pet.ImageDataProcessor)


def test_processor_estimates_the_noise_level(image):
    processor = pet.ScoreImageProcessor(model(), intensity_scale=SCALE)
    processor.process(image)
    bound = model().on(image.geometry, SCALE)
    assert processor.get_noise_level() == estimate_noise_level(bound, image.tensor)
    processor.set_noise_level(0.25)
    assert processor.get_noise_level() == 0.25


@pytest.mark.parametrize("sigma", [0.1, 0.3, 1.0])
def test_noise_level_is_found(sigma):
    """The ideal denoiser of a constant image finds the noise level; more noise is more."""

    class Constant:
        def __call__(self, images, times, class_labels):
            return 0 * images + 1

    geometry = ImageGeometry((1, 64, 64), (4.0, 4.0, 4.0))
    bound = ScoreModel(Constant(), VPSchedule(), "x0", (4.0, 4.0, 4.0), multiple=4).on(geometry, SCALE)
    noise = torch.randn(geometry.shape, generator=torch.Generator().manual_seed(0))
    assert estimate_noise_level(bound, SCALE * (1 + sigma * noise)) == pytest.approx(sigma, rel=0.07)
    with pytest.raises(ValueError, match="activity"):
        estimate_noise_level(bound, torch.zeros(geometry.shape))


def test_a_model_file_is_loaded(tmp_path, image):
    path = write_small_model(tmp_path / "model.safetensors")
    prior = pet.ScorePrior(str(path), SIGMA, device="cpu")
    prior.set_up(image)
    assert np.isfinite(prior.value(image))
    assert pet.ScoreImageProcessor(path, 0.2).process(image).shape == image.shape


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda image: pet.AnchorPrior().set_up(image), "set_anchor_image"),
        (lambda image: pet.AnchorPrior(image).set_kappa(image), "set_weight"),
        (lambda image: pet.BowsherPrior().set_up(image), "set_anatomical_image"),
        (lambda image: pet.ScorePrior(model(), -1.0), "noise level"),
        (lambda image: pet.ScoreImageProcessor(model(), -1.0), "noise level"),
        (lambda image: pet.ScorePrior(model()).gradient(image), "set_up"),
    ],
)
def test_wrong_use_is_explained(call, message, image):
    with pytest.raises((pet.error, ValueError), match=message):
        call(image)
