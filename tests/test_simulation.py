"""Simulated heads: reproducible, plausible volume fractions, contrasts as asked; and the
bundled acquisitions made of them."""

from functools import lru_cache

import numpy as np
import pytest
import torch

from sirf_diffusion.data import list_examples, load_example
from sirf_diffusion.simulation import TracerContrast, simulate_activity, simulate_anatomy

pytest.importorskip("nilearn")

SHAPE, VOXEL = (56, 64, 56), 4.0


@lru_cache
def anatomy(seed: int = 9500):
    return simulate_anatomy(seed, SHAPE, VOXEL)


def test_same_seed_same_subject_other_seed_other_subject():
    again, other = simulate_anatomy(9500, SHAPE, VOXEL), anatomy(9501)
    assert np.array_equal(again.t1, anatomy().t1)
    assert all(np.array_equal(again.tissues[name], values) for name, values in anatomy().tissues.items())
    assert np.abs(other.brain - anatomy().brain).max() > 0.9


def test_tissues_are_fractions_of_a_head():
    tissues = anatomy().tissues
    inside = sum(tissues.values())
    assert min(values.min() for values in tissues.values()) >= 0
    assert inside.max() <= 1 + 1e-5
    litres = {name: float(values.sum()) * VOXEL**3 / 1e6 for name, values in tissues.items()}
    assert 0.8 < litres["grey"] + litres["white"] < 2.2
    assert all(values > 0 for values in litres.values())
    mu = anatomy().mu
    assert mu.max() < 0.15
    assert mu[inside > 0.99].min() > 0.085
    assert float(mu[0, 0, 0]) < 1e-3


def test_axes_are_as_documented():
    """The neck is at low z, the face at low y, and the eyes at mid-height in front."""
    tissues, (nz, ny, _) = anatomy().tissues, SHAPE
    assert tissues["muscle"][: nz // 4].sum() > 10 * tissues["muscle"][-nz // 4 :].sum()
    eyes = np.argwhere(tissues["eyes"] > 0.5)
    assert len(eyes) > 0
    assert eyes[:, 1].mean() < 0.4 * ny
    cerebellum = np.argwhere(anatomy().regions["cerebellum"] * anatomy().brain > 0.5)
    assert cerebellum[:, 1].mean() > 0.55 * ny


def test_contrast_is_the_one_asked_for():
    contrast = TracerContrast(white=(0.25, 0.25), reversed_share=0.0, max_lesions=0)
    activity = simulate_activity(anatomy(), 3, contrast, psf_fwhm=1.0)
    tissues = anatomy().tissues
    levels = {name: float(np.median(activity[tissues[name] > 0.9])) for name in ("grey", "white")}
    assert levels["white"] / levels["grey"] == pytest.approx(0.25, rel=0.25)
    upside_down = simulate_activity(anatomy(), 3, TracerContrast(reversed_share=1.0, max_lesions=0), psf_fwhm=1.0)
    assert np.median(upside_down[tissues["white"] > 0.9]) > 0.7 * np.median(upside_down[tissues["grey"] > 0.9])
    assert min(activity.min(), upside_down.min()) >= 0
    assert np.isfinite(activity).all()


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="seed"):
        simulate_anatomy(-1)
    with pytest.raises(ValueError, match="voxel_size"):
        simulate_anatomy(0, voxel_size=10.0)


@pytest.mark.parametrize("name", ["brain2d", "brain3d"])
def test_bundled_counts_fit_the_bundled_truth(name):
    """By another projector than the one that made the counts: no shift, flip or scale is hidden."""
    assert name in list_examples()
    example = load_example(name)
    objective = example.acquisition.objective()
    expected, deviation = objective.expected_log_likelihood(example.truth)
    found = float(objective.value(example.truth))
    assert abs(found - expected) < 4 * deviation
    for axis in (-1, -2) if name == "brain2d" else (-1, -2, -3):
        assert float(objective.value(example.truth.flip(axis).contiguous())) < expected - 10 * deviation
    assert float(objective.value(1.25 * example.truth)) < expected - 4 * deviation
    assert torch.isfinite(example.attenuation).all()
