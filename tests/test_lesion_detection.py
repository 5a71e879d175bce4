"""The observers of the lesion benchmark on patches whose detectability is known."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from benchmarks import lesions


def patches(number, contrast, noise, seed=0):
    """Patches with a signal of 7 mm, without, the signal, and the subject of each."""
    rng = np.random.default_rng(seed)
    axis = 2.0 * np.arange(-7, 8)
    signal = contrast * np.exp(-4 * np.log(2) * (axis[:, None] ** 2 + axis**2) / 7.0**2)
    present, absent = (1 + noise * rng.standard_normal((number, 15, 15)) for _ in range(2))
    return present + signal, absent, signal, np.arange(number) // 10


def test_area_under_the_curve_is_that_of_two_normal_distributions():
    rng = np.random.default_rng(1)
    area, low, high = lesions.auc(rng.normal(1, 1, 1000), rng.normal(0, 1, 1000), rng)
    assert area == pytest.approx(norm.cdf(1 / math.sqrt(2)), abs=0.03)
    assert low < norm.cdf(1 / math.sqrt(2)) < high
    assert high - low < 0.07
    assert lesions.auc(np.ones(5), np.ones(5), rng)[0] == 0.5


@pytest.mark.parametrize("contrast", [0.0, 0.05, 0.1])
def test_observers_reach_what_white_noise_allows(contrast):
    present, absent, signal, subjects = patches(600, contrast, 0.1)
    # The template is without its mean, which an uneven background would hide.
    visible = np.linalg.norm(signal - signal.mean()) / 0.1
    ideal = norm.cdf(visible / math.sqrt(2))
    found = lesions.scores(present, absent, signal if contrast else patches(1, 1.0, 0.1)[2], subjects)
    areas = {name: lesions.auc(*pair, np.random.default_rng(2))[0] for name, pair in found.items()}
    assert areas["NPW"] == pytest.approx(ideal, abs=0.04)
    assert ideal - 0.08 <= areas["CHO"] <= ideal + 0.04


def test_an_observer_is_not_tested_on_what_it_was_trained_on():
    areas = []
    for seed in range(10):
        found = lesions.scores(*patches(40, 0.0, 0.1, seed=seed))
        areas.append(lesions.auc(*found["CHO"], np.random.default_rng(0))[0])
    assert np.mean(areas) == pytest.approx(0.5, abs=0.05)


def test_pairs_differ_in_the_lesions_alone():
    pytest.importorskip("nilearn")
    present, absent, places = lesions.scan_pair(3, 2e5)
    assert places.shape == (len(lesions.KINDS), lesions.OF_A_KIND, 2)
    changed = ((present.truth - absent.truth) / absent.truth.clamp(min=1e-3))[0]
    for (factor, _), of_a_kind in zip(lesions.KINDS, places, strict=True):
        for row, column in of_a_kind:
            assert (float(changed[row, column]) > 0.2) if factor == "hot" else (float(changed[row, column]) < -0.2)
            changed[row - 5 : row + 6, column - 5 : column + 6] = 0
    assert float(changed.abs().max()) < 0.02
