"""Rigid registration of a simulated subject's MR to its PET: it finds known motions, and says when it found nothing."""

import functools
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from sirf_diffusion.geometry.gaussian import gaussian_smooth
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.patient import AnatomicalImage, SourceImage, load_anatomical, register
from sirf_diffusion.patient.registration import rigid_matrix

pytest.importorskip("nilearn")
sitk = pytest.importorskip("SimpleITK")

SEED, VOXEL = 9004, 2.8
GEOMETRY = ImageGeometry((56, 64, 56), (VOXEL,) * 3, (-28 * VOXEL, 0.0, 0.0))
CENTRE = (0.0, 0.0, 0.0)


@functools.lru_cache
def subject():
    """Noisy emission, attenuation and MR ``[z, y, x]`` on one grid, of a small head: it takes less time."""
    from sirf_diffusion.simulation.head import simulate_anatomy
    from sirf_diffusion.simulation.tracer import draw_activity
    from sirf_diffusion.simulation.tracers import TRACERS

    anatomy = simulate_anatomy(SEED, GEOMETRY.shape, 4.0)
    activity, _ = draw_activity(anatomy, 0, TRACERS["fdg"].contrast(SEED, 0), 5.0)
    # the simulated head has z to the top, STIR's to the feet
    activity, mu, mr = (
        torch.from_numpy(np.ascontiguousarray(a[::-1], np.float32)) for a in (activity, anatomy.mu, anatomy.t1)
    )
    noise = torch.randn(activity.shape, generator=torch.Generator().manual_seed(SEED))
    emission = gaussian_smooth((activity + 2 * activity.mean() * noise).clamp(min=0), GEOMETRY, 6.0)
    return emission, mu, mr


def source(values):
    return AnatomicalImage.of(values, GEOMETRY).image


def moved(image: SourceImage, angles, shift) -> tuple[SourceImage, np.ndarray]:
    motion = rigid_matrix(angles, shift, CENTRE)
    return replace(image, affine=motion @ image.affine), motion


def errors(found, motion):
    """Angle in degrees and distance in mm, at the centre of the head, that are left."""
    left = found.matrix @ motion
    angle = np.degrees(np.arccos(np.clip((np.trace(left[:3, :3]) - 1) / 2, -1, 1)))
    centre = np.asarray(found.centre)
    return angle, np.linalg.norm(left[:3, :3] @ centre + left[:3, 3] - centre)


@pytest.mark.parametrize(
    ("target", "angles", "shift", "gain"),
    [
        (0, (-10.0, 6.0, -7.0), (320.0, -150.0, 500.0), None),  # another scanner's coordinates: no overlap at all
        (1, (-6.0, 9.0, 4.0), (-10.0, 14.0, 8.0), 0.1),
        (0, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0.0),
    ],
    ids=["emission, another scanner", "attenuation", "aligned"],
)
def test_a_known_motion_is_found_within_a_voxel_and_a_degree(target, angles, shift, gain):
    mr, motion = moved(source(subject()[2]), angles, shift)
    found = register(source(subject()[target]), mr)
    angle, distance = errors(found, motion)
    assert angle < 1
    assert distance < VOXEL
    assert not found.warnings
    assert (found.metric_before is None) == (gain is None)
    assert gain is None or found.metric_after >= found.metric_before + gain


def noise(mr):
    return torch.rand(mr.shape, generator=torch.Generator().manual_seed(1))


def boxes(mr):
    image = torch.zeros_like(mr)
    image[12:38, 20:44, 10:28], image[42:50, 8:22, 36:50] = 1.0, 2.0
    return image


@pytest.mark.parametrize("nonsense", [noise, boxes])
def test_an_image_of_something_else_gives_a_warning(nonsense, caplog):
    emission, _, mr = subject()
    with caplog.at_level(logging.WARNING, "sirf_diffusion"):
        found = register(source(emission), source(nonsense(mr)))
    assert found.warnings
    assert "do not trust this registration" in caplog.text


def test_a_registered_image_is_the_aligned_one_on_the_grid_and_in_the_record():
    emission, _, mr = subject()
    away, _ = moved(source(mr), (7.0, 4.0, -9.0), (9.0, -12.0, 6.0))
    image = AnatomicalImage(away, "mr.nii", "0")
    before = load_anatomical(image, GEOMETRY).values
    placed = load_anatomical(image, GEOMETRY, register_to=(emission, GEOMETRY), emission=emission)
    inside = mr > 0.1
    assert (placed.values - mr)[inside].norm() < 0.5 * (before - mr)[inside].norm()
    known = placed.record["registration"]
    assert known["mutual_information_after"] > known["mutual_information_before"]
    np.testing.assert_allclose(np.asarray(known["matrix_lps"]) @ away.affine, source(mr).affine, atol=VOXEL)
    assert known["warnings"] == []


def test_a_thin_slab_is_refused():
    emission, _, mr = subject()
    slab = ImageGeometry((8, *GEOMETRY.shape[1:]), (VOXEL,) * 3, (-3 * VOXEL, 0.0, 0.0))
    with pytest.raises(ValueError, match=r"40 mm .* found 24 mm along z"):
        load_anatomical(mr, GEOMETRY, register_to=(emission[25:33], slab))
