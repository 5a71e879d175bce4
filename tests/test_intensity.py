from __future__ import annotations

import pytest
import torch

from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models.intensity import gaussian_smooth, intensity_scale


def disc(size=96, radius=30.0, spacing=2.0, activity=3.0):
    """A uniform disc, one plane; radius in voxels of 2 mm."""
    geometry = ImageGeometry((1, size, size), (2.0, spacing, spacing))
    y = (torch.arange(size) - size // 2) * spacing
    return activity * ((y[:, None] ** 2 + y**2) < (2 * radius) ** 2).float()[None], geometry


def test_a_uniform_object_has_its_activity():
    """Up to the blurred rim, which is narrow for an object much larger than 8 mm."""
    x, geometry = disc()
    assert intensity_scale(x, geometry) == pytest.approx(3.0, rel=0.1)


def test_homogeneous_of_degree_one():
    x, geometry = disc()
    x = x * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    assert intensity_scale(250.0 * x, geometry) == pytest.approx(250 * intensity_scale(x, geometry), rel=1e-5)


def test_insensitive_to_field_of_view_voxel_size_and_noise():
    x, geometry = disc()
    reference = intensity_scale(x, geometry)
    assert intensity_scale(*disc(size=200)) == pytest.approx(reference, rel=1e-5)
    assert intensity_scale(*disc(size=192, spacing=1.0)) == pytest.approx(reference, rel=0.02)
    noisy = x * gamma_noise(x.shape)
    assert intensity_scale(noisy, geometry) == pytest.approx(reference, rel=0.05)


def gamma_noise(shape):
    """Multiplicative noise of mean 1 and SD 0.7, as in an early unregularised image."""
    uniform = torch.rand((2, *shape), generator=torch.Generator().manual_seed(1)).clamp_min(1e-6)
    return -uniform.log().sum(0) / 2


def test_smoothing_keeps_constants_and_has_the_given_width():
    geometry = ImageGeometry((21, 41, 41), (3.0, 2.0, 2.0))
    ones = torch.ones(geometry.shape, dtype=torch.float64)
    torch.testing.assert_close(gaussian_smooth(ones, geometry, 8.0), ones)
    point = torch.zeros(geometry.shape, dtype=torch.float64)
    point[10, 20, 20] = 1
    smooth = gaussian_smooth(point, geometry, 8.0)
    assert float(smooth.sum()) == pytest.approx(1, rel=1e-6)
    for axis, spacing in enumerate(geometry.voxel_size):
        profile = smooth.sum([k for k in range(3) if k != axis])
        position = (torch.arange(len(profile)) - len(profile) // 2) * spacing
        assert float((profile * position**2).sum()) == pytest.approx((8 / 2.3548) ** 2, rel=1e-3)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), -1.0])
def test_images_without_a_scale_are_refused(value):
    geometry = ImageGeometry((1, 8, 8), (2.0, 2.0, 2.0))
    with pytest.raises(ValueError, match=r"finite|activity"):
        intensity_scale(torch.full(geometry.shape, value), geometry)
    with pytest.raises(ValueError, match="shape"):
        intensity_scale(torch.ones(1, 8, 9), geometry)
