"""The domain-shift suite: reproducible, held-out subjects kept apart, and each case differs in what it says alone."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter

from benchmarks.bench.acquisition import mmr_slice, simulate_acquisition
from benchmarks.bench.domain_shift import CASES, REFERENCE_PSF, simulate_case, simulate_subject, write_case
from sirf_diffusion.data import load_example
from sirf_diffusion.simulation import FIRST_HELD_OUT_SUBJECT
from sirf_diffusion.simulation.perturbations import SPIKE_SHARE, STRIPE_PERIOD, with_spikes, with_stripes
from sirf_diffusion.training.data.phantom_data import PhantomOptions, simulate_volumes
from sirf_diffusion.training.recipes import RECIPES

pytest.importorskip("nilearn")

SUBJECT = 9000  # that of test_bench.py, which a process then simulates once


def equal(case, other, *names):
    return all(torch.equal(getattr(case, name), getattr(other, name)) for name in names)


def test_a_case_is_a_function_of_its_arguments():
    case = simulate_case("amyloid-negative", SUBJECT)
    simulate_subject.cache_clear()
    again = simulate_case("amyloid-negative", SUBJECT)
    assert equal(case, again, "truth", "attenuation", "mr", "labels", "lesions")
    assert equal(case.acquisition, again.acquisition, "prompts", "multiplicative", "additive")

    repeated = simulate_case("amyloid-negative", SUBJECT, realisation=1)
    assert equal(case, repeated, "truth", "attenuation")
    assert equal(case.acquisition, repeated.acquisition, "multiplicative", "additive")
    difference = case.acquisition.prompts - repeated.acquisition.prompts
    assert float(difference.var()) == pytest.approx(2 * float(case.acquisition.prompts.mean()), rel=0.1)


@pytest.mark.parametrize("prompts", [2e5, 2e6])
def test_the_counts_are_those_asked_for_and_30_percent_are_background(prompts):
    data = simulate_case("fdg", SUBJECT, prompts=prompts).acquisition
    assert float(data.prompts.double().sum()) == pytest.approx(prompts, abs=5 * math.sqrt(prompts))
    assert float((data.multiplicative.double() * data.additive).sum()) == pytest.approx(0.3 * prompts, rel=0.01)


def test_the_truth_is_as_likely_as_it_should_be():
    case = simulate_case("large-lesion", SUBJECT)
    objective = case.acquisition.objective()
    expected, deviation = objective.expected_log_likelihood(case.truth)
    assert abs(float(objective.value(case.truth)) - expected) < 4 * deviation


def test_training_subjects_and_unknown_cases_are_refused():
    with pytest.raises(ValueError, match="subject 12 is one for training"):
        simulate_case("fdg", 12)
    with pytest.raises(ValueError, match=r"unknown case 'fgd'; choose from fdg, amyloid-positive"):
        simulate_case("fgd", SUBJECT)
    assert RECIPES["fdg-start"].phantoms.subjects <= 800 < FIRST_HELD_OUT_SUBJECT


@pytest.mark.parametrize("name", ["low-resolution", "high-resolution"])
def test_resolution_changes_the_blur_and_nothing_else(name):
    reference, shifted = simulate_subject("fdg", SUBJECT), simulate_subject(name, SUBJECT)
    sharp, blurred = sorted((reference, shifted), key=lambda s: float(s.activity.std()), reverse=True)
    assert (shifted is blurred) == (CASES[name].psf_fwhm > REFERENCE_PSF)
    width = math.sqrt(abs(CASES[name].psf_fwhm ** 2 - REFERENCE_PSF**2)) / 2.3548 / 2.0
    more = gaussian_filter(sharp.activity, width, mode="constant")
    inner = (slice(12, -12),) * 3
    assert np.abs(more - blurred.activity)[inner].max() < 0.02 * blurred.activity.max()
    assert all(np.array_equal(getattr(reference, n), getattr(shifted, n)) for n in ("mu", "mr", "labels", "lesions"))


@pytest.mark.parametrize("name", ["amyloid-positive", "amyloid-negative", "dpa714"])
def test_tracers_change_the_activity_and_nothing_else(name):
    reference, shifted = simulate_subject("fdg", SUBJECT), simulate_subject(name, SUBJECT)
    assert all(np.array_equal(getattr(reference, n), getattr(shifted, n)) for n in ("mu", "mr", "labels", "lesions"))
    grey, white = (float(np.median(shifted.activity[shifted.labels == k])) for k in (1, 2))
    if name == "amyloid-negative":
        assert white > 1.1 * grey
    else:
        assert 0.5 * grey < white < 1.3 * grey


def test_the_large_lesion_is_where_it_is_and_nowhere_else():
    reference, shifted = simulate_subject("fdg", SUBJECT), simulate_subject("large-lesion", SUBJECT)
    new = (shifted.lesions > 0) & (shifted.lesions != reference.lesions)
    diameter = 2 * (0.75 * new.sum() * 8.0 / math.pi) ** (1 / 3)
    assert 38 < diameter < 62
    assert new[shifted.plane].any()
    far = distance_transform_edt(~new, sampling=2.0) > 30
    assert np.allclose(shifted.activity[far], reference.activity[far], atol=1e-4)
    assert np.allclose(shifted.mr[far], reference.mr[far], atol=1e-4)
    assert np.abs(shifted.mr - reference.mr)[new].mean() > 0.1
    assert all(np.array_equal(getattr(reference, n), getattr(shifted, n)) for n in ("mu", "labels"))


def test_atrophy_turns_brain_into_fluid_and_keeps_the_head():
    reference, shifted = simulate_subject("fdg", SUBJECT), simulate_subject("atrophy", SUBJECT)
    before, after = (np.bincount(s.labels.ravel(), minlength=4) for s in (reference, shifted))
    assert 0.7 < (after[1] + after[2]) / (before[1] + before[2]) < 0.97
    assert after[3] > before[3]
    assert np.allclose(before[4:], after[4:], rtol=0.003, atol=3)  # a voxel of many tissues may change its largest
    assert np.allclose(reference.mu, shifted.mu, atol=1e-6)
    assert np.array_equal(reference.lesions, shifted.lesions)
    far = distance_transform_edt(reference.labels != 1, sampling=2.0) > 14
    far &= distance_transform_edt(reference.labels != 2, sampling=2.0) > 14
    assert np.allclose(shifted.activity[far], reference.activity[far], atol=1e-3)


@pytest.mark.parametrize("name", [n for n, shift in CASES.items() if shift.trained_on])
def test_where_the_model_is_out_of_place_the_data_are_the_reference(name):
    case, reference = simulate_case(name, SUBJECT), simulate_case("fdg", SUBJECT)
    assert equal(case, reference, "truth", "attenuation", "mr")
    assert equal(case.acquisition, reference.acquisition, "prompts", "multiplicative", "additive")


def test_stripes_are_the_same_in_every_image():
    rng = np.random.default_rng(0)
    images = rng.uniform(1, 2, (2, 3, 40, 24)).astype(np.float32)
    factors = [with_stripes(image, 2.0, seed) / image for seed, image in enumerate(images)]
    assert np.allclose(factors[0], factors[1], atol=1e-6)
    rows = factors[0][0, :, 0]
    period = int(STRIPE_PERIOD / 2.0)
    assert np.allclose(rows[period:], rows[:-period], atol=1e-6)
    assert rows.max() - rows.min() > 0.5


def test_spikes_are_few_high_and_elsewhere_in_every_image():
    image = np.zeros((8, 64, 64), np.float32)
    image[:, 8:56, 8:56] = 1.0
    one, other = (with_spikes(image, 2.0, seed) - image for seed in (1, 2))
    assert min(one.min(), other.min()) >= 0
    assert np.array_equal(one, with_spikes(image, 2.0, 1) - image)
    high = [(added > 0.7) for added in (one, other)]
    for places in high:
        assert 0.3 * SPIKE_SHARE < places[image > 0].mean() < 3 * SPIKE_SHARE
    assert (high[0] & high[1]).sum() < 0.3 * high[0].sum()


def test_training_volumes_can_be_perturbed():
    options = PhantomOptions(body="thorax", voxel_size=10.0, subjects=1, first=FIRST_HELD_OUT_SUBJECT)
    (plain,) = simulate_volumes(FIRST_HELD_OUT_SUBJECT, options)
    (striped,) = simulate_volumes(FIRST_HELD_OUT_SUBJECT, replace(options, perturb="stripes"))
    images = [volume.arrays["emission"] * volume.intensity_scale for volume in (plain, striped)]
    expected = with_stripes(images[0], 10.0)
    assert np.abs(images[1] - expected).max() < 0.01 * expected.max()
    with pytest.raises(ValueError, match="perturbation must be one of stripes, spikes, found 'dots'"):
        replace(options, perturb="dots")


def test_a_written_case_is_read_back(tmp_path):
    case = simulate_case("fdg", SUBJECT)
    write_case(case, tmp_path / "folder")
    example = load_example(tmp_path / "folder")
    assert equal(case.acquisition, example.acquisition, "prompts", "multiplicative", "additive")
    assert equal(case, example, "truth", "attenuation", "mr")
    assert example.acquisition.geometry == case.geometry


@pytest.mark.parametrize(("activity", "change", "message"), [
    (1.0, {"prompts": 0.0}, "prompts must be a positive number"),
    (1.0, {"background": 1.0}, "background must be a share"),
    (0.0, {}, "no activity"),
])  # fmt: skip
def test_counts_that_make_no_sense_are_refused(activity, change, message):
    geometry, projdata = mmr_slice()
    image = torch.full(geometry.shape, activity)
    with pytest.raises(ValueError, match=message):
        simulate_acquisition(image, 0 * image, geometry, projdata, **change)


def test_activity_that_the_scanner_cannot_see_is_told(caplog):
    geometry, projdata = mmr_slice()
    disc = torch.hypot(*torch.meshgrid(*2 * [torch.arange(128.0) - 63.5], indexing="ij"))[None] < 60
    for image, told in ((disc.float(), False), (torch.ones(geometry.shape), True)):
        caplog.clear()
        simulate_acquisition(image, 0 * image, geometry, projdata)
        assert ("outside the field of view" in caplog.text) is told


def test_heads_lie_in_the_field_of_view_of_the_benchmarks_volume(caplog):
    from benchmarks.bench.cases import CaseSpec, make_case

    case = make_case(CaseSpec("volume", SUBJECT, 2e5))
    assert case.truth.shape[0] == 23
    assert "outside the field of view" not in caplog.text
