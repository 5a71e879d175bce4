"""Metrics: agreement with an independent implementation, exact identities, refusals."""

import pytest
import torch

from sirf_diffusion.study import bias_and_sd, contrast_recovery, contrast_to_noise, image_quality, nrmse, psnr, ssim


@pytest.fixture
def pair(generator):
    reference = torch.rand((2, 40, 31), generator=generator) * 7
    return reference + torch.randn(reference.shape, generator=generator), reference


def test_ssim_and_psnr_agree_with_scikit_image(pair):
    metrics = pytest.importorskip("skimage.metrics")
    image, reference = pair
    peak = float(reference.max())
    options = {"data_range": peak, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    planes = [
        metrics.structural_similarity(r.double().numpy(), x.double().numpy(), **options)
        for x, r in zip(image, reference, strict=True)
    ]
    assert ssim(image, reference) == pytest.approx(sum(planes) / 2, abs=1e-6)
    expected = metrics.peak_signal_noise_ratio(reference.double().numpy(), image.double().numpy(), data_range=peak)
    assert psnr(image, reference) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_metrics_do_not_depend_on_the_unit_of_intensity(pair, factor):
    image, reference = pair
    expected, found = image_quality(image, reference), image_quality(factor * image, factor * reference)
    assert found.nrmse == pytest.approx(expected.nrmse, rel=1e-5)
    assert found.psnr == pytest.approx(expected.psnr, rel=1e-5)
    assert found.ssim == pytest.approx(expected.ssim, rel=1e-5)


def test_error_splits_into_bias_and_spread(generator):
    truth = torch.rand((1, 12, 12), generator=generator) + 1
    images = truth + 0.3 + 0.2 * torch.randn((8, *truth.shape), generator=generator)
    ensemble = bias_and_sd(images, truth)
    mean_square = torch.tensor([nrmse(x, truth) ** 2 for x in images]).mean()
    assert ensemble.nrmse**2 == pytest.approx(float(mean_square), rel=1e-5)
    assert ensemble.bias == pytest.approx(0.3 * 12 / float(truth.norm()), rel=0.1)
    assert ensemble.sd == pytest.approx(0.2 * 12 / float(truth.norm()), rel=0.15)


def test_contrast_recovery_is_one_for_the_truth_and_falls_with_blur():
    truth = torch.ones(1, 9, 9)
    lesion = torch.zeros_like(truth, dtype=torch.bool)
    lesion[0, 3:6, 3:6] = True
    truth[lesion] = 3.0
    assert contrast_recovery(truth, truth, lesion, ~lesion) == pytest.approx(1)
    blurred = torch.nn.functional.avg_pool2d(truth, 3, stride=1, padding=1, count_include_pad=False)
    assert 0 < contrast_recovery(blurred[None], truth, lesion, ~lesion) < 0.8
    with pytest.raises(ValueError, match="no contrast"):
        contrast_recovery(truth, torch.ones_like(truth), lesion, ~lesion)


def test_contrast_to_noise_uses_the_spread_between_realisations(generator):
    lesion = torch.zeros(1, 30, 30, dtype=torch.bool)
    lesion[0, :5, :5] = True
    base = torch.ones(1, 30, 30) + 2.0 * lesion
    images = base + 0.5 * torch.randn((40, 1, 30, 30), generator=generator)
    assert contrast_to_noise(images, lesion, ~lesion) == pytest.approx(2.0 / 0.5, rel=0.05)
    with pytest.raises(ValueError, match="two realisations"):
        contrast_to_noise(images[0], lesion, ~lesion)


@pytest.mark.parametrize("metric", [nrmse, psnr, ssim])
def test_metrics_refuse_what_has_no_meaning(pair, metric):
    image, reference = pair
    with pytest.raises(ValueError, match="must agree"):
        metric(image[:1], reference)
    broken = image.clone()
    broken[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        metric(broken, reference)
    with pytest.raises(ValueError, match=r"zero|positive"):
        metric(image, torch.zeros_like(reference))
