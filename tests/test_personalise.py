"""A model for one patient: registrations that are good are used, others never; pseudo-PETs; resuming; whose model."""

import functools
from dataclasses import replace

import numpy as np
import pytest

from sirf_diffusion.patient.deformable import Quality, dice, register_deformable

pytest.importorskip("nilearn")
pytest.importorskip("SimpleITK")

SHAPE, VOXEL = (56, 64, 56), 4.0


@functools.lru_cache
def head(seed: int):
    """MR and labels (grey matter 1) ``[z, y, x]`` of a subject: every one is the same template, deformed anew."""
    from sirf_diffusion.simulation import simulate_anatomy

    anatomy = simulate_anatomy(seed, SHAPE, VOXEL)
    return anatomy.t1[::-1].copy(), anatomy.labels[::-1].copy()


@functools.lru_cache
def registered(fixed: int, moving: int):
    return register_deformable(head(fixed)[0], head(moving)[0], (VOXEL,) * 3)


def test_grey_matter_of_other_subjects_comes_onto_the_patients():
    found = {member: registered(9200, member) for member in (9201, 9202, 9203)}
    after = [dice(d.warp(head(m)[1], labels=True) == 1, head(9200)[1] == 1) for m, d in found.items()]
    assert np.median(after) >= 0.75
    for one in found.values():
        assert one.quality.reasons() == []
        assert one.jacobian.min() > 0


GOOD = Quality(0.1, 3.0, 0.5, 0.8, 4.0, 0.95, 0.8, 1.5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"jacobian": 0.0}, "folds"),
        ({"jacobian": float("nan")}, "folds"),
        ({"information": 0.5}, "mutual information"),
        ({"inverse_mm": 9.0}, "inverse"),
        ({"overlap": 0.5}, "overlap"),
        ({"similarity": 0.5}, "correlate"),
    ],
)
def test_each_gate_closes(change, reason):
    assert GOOD.reasons() == []
    reasons = replace(GOOD, **change).reasons()
    assert len(reasons) == 1
    assert reason in reasons[0]


@pytest.mark.parametrize("wrong", ["noise", "upside down", "inverted contrast"])
def test_what_is_no_such_head_is_left_out(wrong):
    mr = head(9201)[0]
    image = {
        "noise": lambda: np.random.default_rng(0).random(SHAPE).astype(np.float32),
        "upside down": lambda: mr[::-1].copy(),
        "inverted contrast": lambda: np.where(mr > 0.1, 1.6 - mr, 0).clip(0),
    }[wrong]()
    assert register_deformable(head(9200)[0], image, (VOXEL,) * 3).quality.reasons()


def test_the_same_registration_on_any_number_of_threads():
    import SimpleITK as sitk

    pair, warped = [head(seed)[0][8:36, 16:48, 14:42] for seed in (9200, 9201)], []
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    try:
        for threads in (1, 3):
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
            warped.append(register_deformable(*pair, (VOXEL,) * 3).warp(pair[1]))
            assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == threads
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    np.testing.assert_array_equal(*warped)
